//! Models of random weights in the shapes of real ones, so that speed can be measured without a download.

use std::borrow::Cow;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use rillm_nn::WeightSource;
use rillm_quant::{FloatType, Format, RawTensor};
use serde_json::{Value, json};

use crate::loader::Checkpoint;
use crate::model::Text;

/// The shape of a model, and how its matrices are stored.
#[derive(Clone, Debug, PartialEq)]
pub struct RandomShape {
    config: Value,
    format: Format,
}

impl FromStr for RandomShape {
    type Err = String;

    /// `llama-1b`, `llama-8b`, `smollm2-135m`, `mamba2-1.3b`, `qwen3.5-0.8b`, `olmoe-1b-7b` or `qwen3-30b-a3b`, in bf16.
    fn from_str(name: &str) -> Result<Self, String> {
        if let Some(config) = hybrid(name).or_else(|| sparse(name)) {
            return Ok(Self { config, format: Format::Float(FloatType::BF16) });
        }
        // hidden, layers, heads, kv heads, ffn, vocabulary, tied
        let (d, n, h, kv, ffn, vocab, tied) = match name {
            "llama-1b" => (2048, 16, 32, 8, 8192, 128_256, true),
            "llama-8b" => (4096, 32, 32, 8, 14336, 128_256, false),
            "smollm2-135m" => (576, 30, 9, 3, 1536, 49_152, true),
            _ => {
                return Err(format!(
                    "no shape {name:?}; there are llama-1b, llama-8b, smollm2-135m, mamba2-1.3b, qwen3.5-0.8b, \
                     olmoe-1b-7b, qwen3-30b-a3b"
                ));
            }
        };
        let config = json!({
            "model_type": "llama", "hidden_size": d, "num_hidden_layers": n, "num_attention_heads": h,
            "num_key_value_heads": kv, "intermediate_size": ffn, "vocab_size": vocab,
            "tie_word_embeddings": tied, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0,
            "max_position_embeddings": 131_072,
        });
        Ok(Self { config, format: Format::Float(FloatType::BF16) })
    }
}

/// Models whose layers have states.
fn hybrid(name: &str) -> Option<Value> {
    match name {
        "mamba2-1.3b" => Some(json!({
            "model_type": "mamba2", "hidden_size": 2048, "num_hidden_layers": 48, "num_heads": 64, "head_dim": 64,
            "state_size": 128, "n_groups": 1, "vocab_size": 50_288, "tie_word_embeddings": true,
        })),
        "qwen3.5-0.8b" => Some(json!({
            "model_type": "qwen3_5_text", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 8,
            "num_key_value_heads": 2, "head_dim": 256, "intermediate_size": 3584, "vocab_size": 248_320,
            "linear_num_value_heads": 16, "linear_num_key_heads": 16, "linear_key_head_dim": 128,
            "linear_value_head_dim": 128, "tie_word_embeddings": true, "max_position_embeddings": 262_144,
        })),
        _ => None,
    }
}

/// Models of experts.
fn sparse(name: &str) -> Option<Value> {
    match name {
        "olmoe-1b-7b" => Some(json!({
            "model_type": "olmoe", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 16,
            "num_key_value_heads": 16, "intermediate_size": 1024, "num_experts": 64, "num_experts_per_tok": 8,
            "vocab_size": 50_304, "tie_word_embeddings": false, "max_position_embeddings": 4096,
        })),
        "qwen3-30b-a3b" => Some(json!({
            "model_type": "qwen3_moe", "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32,
            "num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 6144, "moe_intermediate_size": 768,
            "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": true, "vocab_size": 151_936,
            "tie_word_embeddings": false, "max_position_embeddings": 40_960, "rope_theta": 1_000_000.0,
        })),
        _ => None,
    }
}

impl RandomShape {
    /// Stores matrices, embedding and head among them, as `text` says: `BITS:GROUP` (affine, bf16 scales), or
    /// `mxfp4`, `mxfp8`, `nvfp4`, `q4_0`, `q4_1`, `q8_0`.
    ///
    /// # Errors
    /// Another text, or bits or groups that do not exist.
    pub fn quantized(mut self, text: &str) -> Result<Self, String> {
        self.format = match text {
            "mxfp4" => Format::MxFp4,
            "mxfp8" => Format::MxFp8,
            "nvfp4" => Format::NvFp4,
            "q4_0" => Format::Q4_0,
            "q4_1" => Format::Q4_1,
            "q8_0" => Format::Q8_0,
            _ => {
                let pair = text.split_once(':').and_then(|(b, g)| Some((b.parse().ok()?, g.parse().ok()?)));
                let (bits, group) = pair.ok_or_else(|| {
                    format!("{text:?} is neither BITS:GROUP nor mxfp4, mxfp8, nvfp4, q4_0, q4_1, q8_0")
                })?;
                Format::Affine { bits, group, meta: FloatType::BF16 }
            }
        };
        self.format.row_bytes(128).map_err(|e| e.to_string())?;
        Ok(self)
    }

    pub(crate) fn checkpoint(&self) -> Checkpoint {
        let missing = rillm_generate::Error::MissingTokenizer { path: PathBuf::from("random weights") };
        Checkpoint {
            config: self.config.clone(),
            generation_config: None,
            weights: Box::new(RandomWeights { format: self.format }),
            left_out: Vec::new(),
            text: Box::new(|| Text {
                tokenizer: Err(Arc::new(missing)),
                template: Err(Arc::new(no_template())),
            }),
        }
    }
}

fn no_template() -> rillm_generate::Error {
    rillm_generate::Error::MissingTemplate { detail: "random weights".to_owned() }
}

/// Any parameter of any shape: norms of ones, matrices of random codes.
struct RandomWeights {
    format: Format,
}

impl WeightSource for RandomWeights {
    fn get(&self, _: &str) -> rillm_nn::Result<Option<RawTensor<'_>>> {
        Ok(None)
    }

    fn get_shaped(&self, name: &str, want: &[usize]) -> rillm_nn::Result<Option<RawTensor<'_>>> {
        let quant = |source| rillm_nn::Error::Quant { name: name.to_owned(), source };
        let [rows, cols] = want else {
            return RawTensor::from_f32(want.to_vec(), &vec![1.0; want.iter().product()])
                .map(Some)
                .map_err(quant);
        };
        let [codes, scales, biases] = self.format.row_bytes(*cols).map_err(quant)?.map(|n| n * rows);
        let mut seed = name
            .bytes()
            .fold(0x9e37_79b9_7f4a_7c15, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        let mut codes = random_bytes(codes, &mut seed);
        let (scale, bias): (&[u8], &[u8]) = match self.format {
            Format::Float(_) => {
                // Sign and mantissa stay random, the exponent is that of 1/64.
                codes.chunks_exact_mut(2).for_each(|x| x[1] = x[1] & 0x80 | 0x3c);
                (&[], &[])
            }
            // Scale 1/256 and bias -8/256 for 4 bits: values around zero.
            Format::Affine { bits, .. } => match bits {
                8 => (&[0x80, 0x39], &[0x00, 0xbd]),
                _ => (&[0x80, 0x3b], &[0x00, 0xbd]),
            },
            Format::MxFp8 => {
                // Exponents below 1, and no NaN.
                codes.iter_mut().for_each(|x| *x &= 0xbf);
                (&[121], &[])
            }
            Format::MxFp4 => (&[120], &[]),
            Format::NvFp4 => (&[0x08], &[]),
            Format::Q4_0 => (set_heads(&mut codes, 18, &[0x00, 0x1c]), &[]),
            Format::Q4_1 => (set_heads(&mut codes, 20, &[0x00, 0x1c, 0x00, 0xa8]), &[]),
            _ => (set_heads(&mut codes, 34, &[0x00, 0x0c]), &[]),
        };
        let fill = |n: usize, with: &[u8]| Cow::Owned(with.iter().copied().cycle().take(n).collect());
        let parts = [Cow::Owned(codes), fill(scales, scale), fill(biases, bias)];
        RawTensor::new(self.format, want.to_vec(), parts).map(Some).map_err(quant)
    }

    fn names(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Writes `head` at the start of every block of `size` bytes: its scale in f16, and its minimum.
fn set_heads<'a>(blocks: &mut [u8], size: usize, head: &[u8]) -> &'a [u8] {
    blocks.chunks_exact_mut(size).for_each(|b| b[..head.len()].copy_from_slice(head));
    &[]
}

/// Marsaglia's xorshift64.
fn random_bytes(n: usize, seed: &mut u64) -> Vec<u8> {
    let mut out = vec![0; n];
    for word in out.chunks_mut(8) {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        word.copy_from_slice(&seed.to_le_bytes()[..word.len()]);
    }
    out
}
