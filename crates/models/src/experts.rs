//! Where checkpoints keep the matrices of experts: one by one, or stacked in several ways. The decoder asks for
//! `mlp.experts.{e}.gate_proj` (of gated ones), `up_proj` and `down_proj`, whatever the layer's module and the router are
//! called.

use rillm_nn::{Lie, MlpKind, MoeSpec, Origin, WeightSource};
use rillm_quant::Format;

use crate::names::{Pairs, layer_of};
use crate::{DecoderSpec, Layout};

/// How a family's checkpoints name a mixture of experts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExpertNames {
    /// Where layers are.
    pub layers: &'static str,
    /// The module that is `mlp` for the decoder; none if what is inside is the layer's.
    pub module: &'static str,
    /// Modules or parameters inside that are called otherwise.
    pub inside: &'static Pairs,
    /// How plain values of `experts.gate_up_proj` lie.
    pub fused: Fused,
}

impl ExpertNames {
    /// What is before the names inside.
    fn prefix(&self) -> String {
        if self.module.is_empty() { String::new() } else { format!("{}.", self.module) }
    }
}

/// How the gates and what they open are fused in one stack of matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fused {
    /// `[experts, 2 * hidden, dim]`, first the gates.
    Halves,
    /// `[experts, dim, 2 * hidden]`, first the gates (llama4).
    TransposedHalves,
    /// `[experts, dim, 2 * hidden]`, taking turns (gpt_oss).
    TransposedTurns,
}

/// The names of the decoder itself.
pub(crate) const PLAIN: ExpertNames =
    ExpertNames { layers: "model.layers", module: "mlp", inside: &[], fused: Fused::Halves };

/// How a checkpoint keeps experts.
#[derive(Clone, Copy, Debug)]
enum Style {
    /// `experts.{e}.`, under these names.
    Each([&'static str; 3]),
    /// In a module, under these names, each a stack (mlx-lm).
    Apart(&'static str, [&'static str; 3]),
    /// Gates and what they open, or the way up alone, in one stack, and `down`.
    Together { up: &'static str, down: &'static str, lie: Lie, step: usize },
}

const PARTS: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

impl Style {
    fn of(source: &dyn WeightSource, names: ExpertNames, kind: MlpKind) -> Self {
        let stored = source.names();
        let ending = |end: String| stored.iter().find(|name| name.ends_with(&end));
        let within = |end: &str| ending(format!(".{}{end}", names.prefix()));
        if kind == MlpKind::Plain {
            let (up, down) = ("experts.up_proj", "experts.down_proj");
            return match (within("switch_mlp.fc1.weight"), within(up)) {
                (Some(_), _) => Self::Apart("switch_mlp", ["", "fc1", "fc2"]),
                (_, Some(_)) => Self::Together { up, down, lie: Lie::Rows, step: 1 },
                _ => Self::Each(PARTS),
            };
        }
        for apart in ["switch_mlp", "experts.switch_glu", "experts"] {
            if within(&format!("{apart}.gate_proj.weight")).is_some() {
                return Self::Apart(apart, PARTS);
            }
        }
        if within("experts.0.w1.weight").is_some() {
            return Self::Each(["w1", "w3", "w2"]);
        }
        if within("input_linear.weight").is_some() {
            let (up, down) = ("input_linear.weight", "output_linear.weight");
            return Self::Together { up, down, lie: Lie::Rows, step: 1 };
        }
        let Some(fused) = within("experts.gate_up_proj") else { return Self::Each(PARTS) };
        // Quantized ones are not transposed.
        let is_plain = matches!(source.get(fused), Ok(Some(raw)) if matches!(raw.format, Format::Float(_)));
        let (up, down) = ("experts.gate_up_proj", "experts.down_proj");
        let lie = if is_plain && names.fused != Fused::Halves { Lie::Columns } else { Lie::Rows };
        Self::Together { up, down, lie, step: if names.fused == Fused::TransposedTurns { 2 } else { 1 } }
    }

    /// `part` of [`PARTS`] of expert `e`, a `weight` or `bias`, of a mixture whose names begin with `prefix`.
    fn origin(self, prefix: &str, [e, part]: [usize; 2], kind: &str, spec: &MoeSpec) -> Origin {
        let index = [e, spec.experts];
        let own = if part == 2 { spec.expert_dim() } else { spec.hidden };
        match self {
            Self::Each(names) => Origin::Tensor(format!("{prefix}experts.{e}.{}.{kind}", names[part])),
            Self::Apart(module, names) => {
                let name = format!("{prefix}{module}.{}.{kind}", names[part]);
                Origin::Stacked { name, index, start: 0, step: 1, of: own, lie: Lie::Rows }
            }
            Self::Together { up, down, lie, step } => {
                let suffix = if kind == "bias" { "_bias" } else { "" };
                let name = |stored: &str| format!("{prefix}{stored}{suffix}");
                let whole =
                    |stored| Origin::Stacked { name: name(stored), index, start: 0, step: 1, of: own, lie };
                match (part, spec.kind) {
                    (2, _) => whole(down),
                    (_, MlpKind::Plain) => whole(up),
                    (_, MlpKind::Gated) => {
                        let start = if step == 1 { part * own } else { part };
                        Origin::Stacked { name: name(up), index, start, step, of: 2 * own, lie }
                    }
                }
            }
        }
    }
}

/// The layout of `spec` in `source`, whose mixtures are called `names`.
pub(crate) fn layout(spec: &DecoderSpec, source: &dyn WeightSource, names: ExpertNames) -> Layout {
    let mixtures: Vec<Option<MoeSpec>> = spec.layers.iter().map(|l| l.moe().copied()).collect();
    let kind = mixtures.iter().flatten().next().map_or(MlpKind::Gated, |moe| moe.kind);
    let style = Style::of(source, names, kind);
    Box::new(move |name| {
        let Some((i, rest)) = layer_of(name).and_then(|(i, rest)| Some((i, rest.strip_prefix("mlp.")?)))
        else {
            return Origin::Tensor(name.to_owned());
        };
        let prefix = format!("{}.{i}.{}", names.layers, names.prefix());
        let moe = mixtures.get(i).and_then(Option::as_ref);
        if let (Some(moe), Some(expert)) = (moe, rest.strip_prefix("experts."))
            && let Some((e, part, kind)) = expert_of(expert)
        {
            return style.origin(&prefix, [e, part], kind, moe);
        }
        let find = |name: &str| names.inside.iter().find(|(from, _)| *from == name).map(|(_, to)| *to);
        if let Some(to) = find(rest) {
            return Origin::Tensor(format!("{prefix}{to}"));
        }
        let (module, kind) = rest.rsplit_once('.').unwrap_or((rest, ""));
        let (first, last) = module.split_once('.').map_or((module, None), |(a, b)| (a, Some(b)));
        let first = find(first).unwrap_or(first);
        let module = last.map_or(first.to_owned(), |last| format!("{first}.{last}"));
        Origin::Tensor(format!("{prefix}{module}.{kind}"))
    })
}

/// `{e}.{part}.{kind}`.
fn expert_of(name: &str) -> Option<(usize, usize, &str)> {
    let (e, rest) = name.split_once('.')?;
    let (part, kind) = rest.split_once('.')?;
    Some((e.parse().ok()?, PARTS.iter().position(|p| *p == part)?, kind))
}
