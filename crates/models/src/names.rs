//! Where families' checkpoints keep the parameters that the decoder asks for under Llama's names.

use rillm_nn::{Origin, WeightSource};

use crate::DecoderSpec;

/// From the decoder's names to where they are stored.
pub type Layout = Box<dyn Fn(&str) -> Origin + Send + Sync>;

/// Stored under the decoder's own names: Llama and all that follow it.
pub(crate) fn plain(_: &DecoderSpec, _: &dyn WeightSource) -> Layout {
    Box::new(|name| Origin::Tensor(name.to_owned()))
}

/// `layout` where the table of embeddings is the head, too, unless a head is stored, which may have a bias of its own.
pub(crate) fn with_head(source: &dyn WeightSource, layout: Layout) -> Layout {
    let stored = |name: &str| matches!(source.get(name), Ok(Some(_)));
    if matches!(layout(HEAD), Origin::Tensor(name) if stored(&name)) {
        return layout;
    }
    Box::new(move |name| layout(if name == HEAD { "model.embed_tokens.weight" } else { name }))
}

const HEAD: &str = "lm_head.weight";

/// `model.layers.{i}.{rest}` as `(i, rest)`.
pub(crate) fn layer_of(name: &str) -> Option<(usize, &str)> {
    let (i, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    Some((i.parse().ok()?, rest))
}

/// `name` with its module renamed: by `top` outside of layers, by `layer` within one, which is under `prefix`.
pub(crate) fn renamed(name: &str, prefix: &str, top: &Pairs, layer: &Pairs) -> String {
    let (module, kind) = name.rsplit_once('.').unwrap_or((name, ""));
    let find = |pairs: &Pairs, module| pairs.iter().find(|(from, _)| *from == module).map(|(_, to)| *to);
    match layer_of(module) {
        Some((i, module)) => format!("{prefix}{i}.{}.{kind}", find(layer, module).unwrap_or(module)),
        None => format!("{}.{kind}", find(top, module).unwrap_or(module)),
    }
}

/// Modules: the decoder's name and the stored one.
pub(crate) type Pairs = [(&'static str, &'static str)];

/// The rows of part `part` of matrices of `widths` rows stacked in order.
pub(crate) fn stacked(widths: &[usize], part: usize) -> (std::ops::Range<usize>, usize) {
    let start: usize = widths[..part].iter().sum();
    (start..start + widths[part], widths.iter().sum())
}

/// Parameters that files may hold and no decoder needs.
pub(crate) fn ignored(spec: &DecoderSpec, name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq")
        || (spec.head.tied && matches!(name, "lm_head.weight" | "lm_head.scales" | "lm_head.biases"))
        || name.starts_with("rope_f") && name.ends_with(".weight")
        || ahead(spec, name)
}

/// Whether it is of a layer past the last of a GGUF file's decoder, which predicts further tokens.
fn ahead(spec: &DecoderSpec, name: &str) -> bool {
    let layer = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')?.0.parse::<usize>().ok());
    layer.is_some_and(|i| i >= spec.layers.len())
}
