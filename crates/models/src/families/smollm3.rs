//! SmolLM3: Llama with every fourth layer without rope, and optionally windows.

use serde_json::Value;

use super::common::{DEFAULTS, Defaults, bias, biases, follow};
use crate::{Config, DecoderFamily, DecoderSpec, Result};

pub(super) const FAMILY: DecoderFamily = DecoderFamily::new(&["smollm3"], spec);

fn spec(c: &Config<'_>) -> Result<DecoderSpec> {
    let mut spec =
        follow(c, &Defaults { theta: 2e6, tied: true, context: 32_768, kv_heads: Some(4), ..DEFAULTS })?;
    biases(&mut spec, bias(c, "attention_bias")?, bias(c, "mlp_bias")?);
    let layers = spec.layers.len();
    let rope = rope_layers(c, layers)?;
    let window = match c.flag("use_sliding_window", false)? {
        true => c.opt_count("sliding_window")?,
        false => None,
    };
    let sliding = c.sliding_layers(layers, |i| window.is_some() && !rope[i])?;
    for ((attn, sliding), rope) in spec.attentions().zip(sliding).zip(rope) {
        attn.params.window = window.filter(|_| sliding);
        attn.rope = attn.rope.take().filter(|_| rope);
    }
    Ok(spec)
}

/// `no_rope_layers`: 1 for layers with rope, 0 for those without.
fn rope_layers(c: &Config<'_>, layers: usize) -> Result<Vec<bool>> {
    let interval = c.count_or("no_rope_layer_interval", 4)?;
    let Some(list) = c.get("no_rope_layers") else {
        return Ok((0..layers).map(|i| (i + 1) % interval != 0).collect());
    };
    let of = |v: &Value| v.as_u64().map(|n| n != 0).or_else(|| v.as_bool());
    let list = list.as_array().and_then(|a| a.iter().map(of).collect::<Option<Vec<_>>>());
    let list = list.filter(|l| l.len() == layers);
    list.ok_or_else(|| c.unsupported("no_rope_layers", &format!("{layers} numbers, 0 or 1")))
}
