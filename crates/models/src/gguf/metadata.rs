//! The keys of one architecture, read with their types and bounds.

use rillm_nn::{Gguf, WeightSource};

use super::architecture::{ALL, Architecture};
use crate::{Error, Result};

/// Beyond any model; keeps a hostile count from allocating.
const MAX_LAYERS: usize = 4096;

/// Beyond any model, too.
const MAX_EXPERTS: usize = 4096;

/// The experts of a layer.
#[derive(Clone, Copy)]
pub(super) struct Experts {
    /// How many there are.
    pub count: usize,
    /// Width inside one.
    pub hidden: usize,
    /// Width that they read and give.
    pub dim: usize,
}

/// The metadata of a file, and what is known of its architecture.
pub(super) struct Metadata<'a> {
    pub g: &'a Gguf,
    pub architecture: &'static Architecture,
}

impl<'a> Metadata<'a> {
    /// The metadata of `g`, whose architecture must be known.
    pub fn new(g: &'a Gguf) -> Result<Self> {
        let key = "general.architecture";
        let name = g.require(key, g.str(key)?)?;
        match ALL.iter().find(|a| a.name == name) {
            Some(architecture) => Ok(Self { g, architecture }),
            None => Err(Error::Metadata {
                key: key.to_owned(),
                want: ALL.iter().map(|a| a.name).collect::<Vec<_>>().join(", "),
                got: name.to_owned(),
            }),
        }
    }

    /// Refuses what changes the result in any architecture and is not implemented.
    pub fn refuse(&self) -> Result<()> {
        if let (false, Some(n @ 1..)) = (self.architecture.mixed.is_some(), self.count("expert_count")?) {
            return Err(self.unsupported("expert_count", "0: no experts", n));
        }
        if !self.flag("attention.causal")?.unwrap_or(true) {
            return Err(self.unsupported("attention.causal", "true", false));
        }
        let key = "rope.dimension_sections";
        match self.g.metadata(&self.key(key)) {
            // Of text, all positions of a token are the same.
            Some(_) if self.architecture.model_type == "qwen3_5_text" => Ok(()),
            Some(value) if value.to_integers().is_none_or(|v| v.iter().any(|n| *n != 0)) => {
                Err(self.unsupported(key, "none: one position for each token", value))
            }
            _ => Ok(()),
        }
    }

    /// `name` with the architecture before it.
    pub fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture.name)
    }

    /// A count; where each layer has its own, they must be the same.
    pub fn count(&self, name: &str) -> Result<Option<usize>> {
        let key = self.key(name);
        let Some(value) = self.g.metadata(&key).filter(|v| v.is_array()) else {
            return Ok(self.g.usize(&key)?);
        };
        let list = value.to_integers().unwrap_or_default();
        match list.first().and_then(|n| usize::try_from(*n).ok()) {
            Some(n) if list.iter().all(|other| *other == list[0]) => Ok(Some(n)),
            _ => Err(self.unsupported(name, "the same count for all layers", value)),
        }
    }

    pub fn required_count(&self, name: &str) -> Result<usize> {
        Ok(self.g.require(&self.key(name), self.count(name)?)?)
    }

    /// A count for each layer.
    pub fn counts(&self, name: &str) -> Result<Vec<usize>> {
        let (key, layers) = (self.key(name), self.all_layers()?);
        let value = self.g.require(&key, self.g.metadata(&key))?;
        if !value.is_array() {
            return Ok(vec![self.required_count(name)?; self.layers()?]);
        }
        let list = value.to_integers().unwrap_or_default();
        let mut list: Vec<_> = list.iter().filter_map(|n| usize::try_from(*n).ok()).collect();
        if list.len() != layers {
            return Err(self.unsupported(name, &format!("{layers} counts"), value));
        }
        list.truncate(self.layers()?);
        Ok(list)
    }

    /// A number, if the key is there.
    pub fn number(&self, name: &str) -> Result<Option<f32>> {
        match self.g.f32(&self.key(name))? {
            Some(x) if !x.is_finite() => Err(self.unsupported(name, "a finite number", x)),
            x => Ok(x),
        }
    }

    pub fn required_number(&self, name: &str) -> Result<f32> {
        Ok(self.g.require(&self.key(name), self.number(name)?)?)
    }

    /// A number where 0 stands for none.
    pub fn factor(&self, name: &str) -> Result<Option<f32>> {
        Ok(self.number(name)?.filter(|x| *x != 0.0))
    }

    /// The epsilon of the norms.
    pub fn eps(&self) -> Result<f32> {
        let (key, _) = self.architecture.eps;
        match self.number(key)? {
            // Files of Nemotron-H may have that of LayerNorms alone.
            None if self.architecture.model_type == "nemotron_h" => {
                self.required_number("attention.layer_norm_epsilon")
            }
            eps => Ok(self.g.require(&self.key(key), eps)?),
        }
    }

    pub fn flag(&self, name: &str) -> Result<Option<bool>> {
        Ok(self.g.bool(&self.key(name))?)
    }

    /// A truth value for each layer, if the key is there.
    pub fn flags(&self, name: &str) -> Result<Option<Vec<bool>>> {
        let (layers, all) = (self.layers()?, self.all_layers()?);
        let Some(value) = self.g.metadata(&self.key(name)) else { return Ok(None) };
        match value.as_bools() {
            Some(list) if list.len() == all => Ok(Some(list[..layers].to_vec())),
            _ => Err(self.unsupported(name, &format!("{all} times true or false"), value)),
        }
    }

    /// Whether a tensor is there.
    pub fn has(&self, tensor: &str) -> bool {
        self.g.shape(tensor).is_some()
    }

    /// Whether module `name` of the first layer has a bias.
    pub fn bias(&self, name: &str) -> bool {
        self.has(&format!("blk.0.{name}.bias"))
    }

    pub fn rows(&self, tensor: &str) -> Result<usize> {
        let missing = || rillm_nn::Error::MissingWeight { name: tensor.to_owned() };
        Ok(self.g.shape(tensor).and_then(|s| s.first().copied()).ok_or_else(missing)?)
    }

    /// The values of a small tensor, if it is there.
    pub fn values(&self, tensor: &str) -> Result<Option<Vec<f32>>> {
        let Some(raw) = self.g.get(tensor)? else { return Ok(None) };
        let values =
            raw.decode().map_err(|source| rillm_nn::Error::Quant { name: tensor.to_owned(), source })?;
        Ok(Some(values))
    }

    pub fn unsupported(&self, name: &str, want: &str, got: impl ToString) -> Error {
        Error::Metadata { key: self.key(name), want: want.to_owned(), got: got.to_string() }
    }

    /// The layers of the decoder: the last ones of a file may predict further tokens, and are left out.
    pub fn layers(&self) -> Result<usize> {
        let (all, key) = (self.all_layers()?, "nextn_predict_layers");
        let ahead = self.count(key)?.unwrap_or(0);
        let layers = all.checked_sub(ahead).filter(|n| *n > 0);
        layers.ok_or_else(|| self.unsupported(key, &format!("fewer than the {all} layers"), ahead))
    }

    /// The experts of the layers that have some.
    pub fn experts(&self) -> Result<Experts> {
        let key = "expert_count";
        let count = self.required_count(key)?;
        if !(1..=MAX_EXPERTS).contains(&count) {
            return Err(self.unsupported(key, &format!("1 to {MAX_EXPERTS}"), count));
        }
        let hidden = match self.count("expert_feed_forward_length")?.filter(|n| *n > 0) {
            Some(n) => n,
            None => self.required_count("feed_forward_length")?,
        };
        let dim = match self.count("moe_latent_size")?.filter(|n| *n > 0) {
            Some(n) => n,
            None => self.required_count("embedding_length")?,
        };
        Ok(Experts { count, hidden, dim })
    }

    /// Layers of the file, not too many to list.
    fn all_layers(&self) -> Result<usize> {
        let key = "block_count";
        match self.required_count(key)? {
            layers if layers <= MAX_LAYERS => Ok(layers),
            layers => Err(self.unsupported(key, &format!("at most {MAX_LAYERS}"), layers)),
        }
    }

    pub fn heads(&self) -> Result<usize> {
        let heads = self.required_count("attention.head_count")?;
        if heads == 0 {
            return Err(self.unsupported("attention.head_count", "at least 1", heads));
        }
        Ok(heads)
    }

    pub fn kv_heads(&self) -> Result<usize> {
        Ok(self.count("attention.head_count_kv")?.unwrap_or(self.heads()?))
    }

    /// Heads of keys and values of each layer.
    pub fn kv_heads_by_layer(&self) -> Result<Vec<usize>> {
        let key = "attention.head_count_kv";
        match self.g.metadata(&self.key(key)) {
            Some(_) => self.counts(key),
            None => Ok(vec![self.heads()?; self.layers()?]),
        }
    }

    /// Values of a head; `suffix` says of which layers. Of latent attention, those that are rotated.
    pub fn head_dim_of(&self, suffix: &str) -> Result<usize> {
        if self.count("attention.kv_lora_rank")?.is_some() {
            // What all heads share, and what is rotated.
            return self.required_count("rope.dimension_count");
        }
        let by_width = self.required_count("embedding_length")? / self.heads()?;
        let [keys, values] = ["key", "value"].map(|of| format!("attention.{of}_length{suffix}"));
        let length = self.count(&keys)?.unwrap_or(by_width);
        let value_length = self.count(&values)?.unwrap_or(by_width);
        if length != value_length {
            return Err(self.unsupported(&values, &format!("{length}, the length of keys"), value_length));
        }
        Ok(length)
    }

    pub fn head_dim(&self) -> Result<usize> {
        self.head_dim_of("")
    }

    /// Which layers have a window: all but every `period`-th, unless the file says otherwise.
    pub fn sliding(&self, period: usize) -> Result<Vec<bool>> {
        let key = "attention.sliding_window_pattern";
        let (layers, all) = (self.layers()?, self.all_layers()?);
        let every = |period: usize| (0..layers).map(|i| !(i + 1).is_multiple_of(period)).collect();
        let Some(value) = self.g.metadata(&self.key(key)) else { return Ok(every(period)) };
        let mut list = match (value.as_bools(), value.as_usize()) {
            (Some(list), _) => list.to_vec(),
            (_, Some(n @ 1..)) => return Ok(every(n)),
            _ => value.to_integers().unwrap_or_default().iter().map(|n| *n != 0).collect(),
        };
        if list.len() != all {
            let want = format!("a count of layers, or {all} times true or false");
            return Err(self.unsupported(key, &want, value));
        }
        list.truncate(layers);
        Ok(list)
    }
}
