//! Checkpoints that other libraries quantized: `quantization_config` with a `quant_method`, and their matrices turned
//! into formats of `rillm-quant`, one at a time, when asked for. Activations are never quantized: where a library would
//! do that as well, its scales are left unused.
//!
//! Which matrices are quantized is what the files say: the parts of a quantized matrix have names or types of their
//! own. The lists in the configuration matter where that does not tell (BitNet's float weights).

mod awq;
mod bitnet;
mod compressed_tensors;
mod fp4;
mod fp8;
mod gptq;
mod grouped;
mod modelopt;
mod module;
mod options;

use rillm_quant::RawTensor;
use serde_json::{Map, Value};

use self::awq::Awq;
use self::bitnet::BitNet;
use self::compressed_tensors::CompressedTensors;
use self::fp8::Fp8;
use self::gptq::Gptq;
use self::modelopt::ModelOpt;
pub(super) use self::module::Module;
use self::options::Options;
use super::safetensors::Safetensors;
use crate::{Error, Result};

/// How another library quantized a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Foreign {
    Awq(Awq),
    BitNet(BitNet),
    CompressedTensors(CompressedTensors),
    Fp8(Fp8),
    Gptq(Gptq),
    ModelOpt(ModelOpt),
}

/// Scales of a quantized cache of keys and values, which belong to no matrix.
const CACHE_PARTS: [&str; 3] = ["k_scale", "v_scale", "q_scale"];

impl Foreign {
    /// Reads a `quantization_config` whose `quant_method` is `method`.
    pub(super) fn from_config(method: &str, map: &Map<String, Value>) -> Result<Self> {
        let options = Options::new(method, map);
        Ok(match method {
            "awq" => Self::Awq(Awq::from_config(&options)?),
            "bitnet" => Self::BitNet(BitNet::from_config(&options)?),
            "compressed-tensors" => Self::CompressedTensors(CompressedTensors::from_config(&options)?),
            "fp8" | "fbgemm_fp8" => Self::Fp8(Fp8::from_config(&options)?),
            "gptq" => Self::Gptq(Gptq::from_config(&options)?),
            "modelopt" => Self::ModelOpt(ModelOpt::from_config(&options)?),
            _ => return Err(Error::QuantizationMethod { method: method.to_owned() }),
        })
    }

    /// The matrix `[out, in]` of a module; `None` if it is not quantized.
    pub(super) fn matrix<'a>(&self, module: &Module<'a>) -> Result<Option<RawTensor<'a>>> {
        let packed = self.leaves().0.iter().find(|leaf| **leaf != "weight" && module.has(leaf));
        if let (Some(packed), true) = (packed, module.has("weight")) {
            let (name, want) = (module.name("weight"), format!("either this or {packed}"));
            return Err(Error::WeightValue { name, want, got: "both".to_owned() });
        }
        match self {
            Self::Awq(awq) => awq.matrix(module),
            Self::BitNet(bitnet) => bitnet.matrix(module),
            Self::CompressedTensors(compressed) => compressed.matrix(module),
            Self::Fp8(fp8) => fp8.matrix(module),
            Self::Gptq(gptq) => gptq.matrix(module),
            Self::ModelOpt(modelopt) => modelopt.matrix(module),
        }
    }

    /// Names of the codes of a matrix within its module, and of what may lie beside them.
    const fn leaves(&self) -> (&'static [&'static str], &'static [&'static str]) {
        match self {
            Self::Awq(_) => (&["qweight"], awq::PARTS),
            Self::Gptq(_) => (&["qweight"], gptq::PARTS),
            Self::BitNet(_) => (&["weight"], bitnet::PARTS),
            Self::CompressedTensors(_) => (&["weight_packed", "weight"], compressed_tensors::PARTS),
            Self::Fp8(_) => (&["weight"], fp8::PARTS),
            Self::ModelOpt(_) => (&["weight"], modelopt::PARTS),
        }
    }

    /// Every part of a module's matrix that may be stored.
    pub(super) fn all_leaves(&self) -> impl Iterator<Item = &'static str> {
        let (codes, parts) = self.leaves();
        codes.iter().chain(parts).copied()
    }

    /// The parameter that the stored tensor `name` is or carries the codes of; `None` for parts that lie beside codes,
    /// and for biases of zeros, which GPTQ stores for modules that have none.
    pub(super) fn parameter(&self, files: &Safetensors, name: &str) -> Option<String> {
        let Some((path, leaf)) = name.rsplit_once('.') else { return Some(name.to_owned()) };
        let (codes, parts) = self.leaves();
        let module = Module::new(files, path);
        let quantized = codes.iter().any(|codes| module.has(codes));
        let hidden = CACHE_PARTS.contains(&leaf)
            || quantized && parts.contains(&leaf)
            || leaf == "bias" && codes == ["qweight"] && quantized && module.is_zero(leaf);
        match leaf {
            _ if hidden => None,
            "qweight" | "weight_packed" if codes.contains(&leaf) => Some(module.name("weight")),
            _ => Some(name.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests;
