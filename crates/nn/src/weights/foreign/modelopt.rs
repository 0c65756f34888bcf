//! NVIDIA ModelOpt: `NVFP4` (`weight [out, in / 2]`, `weight_scale`, and `weight_scale_2`, which multiplies) and `FP8`
//! (`weight`, `weight_scale`).

use rillm_quant::RawTensor;

use super::super::safetensors::Dtype;
use super::module::Module;
use super::options::Options;
use super::{fp4, fp8};
use crate::Result;

/// What may lie beside `weight`.
pub(super) const PARTS: &[&str] = &["weight_scale", "weight_scale_2", "input_scale", "output_scale"];

#[derive(Clone, Debug, PartialEq)]
pub(in crate::weights) struct ModelOpt;

impl ModelOpt {
    pub(super) fn from_config(options: &Options<'_>) -> Result<Self> {
        let inner = options.object("quantization")?;
        let options = inner.as_ref().unwrap_or(options);
        options.one_of("quant_algo", "", &["NVFP4", "FP8"], "NVFP4 or FP8")?;
        if options.get("quant_algo").is_none() {
            return Err(options.wrong("quant_algo", "NVFP4 or FP8"));
        }
        Ok(Self)
    }

    pub(super) fn matrix<'a>(&self, module: &Module<'a>) -> Result<Option<RawTensor<'a>>> {
        let Some(weight) = module.get("weight") else { return Ok(None) };
        match weight.dtype() {
            Dtype::U8 => {
                let factor = module.need("weight_scale_2")?.scalar()?;
                fp4::nvfp4(&weight, module.need("weight_scale")?, factor).map(Some)
            }
            Dtype::E4M3 => fp8::matrix(&weight, &module.need("weight_scale")?, None).map(Some),
            _ => Ok(None),
        }
    }
}
