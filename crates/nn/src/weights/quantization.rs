//! How a checkpoint is quantized: `quantization` of config.json as MLX writes it, and the decision for one matrix.
//! Reads no tensors and decodes nothing. What other libraries write is read in `foreign`.

use std::collections::HashMap;

use rillm_quant::{FloatType, Format};
use serde_json::{Map, Value};

use super::foreign::Foreign;
use crate::{Error, Result};

/// How a config.json says that its checkpoint is quantized: `quantization` as MLX writes it, defaults and a map from
/// module paths to settings; or `quantization_config` of another library.
///
/// The default value knows nothing: what has scales is then recognised by its shapes alone.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Quantization {
    default: Option<Setting>,
    modules: HashMap<String, Option<Setting>>,
    foreign: Option<Foreign>,
}

/// Parameters of one quantized matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    pub mode: Mode,
    pub bits: u32,
    pub group: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Affine,
    MxFp4,
    MxFp8,
    NvFp4,
}

/// What config.json says about a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Listed: not quantized.
    Dense,
    /// Listed: quantized in this way.
    Listed(Setting),
    /// Not listed: quantized if it has scales, in the way that the shapes tell.
    Unlisted,
}

/// Shapes of the parts of a quantized matrix as far as they tell its format.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts {
    /// `u32` words of a row of codes.
    pub words: usize,
    /// Scales of a row.
    pub groups: usize,
    /// Type of the scales; `None` for bytes.
    pub scales: Option<FloatType>,
    /// Values of a row that the layer wants, if known.
    pub cols: Option<usize>,
}

/// Common ones first.
const AFFINE_GROUPS: [usize; 3] = [64, 32, 128];
/// Common ones, and rare ones.
const AFFINE_BITS: [&[u32]; 2] = [&[4, 8, 6, 5], &[3, 2]];

impl Quantization {
    /// Reads `quantization` of a config.json, or `quantization_config` (also that of its `text_config`), which is MLX's
    /// copy of it or another library's. A config without either gives the default.
    ///
    /// # Errors
    /// [`Error::QuantizationConfig`], [`Error::QuantizationMode`], [`Error::QuantizationOption`];
    /// [`Error::QuantizationMethod`] where `quantization_config` belongs to a library whose formats are not known.
    pub fn from_config(config: &Value) -> Result<Self> {
        let present = |key| config.get(key).filter(|v| !v.is_null());
        let text = || config.get("text_config")?.get("quantization_config").filter(|v| v.is_object());
        let found = present("quantization").or_else(|| present("quantization_config")).or_else(text);
        let Some(value) = found else { return Ok(Self::default()) };
        let map = object("the model", value)?;
        match map.get("quant_method").and_then(Value::as_str) {
            // gpt-oss: its families know the names of its blocks.
            Some("mxfp4") => return Ok(Self::default()),
            Some(method) => {
                let foreign = Some(Foreign::from_config(method, map)?);
                return Ok(Self { foreign, ..Self::default() });
            }
            None => {}
        }
        let mut modules = HashMap::new();
        let default = setting("the model", map)?;
        for (path, value) in map {
            match value {
                Value::Bool(true) => modules.insert(path.clone(), Some(default)),
                Value::Bool(false) => modules.insert(path.clone(), None),
                Value::Object(v) => modules.insert(path.clone(), Some(setting(path, v)?)),
                _ => continue,
            };
        }
        Ok(Self { default: Some(default), modules, foreign: None })
    }

    /// How another library quantized the checkpoint, if one did.
    pub(super) fn foreign(&self) -> Option<&Foreign> {
        self.foreign.as_ref()
    }

    pub(super) fn decide(&self, path: &str) -> Decision {
        match self.modules.get(path) {
            Some(Some(setting)) => Decision::Listed(*setting),
            Some(None) => Decision::Dense,
            None => Decision::Unlisted,
        }
    }

    /// The setting that fits the shapes. Shapes alone fix only `bits * group`; of the settings left, the one
    /// with the wanted columns is taken, else the model's default, else the most common.
    pub(super) fn infer(&self, parts: Parts) -> Option<Setting> {
        let fits = |s: &Setting| {
            let codes = s.group.checked_mul(s.bits as usize).and_then(|n| n.checked_mul(parts.groups));
            codes.is_some() && codes == parts.words.checked_mul(32)
        };
        let candidates: Vec<Setting> =
            candidates(parts.scales.is_none()).into_iter().filter(|s| fits(s)).collect();
        let wanted = |s: &&Setting| parts.groups.checked_mul(s.group) == parts.cols;
        let default = |s: &&Setting| Some(**s) == self.default;
        let found = candidates.iter().find(wanted).or_else(|| candidates.iter().find(default));
        found.or(candidates.first()).copied()
    }
}

impl Setting {
    pub(super) fn format(self, meta: Option<FloatType>) -> Option<Format> {
        match (self.mode, meta) {
            (Mode::Affine, Some(meta)) => Some(Format::Affine { bits: self.bits, group: self.group, meta }),
            (Mode::MxFp4, None) => Some(Format::MxFp4),
            (Mode::MxFp8, None) => Some(Format::MxFp8),
            (Mode::NvFp4, None) => Some(Format::NvFp4),
            _ => None,
        }
    }
}

impl Mode {
    /// Bits and group size that a mode has unless told otherwise.
    fn defaults(self) -> (u32, usize) {
        match self {
            Self::Affine => (4, 64),
            Self::MxFp4 => (4, 32),
            Self::MxFp8 => (8, 32),
            Self::NvFp4 => (4, 16),
        }
    }
}

fn candidates(byte_scales: bool) -> Vec<Setting> {
    if byte_scales {
        return [Mode::NvFp4, Mode::MxFp4, Mode::MxFp8]
            .map(|mode| {
                let (bits, group) = mode.defaults();
                Setting { mode, bits, group }
            })
            .to_vec();
    }
    let mut all = Vec::new();
    for bits in AFFINE_BITS {
        for group in AFFINE_GROUPS {
            all.extend(bits.iter().map(|&bits| Setting { mode: Mode::Affine, bits, group }));
        }
    }
    all
}

fn object<'a>(name: &str, value: &'a Value) -> Result<&'a Map<String, Value>> {
    value.as_object().ok_or_else(|| Error::QuantizationConfig {
        name: name.to_owned(),
        want: "an object",
        got: value.to_string(),
    })
}

/// `{"group_size", "bits", "mode"}`, each optional.
fn setting(name: &str, map: &Map<String, Value>) -> Result<Setting> {
    let wrong = |want, got: String| Error::QuantizationConfig { name: name.to_owned(), want, got };
    let mode = match map.get("mode") {
        None | Some(Value::Null) => Mode::Affine,
        Some(Value::String(mode)) => match mode.as_str() {
            "affine" => Mode::Affine,
            "mxfp4" => Mode::MxFp4,
            "mxfp8" => Mode::MxFp8,
            "nvfp4" => Mode::NvFp4,
            _ => return Err(Error::QuantizationMode { name: name.to_owned(), mode: mode.clone() }),
        },
        Some(other) => return Err(wrong("a mode's name", other.to_string())),
    };
    let number = |key, default: u64, want| match map.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(v) => v.as_u64().ok_or_else(|| wrong(want, v.to_string())),
    };
    let (bits, group) = mode.defaults();
    let bits = number("bits", u64::from(bits), "a number of bits")?;
    let group = number("group_size", group as u64, "a group size")?;
    let allowed = match mode {
        Mode::Affine => matches!(bits, 2..=6 | 8) && matches!(group, 32 | 64 | 128),
        _ => (bits, group) == (u64::from(mode.defaults().0), mode.defaults().1 as u64),
    };
    if !allowed {
        let got = format!("{bits} bits and groups of {group}");
        return Err(wrong("bits and group size of the mode", got));
    }
    // Both were just compared with small numbers.
    Ok(Setting { mode, bits: bits as u32, group: group as usize })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn affine(bits: u32, group: usize) -> Setting {
        Setting { mode: Mode::Affine, bits, group }
    }

    #[test]
    fn explicit_settings_win() {
        let q = Quantization::from_config(&json!({"quantization": {
            "group_size": 32, "bits": 4, "mode": "affine",
            "a": {"group_size": 64, "bits": 6}, "b": false, "c": true, "d": {"mode": "mxfp8"},
        }}))
        .unwrap();
        assert_eq!(q.decide("a"), Decision::Listed(affine(6, 64)));
        assert_eq!(q.decide("b"), Decision::Dense);
        assert_eq!(q.decide("c"), Decision::Listed(affine(4, 32)));
        assert_eq!(q.decide("d"), Decision::Listed(Setting { mode: Mode::MxFp8, bits: 8, group: 32 }));
        assert_eq!(q.decide("e"), Decision::Unlisted);
    }

    #[test]
    fn quantization_config_is_read_where_it_is_a_copy() {
        let copy = json!({"quantization_config": {"group_size": 64, "bits": 8, "x": false}});
        assert_eq!(Quantization::from_config(&copy).unwrap().decide("x"), Decision::Dense);
        let aqlm = json!({"quantization_config": {"quant_method": "aqlm", "bits": 4}});
        let e = Quantization::from_config(&aqlm).unwrap_err();
        assert!(matches!(e, Error::QuantizationMethod { method } if method == "aqlm"));
        let both = json!({"quantization": {"bits": 8}, "quantization_config": {"quant_method": "gptq"}});
        assert_eq!(Quantization::from_config(&both).unwrap().default, Some(affine(8, 64)));
    }

    #[test]
    fn shapes_are_ambiguous_without_the_columns() {
        let q = Quantization::from_config(&json!({"quantization": {"group_size": 64, "bits": 4}})).unwrap();
        let parts = |cols| Parts { words: 16, groups: 2, scales: Some(FloatType::F16), cols };
        assert_eq!(q.infer(parts(Some(64))), Some(affine(8, 32)));
        assert_eq!(q.infer(parts(Some(128))), Some(affine(4, 64)));
        assert_eq!(q.infer(parts(Some(256))), Some(affine(2, 128)));
        assert_eq!(q.infer(parts(None)), Some(affine(4, 64)));
        let unknown = Quantization::default();
        assert_eq!(unknown.infer(parts(None)), Some(affine(4, 64)));
        assert_eq!(unknown.infer(Parts { words: 8, ..parts(None) }), Some(affine(4, 32)));
        let bytes = Parts { words: 4, groups: 2, scales: None, cols: None };
        assert_eq!(q.infer(bytes).map(|s| s.mode), Some(Mode::NvFp4));
        assert_eq!(q.infer(Parts { words: 16, ..bytes }).map(|s| s.mode), Some(Mode::MxFp8));
        assert_eq!(q.infer(Parts { words: 7, ..bytes }), None);
    }

    #[test]
    fn bad_settings_are_errors() {
        for (bad, text) in [
            (json!(3), "wanted an object, got 3"),
            (json!({"mode": "fp5"}), "no mode \"fp5\""),
            (json!({"mode": 1}), "wanted a mode's name, got 1"),
            (json!({"bits": 7}), "got 7 bits and groups of 64"),
            (json!({"bits": -4}), "wanted a number of bits, got -4"),
            (json!({"group_size": "64"}), "wanted a group size"),
            (json!({"mode": "nvfp4", "group_size": 32}), "got 4 bits and groups of 32"),
            (json!({"model.x": {"bits": 4294967300u64}}), "model.x"),
        ] {
            let e = Quantization::from_config(&json!({"quantization": bad})).unwrap_err().to_string();
            assert!(e.contains(text), "{e}");
        }
    }
}
