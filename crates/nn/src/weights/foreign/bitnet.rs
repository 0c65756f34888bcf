//! BitNet b1.58 as transformers stores it: matrices of -1, 0 and 1 with one scale.
//!
//! Packed, four codes of 2 bits a byte, `weight [out / 4, in]`: bits `2 i` of row `r` are the code of row `i * out / 4 +
//! r`, plus 1. The scale divides in a `bitlinear` and multiplies in an `autobitlinear`. In the mode `online` weights are
//! plain, and what is computed with are these rounded to -1, 0 and 1 times the mean of their magnitudes.

use std::borrow::Cow;

use rillm_quant::{FloatType, RawTensor};

use super::super::safetensors::Dtype;
use super::grouped::{Grouped, Groups, Zeros, plain};
use super::module::{Module, Part};
use super::options::Options;
use crate::{Error, Result};

/// What may lie beside `weight`.
pub(super) const PARTS: &[&str] = &["weight_scale"];

/// What weights are that nobody has rounded yet.
const FLOATS: [Dtype; 3] =
    [Dtype::Float(FloatType::F32), Dtype::Float(FloatType::F16), Dtype::Float(FloatType::BF16)];
/// Rows in a stored row.
const ROWS: usize = 4;
/// The least magnitude that a matrix is scaled by.
const LEAST: f32 = 1e-5;

#[derive(Clone, Debug, PartialEq)]
pub(in crate::weights) struct BitNet {
    scale: Scale,
    /// Modules that are not quantized; `None`: the head.
    skip: Option<Vec<String>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Scale {
    /// `bitlinear`.
    Divides,
    /// `autobitlinear`.
    Multiplies,
    /// `autobitlinear` in the mode `online`: that of the weights themselves.
    Computed,
}

impl BitNet {
    pub(super) fn from_config(options: &Options<'_>) -> Result<Self> {
        // A norm before each projection.
        options.refuse("use_rms_norm")?;
        let classes = ["bitlinear", "autobitlinear"];
        let class = options.one_of("linear_class", "bitlinear", &classes, "bitlinear or autobitlinear")?;
        let modes = ["offline", "online"];
        let mode = options.one_of("quantization_mode", "offline", &modes, "offline or online")?;
        let scale = match (class, mode) {
            ("bitlinear", _) => Scale::Divides,
            (_, "offline") => Scale::Multiplies,
            _ => Scale::Computed,
        };
        let skip = options.texts("modules_to_not_convert")?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        if skip.iter().flatten().any(|name| !name.chars().all(plain)) {
            return Err(options.wrong("modules_to_not_convert", "names, not regular expressions"));
        }
        Ok(Self { scale, skip })
    }

    pub(super) fn matrix<'a>(&self, module: &Module<'a>) -> Result<Option<RawTensor<'a>>> {
        let Some(weight) = module.get("weight") else { return Ok(None) };
        if self.skips(module.path()) {
            return Ok(None);
        }
        let plain_type = matches!(weight.dtype(), Dtype::Float(_));
        match (self.scale, module.get("weight_scale")) {
            (Scale::Computed, _) if plain_type && weight.shape().len() == 2 => {
                if is_embedding(module.path()) { self.embedding(module) } else { rounded(&weight).map(Some) }
            }
            (_, None) if plain_type => Ok(None),
            (Scale::Multiplies, Some(scale)) if plain_type => {
                let factor = scale.scalar()?;
                let values: Vec<f32> = weight.scales()?.iter().map(|w| w * factor).collect();
                plain(&values, weight.shape().to_vec(), &weight.name).map(Some)
            }
            (Scale::Divides | Scale::Multiplies, scale) => {
                let weight = weight.typed(&[Dtype::U8])?;
                let scale = scale.map_or_else(|| module.need("weight_scale"), Ok)?;
                packed(&weight, &scale, self.factor(&scale)?).map(Some)
            }
            (Scale::Computed, _) => weight.typed(&FLOATS).map(|_| None),
        }
    }

    fn factor(&self, scale: &Part<'_>) -> Result<f32> {
        if self.scale == Scale::Divides { scale.divisor() } else { scale.scalar() }
    }

    /// Whether the module at `path` is listed as not quantized: by the start of its path up to a dot, or by its end.
    fn skips(&self, path: &str) -> bool {
        let Some(skip) = &self.skip else {
            return path.ends_with("lm_head") || path.ends_with("embed_out");
        };
        let starts = |name: &str| {
            path.strip_prefix(name)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.') || name.ends_with('.'))
        };
        skip.iter().any(|name| starts(name) || path.ends_with(name.as_str()))
    }

    /// Embeddings stay as they are, so a head that shares their values must not be quantized.
    fn embedding<'a>(&self, module: &Module<'a>) -> Result<Option<RawTensor<'a>>> {
        if self.skips("lm_head")
            || module.checkpoint_has("lm_head.weight")
            || !module.path().ends_with("embed_tokens")
        {
            return Ok(None);
        }
        Err(Error::QuantizationOption {
            method: "bitnet".to_owned(),
            key: "modules_to_not_convert".to_owned(),
            want: "lm_head among them, since the embedding has its values",
            got: format!("{:?}", self.skip.as_deref().unwrap_or_default()),
        })
    }
}

fn is_embedding(path: &str) -> bool {
    let leaf = path.rsplit('.').next().unwrap_or(path);
    leaf.contains("embed") || matches!(leaf, "wte" | "wpe")
}

fn packed(weight: &Part<'_>, scale: &Part<'_>, factor: f32) -> Result<RawTensor<'static>> {
    let [stored, cols] = weight.matrix()?;
    let rows = stored.checked_mul(ROWS).ok_or_else(|| weight.wrong_shape(&[stored]))?;
    let codes = (0..rows).map(|row| {
        let (shift, row) = (2 * (row / stored), row % stored);
        weight.bytes()[row * cols..][..cols].iter().map(move |byte| byte >> shift & 3)
    });
    ternary(codes, [rows, cols], factor, scale.float_type()).tensor(&weight.name)
}

/// Weights rounded to multiples of the mean of their magnitudes.
fn rounded(weight: &Part<'_>) -> Result<RawTensor<'static>> {
    let ([rows, cols], values) = (weight.matrix()?, weight.scales()?);
    let sum: f64 = values.iter().map(|w| f64::from(w.abs())).sum();
    let scale = 1.0 / ((sum / values.len() as f64) as f32).max(LEAST);
    let code = move |w: &f32| ((w * scale).round_ties_even().clamp(-1.0, 1.0) + 1.0) as u8;
    let codes = values.chunks_exact(cols).map(|row| row.iter().map(code));
    ternary(codes, [rows, cols], 1.0 / scale, None).tensor(&weight.name)
}

/// Codes 0, 1 and 2 for -1, 0 and 1.
fn ternary<R: Iterator<Item = u8>>(
    rows: impl Iterator<Item = R>,
    [count, cols]: [usize; 2],
    factor: f32,
    meta: Option<FloatType>,
) -> Grouped<'static> {
    let mut codes = vec![0; count * cols.div_ceil(4)];
    for (bytes, row) in codes.chunks_exact_mut(cols.div_ceil(4)).zip(rows) {
        for (i, code) in row.enumerate() {
            bytes[i / 4] |= code << (2 * (i % 4));
        }
    }
    Grouped {
        rows: count,
        cols,
        bits: 2,
        codes: Cow::Owned(codes),
        groups: Groups::Runs(cols),
        scales: vec![factor; count],
        zeros: Zeros::Same(1.0),
        meta: meta.unwrap_or(FloatType::F32),
    }
}
