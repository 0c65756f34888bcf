//! Falcon-H1's factors, and which of them are left to apply where mlx-lm multiplied the others into the weights.

use crate::{Config, Result};

/// What a model multiplies by.
pub(super) struct Factors {
    pub embed: f32,
    pub head: f32,
    /// Of attention's scores: what it reads is multiplied, so queries and keys are, and keys once more.
    pub scores: f32,
    /// Of attention's result, which is linear in what it reads.
    pub attention: f32,
    pub gate: f32,
    pub down: f32,
    /// Of what the state space's `in_proj` gives, part by part.
    pub ssm: [f32; 5],
    pub ssm_out: f32,
}

impl Factors {
    /// Those of the configuration.
    pub fn stated(c: &Config<'_>) -> Result<Self> {
        let factor = |key| Ok::<_, crate::Error>(c.number_or(key, 1.0)? as f32);
        let (attn_in, ssm_in) = (factor("attention_in_multiplier")?, factor("ssm_in_multiplier")?);
        for (key, bias) in
            [("attention_in_multiplier", "attention_bias"), ("ssm_in_multiplier", "mamba_proj_bias")]
        {
            if c.flag(bias, false)? && factor(key)? != 1.0 {
                return Err(c.unsupported(key, "1 where there are biases"));
            }
        }
        let [gate, down] = several(c, "mlp_multipliers", "two numbers")?;
        Ok(Self {
            embed: factor("embedding_multiplier")?,
            head: factor("lm_head_multiplier")?,
            scores: attn_in * attn_in * factor("key_multiplier")?,
            attention: attn_in * factor("attention_out_multiplier")?,
            gate,
            down,
            ssm: several(c, "ssm_multipliers", "five numbers")?.map(|x| x * ssm_in),
            ssm_out: factor("ssm_out_multiplier")?,
        })
    }

    /// Those that are not in the weights that mlx-lm writes: of keys, and of what values read. A table that is the head as
    /// well holds the embedding's. Biases are not multiplied.
    pub fn left_by_mlx_lm(self, c: &Config<'_>) -> Result<Self> {
        for key in ["attention_bias", "mlp_bias", "mamba_proj_bias", "projectors_bias"] {
            if c.flag(key, false)? {
                return Err(c.unsupported(key, "false where mlx-lm multiplied factors into the weights"));
            }
        }
        let tied = c.flag("tie_word_embeddings", false)?;
        Ok(Self {
            embed: 1.0,
            head: if tied { self.head / self.embed } else { 1.0 },
            scores: c.number_or("key_multiplier", 1.0)? as f32,
            attention: c.number_or("attention_in_multiplier", 1.0)? as f32,
            gate: 1.0,
            down: 1.0,
            ssm: [1.0; 5],
            ssm_out: 1.0,
        })
    }
}

fn several<const N: usize>(c: &Config<'_>, key: &str, want: &str) -> Result<[f32; N]> {
    match c.opt_numbers(key)?.map(<[f64; N]>::try_from) {
        None => Ok([1.0; N]),
        Some(Ok(factors)) => Ok(factors.map(|x| x as f32)),
        Some(Err(_)) => Err(c.unsupported(key, want)),
    }
}
