//! config.json in all its spellings, read key by key. Knows keys that many families share, but no family.

use rillm_nn::{NormKind, RopeScaling, RopeSpec};
use rillm_tensor_core::{Activation, Pairing};
use serde_json::{Map, Value};

use crate::{Error, Result};

/// Largest count that a configuration may ask for: far above any model, far below what overflows.
const MAX: u64 = 1 << 24;

/// A view of config.json, or of an object inside it.
#[derive(Clone, Copy, Debug)]
pub struct Config<'a> {
    map: &'a Map<String, Value>,
    /// Counts where the object has none.
    counts: &'static [(&'static str, usize)],
    /// `max_position_embeddings` where nothing says.
    positions: Option<usize>,
}

impl<'a> Config<'a> {
    /// The view of `value`, which must be an object.
    ///
    /// # Errors
    /// [`Error::Config`] otherwise.
    pub fn new(value: &'a Value) -> Result<Self> {
        let map = value.as_object().ok_or_else(|| wrong("the file", "an object", Some(value)))?;
        Ok(Self { map, counts: &[], positions: None })
    }

    /// This view with `counts` where the object has none: what a family's files may leave out.
    pub fn with_counts(self, counts: &'static [(&'static str, usize)]) -> Self {
        Self { counts, ..self }
    }

    /// This view of a model that was made for `positions` if `max_position_embeddings` is absent.
    pub fn with_positions(self, positions: usize) -> Self {
        Self { positions: Some(positions), ..self }
    }

    /// The keys that are there.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.map.keys().map(String::as_str)
    }

    /// The value of `key`, where null counts as absent.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// Whether `key` is there, null or not.
    pub fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// `model_type`.
    ///
    /// # Errors
    /// It is missing or no string.
    pub fn model_type(&self) -> Result<&'a str> {
        self.str("model_type")
    }

    /// A string.
    ///
    /// # Errors
    /// It is missing or no string.
    pub fn str(&self, key: &str) -> Result<&'a str> {
        self.get(key).and_then(Value::as_str).ok_or_else(|| wrong(key, "a string", self.get(key)))
    }

    /// A count of at least 1.
    ///
    /// # Errors
    /// It is missing, no whole number, zero or absurdly large.
    pub fn count(&self, key: &str) -> Result<usize> {
        self.opt_count(key)?.ok_or_else(|| wrong(key, "a positive whole number", None))
    }

    /// A count of at least 1, or `default` if the key is absent or null.
    ///
    /// # Errors
    /// No whole number, zero or absurdly large.
    pub fn count_or(&self, key: &str, default: usize) -> Result<usize> {
        Ok(self.opt_count(key)?.unwrap_or(default))
    }

    /// `n` times the number `key` (or `default`), rounded down.
    ///
    /// # Errors
    /// No number above zero, or an absurdly large product.
    pub fn multiple(&self, key: &str, default: f64, n: usize) -> Result<usize> {
        match self.positive_or(key, default)? * n as f64 {
            product if product <= MAX as f64 => Ok(product as usize),
            _ => Err(self.unsupported(key, &format!("a width of at most {MAX}"))),
        }
    }

    /// A count of at least 1, if there is one.
    ///
    /// # Errors
    /// No whole number, zero or absurdly large.
    pub fn opt_count(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else {
            return Ok(self.counts.iter().find(|(k, _)| *k == key).map(|(_, n)| *n));
        };
        match value.as_u64() {
            Some(n @ 1..=MAX) => Ok(Some(n as usize)),
            _ => Err(wrong(key, "a positive whole number", Some(value))),
        }
    }

    /// A finite number, if there is one.
    ///
    /// # Errors
    /// Not a finite number.
    pub fn opt_number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            Some(x) if x.is_finite() => Ok(Some(x)),
            _ => Err(wrong(key, "a finite number", Some(value))),
        }
    }

    /// A finite number, or `default`.
    ///
    /// # Errors
    /// Not a finite number.
    pub fn number_or(&self, key: &str, default: f64) -> Result<f64> {
        Ok(self.opt_number(key)?.unwrap_or(default))
    }

    /// A finite number above zero, or `default`.
    ///
    /// # Errors
    /// Not a finite number above zero.
    pub fn positive_or(&self, key: &str, default: f64) -> Result<f64> {
        match self.number_or(key, default)? {
            x if x > 0.0 => Ok(x),
            _ => Err(wrong(key, "a number above zero", self.get(key))),
        }
    }

    /// A truth value, where null is false as in Python, or `default` if the key is absent.
    ///
    /// # Errors
    /// Neither true, false nor null.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        let Some(value) = self.get(key) else { return Ok(default && !self.has(key)) };
        value.as_bool().ok_or_else(|| wrong(key, "true or false", Some(value)))
    }

    /// Numbers, if there are any.
    ///
    /// # Errors
    /// Not an array of finite numbers.
    pub fn opt_numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let numbers = value.as_array().and_then(|a| a.iter().map(Value::as_f64).collect::<Option<Vec<_>>>());
        numbers.map(Some).ok_or_else(|| wrong(key, "an array of numbers", Some(value)))
    }

    /// Two numbers in order, of which the second may be infinite, or `default`. Python writes such a number as
    /// `Infinity`, transformers as `{"__float__": "Infinity"}`.
    ///
    /// # Errors
    /// Anything else.
    pub fn limits(&self, key: &str, default: [f64; 2]) -> Result<[f64; 2]> {
        let Some(value) = self.get(key) else { return Ok(default) };
        let number = |v: &Value| match v.get("__float__").and_then(Value::as_str) {
            Some("Infinity") => Some(f64::INFINITY),
            Some(_) => None,
            None => v.as_f64(),
        };
        match value.as_array().map(|a| a.iter().map(number).collect::<Vec<_>>()).as_deref() {
            Some(&[Some(low), Some(high)]) if low <= high => Ok([low, high]),
            _ => Err(wrong(key, "two numbers in order", Some(value))),
        }
    }

    /// For each of `layers` layers which of `names` it is, from the list at `key`, or what `default` says.
    ///
    /// # Errors
    /// Another name, or not one for each layer.
    pub fn layer_names<'n>(
        &self,
        key: &str,
        layers: usize,
        names: &[&'n str],
        default: impl Fn(usize) -> &'n str,
    ) -> Result<Vec<&'n str>> {
        let Some(value) = self.get(key) else { return Ok((0..layers).map(default).collect()) };
        let of = |v: &Value| names.iter().copied().find(|name| v.as_str() == Some(name));
        let list = value.as_array().and_then(|a| a.iter().map(of).collect::<Option<Vec<_>>>());
        list.filter(|l| l.len() == layers)
            .ok_or_else(|| wrong(key, &format!("{layers} of {}", names.join(", ")), Some(value)))
    }

    /// Refuses a value of `key` other than `only`, which is also what its absence means.
    ///
    /// # Errors
    /// Another value.
    pub fn only(&self, key: &str, only: &str) -> Result<()> {
        match self.get(key) {
            Some(value) if value.as_str() != Some(only) => Err(wrong(key, only, Some(value))),
            _ => Ok(()),
        }
    }

    /// An object inside, if there is one.
    ///
    /// # Errors
    /// Not an object.
    pub fn object(&self, key: &str) -> Result<Option<Config<'a>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let map = value.as_object().ok_or_else(|| wrong(key, "an object", Some(value)))?;
        Ok(Some(Config { map, counts: &[], positions: None }))
    }

    /// The error for a value that this library does not know what to do with.
    pub fn unsupported(&self, key: &str, known: &str) -> Error {
        wrong(key, known, self.get(key))
    }

    /// The activation called `key`, or `default`.
    ///
    /// # Errors
    /// An unknown name.
    pub fn activation(&self, key: &str, default: Activation) -> Result<Activation> {
        if self.get(key).is_none() {
            return Ok(default);
        }
        Ok(match self.str(key)? {
            "silu" | "swish" => Activation::Silu,
            "gelu" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_python_tanh" => Activation::GeluTanh,
            "relu" => Activation::Relu,
            "relu2" => Activation::Relu2,
            // Its numbers are in the checkpoint.
            "xielu" => Activation::XIelu { positive: 0.0, negative: 0.0, slope: 0.0 },
            _ => {
                let known = "silu, gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, relu, relu2 or xielu";
                return Err(self.unsupported(key, known));
            }
        })
    }

    /// `rms_norm_eps` as an RMSNorm.
    ///
    /// # Errors
    /// Not a number above zero.
    pub fn rms_norm(&self, default: f64) -> Result<NormKind> {
        Ok(NormKind::Rms { eps: self.positive_or("rms_norm_eps", default)? as f32 })
    }

    /// `key` as a LayerNorm of `kind`.
    ///
    /// # Errors
    /// Not a number above zero.
    pub fn layer_norm(&self, key: &str, kind: fn(f32) -> NormKind) -> Result<NormKind> {
        Ok(kind(self.positive_or(key, 1e-5)? as f32))
    }

    /// Which layers are `sliding_attention` (true) or `full_attention` (false), from `layer_types` or, if that is
    /// absent, from `default`.
    ///
    /// # Errors
    /// Another name, or not one for each layer.
    pub fn sliding_layers(&self, layers: usize, default: impl Fn(usize) -> bool) -> Result<Vec<bool>> {
        let names = ["full_attention", "sliding_attention"];
        let kinds = self.layer_names("layer_types", layers, &names, |i| names[usize::from(default(i))])?;
        Ok(kinds.into_iter().map(|kind| kind == names[1]).collect())
    }

    /// What is said of rope for all layers: `rope_scaling` of older files, which wins where both are there, or
    /// `rope_parameters`.
    ///
    /// # Errors
    /// Not an object.
    pub fn rope_object(&self) -> Result<Option<Config<'a>>> {
        match self.object("rope_scaling")?.filter(|p| !p.map.is_empty()) {
            Some(scaling) => Ok(Some(scaling)),
            None => self.object("rope_parameters"),
        }
    }

    /// The rotary embedding of heads of `head_dim` values: `rope_parameters` (its part `layer_type` if it is nested),
    /// or `rope_theta` and `rope_scaling` of older files. `theta` where no key says.
    ///
    /// # Errors
    /// Missing or senseless values, an unknown `rope_type`.
    pub fn rope(&self, head_dim: usize, theta: f64, layer_type: Option<&str>) -> Result<RopeSpec> {
        self.partial_rope(head_dim, theta, 1.0, layer_type)
    }

    /// [`rope`](Self::rope) of which a `part` of each head is rotated where no key says.
    ///
    /// # Errors
    /// As [`rope`](Self::rope).
    pub fn partial_rope(
        &self,
        head_dim: usize,
        theta: f64,
        part: f64,
        layer_type: Option<&str>,
    ) -> Result<RopeSpec> {
        let nested = self.object("rope_parameters")?.filter(|all| all.map.values().any(Value::is_object));
        let mut own = Map::new();
        let map = match nested {
            Some(all) => {
                // Of families whose layers don't differ, or that ask for each kind afterwards: the usual kind.
                let layer_type = layer_type.unwrap_or(FULL);
                let want = format!("an entry {layer_type}");
                let part =
                    all.object(layer_type)?.ok_or_else(|| self.unsupported("rope_parameters", &want))?;
                match self.object("rope_scaling")?.filter(|_| layer_type == FULL) {
                    Some(scaling) => {
                        own.extend(part.map.clone());
                        own.extend(scaling.map.clone());
                        &own
                    }
                    None => part.map,
                }
            }
            None => self.rope_object()?.map_or(&own, |p| p.map),
        };
        let rope = Rope { config: *self, p: Config { map, counts: &[], positions: None } };
        rope.spec(head_dim, theta, part)
    }
}

/// Layers that see everything.
const FULL: &str = "full_attention";

/// Rope parameters beside the configuration that fills their gaps.
struct Rope<'a, 'p> {
    config: Config<'a>,
    p: Config<'p>,
}

/// `dims / head_dim`, such that rounding down gives the count again.
pub(crate) fn rotated_part(dims: usize, head_dim: usize) -> f64 {
    let part = dims as f64 / head_dim as f64;
    if (part * head_dim as f64) as usize == dims { part } else { part.next_up() }
}

/// Frequencies are computed before any weight has shown that the heads are as large as the configuration says.
const MAX_HEAD_DIM: usize = 1 << 14;

impl Rope<'_, '_> {
    fn spec(&self, head_dim: usize, theta: f64, part: f64) -> Result<RopeSpec> {
        if head_dim > MAX_HEAD_DIM {
            return Err(wrong("head_dim", &format!("at most {MAX_HEAD_DIM}"), Some(&head_dim.into())));
        }
        let theta = self.p.positive_or("rope_theta", self.config.positive_or("rope_theta", theta)?)?;
        let part = self.config.positive_or("partial_rotary_factor", part)?;
        let part = self.p.positive_or("partial_rotary_factor", part)?;
        if self.kind()? == "proportional" {
            let rotated = ((part * head_dim as f64) as usize / 2).min(head_dim / 2);
            let factor = self.p.positive_or("factor", 1.0)?;
            let scaling = RopeScaling::Proportional { rotated, factor };
            return Ok(RopeSpec {
                head_dim,
                dims: head_dim / 2 * 2,
                theta,
                pairing: Pairing::Halves,
                scaling,
            });
        }
        let dims = (head_dim as f64 * part) as usize;
        if dims == 0 || dims.next_multiple_of(2) > head_dim {
            let want = format!("pairs of rotated values of {head_dim}");
            return Err(wrong("partial_rotary_factor", &want, Some(&part.into())));
        }
        let scaling = self.scaling(dims)?;
        Ok(RopeSpec { head_dim, dims, theta, pairing: Pairing::Halves, scaling })
    }

    fn kind(&self) -> Result<&str> {
        match (self.p.get("rope_type"), self.p.get("type")) {
            (Some(_), _) => self.p.str("rope_type"),
            (None, Some(_)) => self.p.str("type"),
            (None, None) => Ok("default"),
        }
    }

    fn scaling(&self, dims: usize) -> Result<RopeScaling> {
        let p = &self.p;
        Ok(match self.kind()? {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: self.factor()? },
            // Hunyuan's: a fixed stretch of the base, whatever the length.
            "dynamic" if p.get("alpha").is_some() => {
                RopeScaling::NtkAlpha { alpha: p.positive_or("alpha", 1.0)? }
            }
            "dynamic" => {
                RopeScaling::Dynamic { factor: self.factor()?, max_positions: self.max_positions()? }
            }
            "llama3" => RopeScaling::Llama3 {
                factor: self.factor()?,
                low: p.positive_or("low_freq_factor", 1.0)?,
                high: p.positive_or("high_freq_factor", 4.0)?,
                original: self.original()? as f64,
            },
            // The first phi3 files call longrope so.
            "yarn" if p.get("short_factor").is_some() => self.longrope(dims)?,
            // The ramp of transformers has a value for each whole pair.
            "yarn" if !dims.is_multiple_of(2) => {
                return Err(p.unsupported("rope_type", "another: the number of rotated values is odd"));
            }
            "yarn" => self.yarn()?,
            "longrope" | "su" => self.longrope(dims)?,
            "gguf_factors" => RopeScaling::Factors(self.divisors("factors", dims)?),
            _ => {
                let known = "default, linear, dynamic, llama3, yarn, longrope or proportional";
                let key = if p.get("rope_type").is_some() { "rope_type" } else { "type" };
                return Err(p.unsupported(key, known));
            }
        })
    }

    fn factor(&self) -> Result<f64> {
        match self.p.opt_number("factor")? {
            Some(x) if x >= 1.0 => Ok(x),
            _ => Err(self.p.unsupported("factor", "a number of at least 1")),
        }
    }

    fn max_positions(&self) -> Result<usize> {
        let key = "max_position_embeddings";
        self.config.positions.map_or_else(|| self.config.count(key), |n| self.config.count_or(key, n))
    }

    fn original(&self) -> Result<usize> {
        let key = "original_max_position_embeddings";
        match self.config.opt_count(key)? {
            Some(n) => Ok(n),
            None => self.p.opt_count(key)?.map_or_else(|| self.max_positions(), Ok),
        }
    }

    fn yarn(&self) -> Result<RopeScaling> {
        let p = &self.p;
        let original = self.original()? as f64;
        let factor = match p.get("factor") {
            Some(_) => self.factor()?,
            None => self.max_positions()? as f64 / original,
        };
        let mscale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
        let ratio = match (p.opt_number("mscale")?, p.opt_number("mscale_all_dim")?) {
            (Some(m), Some(all)) if m != 0.0 && all != 0.0 => mscale(m) / mscale(all),
            _ => mscale(1.0),
        };
        Ok(RopeScaling::Yarn {
            factor,
            original,
            beta_fast: p.positive_or("beta_fast", 32.0)?,
            beta_slow: p.positive_or("beta_slow", 1.0)?,
            truncate: p.flag("truncate", true)?,
            attention_factor: p.number_or("attention_factor", ratio)?,
        })
    }

    fn longrope(&self, dims: usize) -> Result<RopeScaling> {
        let original = self.original()?;
        let factor = match self.p.opt_number("factor")? {
            Some(x) => x,
            None => self.max_positions()? as f64 / original as f64,
        };
        let by_length = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() };
        Ok(RopeScaling::LongRope {
            short: self.divisors("short_factor", dims)?,
            long: self.divisors("long_factor", dims)?,
            original,
            attention_factor: self.p.number_or("attention_factor", by_length)?,
        })
    }

    /// One divisor above zero for each pair of `dims`.
    fn divisors(&self, key: &str, dims: usize) -> Result<Vec<f64>> {
        let list = self.p.opt_numbers(key)?.unwrap_or_default();
        if list.len() != dims.div_ceil(2) || list.iter().any(|x| *x <= 0.0) {
            return Err(self.p.unsupported(key, &format!("{} numbers above zero", dims.div_ceil(2))));
        }
        Ok(list)
    }
}

fn wrong(key: &str, want: &str, got: Option<&Value>) -> Error {
    let mut got = got.map_or_else(|| "nothing".to_owned(), Value::to_string);
    if let Some((at, _)) = got.char_indices().nth(120) {
        got.truncate(at);
        got.push('…');
    }
    Error::Config { key: key.to_owned(), want: want.to_owned(), got }
}
