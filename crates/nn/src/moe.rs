//! Mixtures of experts (Shazeer et al. 2017): a router, feed-forward layers of which each row uses a few, and optionally
//! one that all use.

use rillm_kvcache::SequenceCache;
use rillm_tensor_core::{Activation, Backend, Experts, Input, Routing, Score, Weigh};

use crate::linear::Bias;
use crate::{Linear, Mixer, Mlp, MlpKind, MlpSpec, Pass, Result, Weights};

/// Geometry of a mixture of experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MoeSpec {
    /// Width of the model.
    pub dim: usize,
    /// Experts to choose from.
    pub experts: usize,
    /// How experts, and what all rows use besides, are wired.
    pub kind: MlpKind,
    /// Width inside an expert.
    pub hidden: usize,
    /// Width that experts read and give, if not the model's.
    pub latent: Option<LatentSpec>,
    /// Nonlinearity inside experts.
    pub act: Activation,
    /// How rows choose.
    pub routing: Routing,
    /// Whether the router has a bias.
    pub router_bias: Bias,
    /// What the router reads.
    pub router_input: RouterInput,
    /// Factors on the weights.
    pub factors: ExpertFactors,
    /// Whether there is a bias on scores that counts in the choice only: `gate.e_score_correction_bias`.
    pub correction: Bias,
    /// Whether the experts' projections have biases.
    pub expert_bias: Bias,
    /// What all rows use besides.
    pub shared: Option<SharedSpec>,
}

/// What the router reads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RouterInput {
    /// What the experts read.
    Same,
    /// An RMSNorm of its own, with the factors `gate.scale` divided by the root of the width, of what the norm before the
    /// experts reads (gemma4).
    Normed {
        /// Added to the mean square.
        eps: f32,
    },
}

/// Factors on the weights of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertFactors {
    /// 1.
    None,
    /// One for each expert, `gate.per_expert_scale`, after any normalising (gemma4).
    Each,
}

/// Projections to a width of the experts' own, `fc1_latent_proj`, and back, `fc2_latent_proj` (nemotron_h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentSpec {
    /// The width.
    pub dim: usize,
    /// Whether the projections have biases.
    pub bias: Bias,
}

/// Geometry of what all rows use besides their experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedSpec {
    /// Width inside.
    pub hidden: usize,
    /// Whether the projections have biases.
    pub bias: Bias,
    /// Factor on the result.
    pub gate: SharedGate,
}

/// Factor on what the shared expert gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedGate {
    /// 1.
    Open,
    /// The sigmoid of a projection to one value, `shared_expert_gate` (qwen2_moe).
    Sigmoid,
}

impl MoeSpec {
    /// Gated experts of width `hidden`, `top_k` of `experts` for each row by the softmax of the router, without biases.
    pub fn new([dim, hidden]: [usize; 2], act: Activation, [experts, top_k]: [usize; 2]) -> Self {
        let routing = Routing {
            top_k,
            score: Score::Softmax,
            groups: None,
            normalize: None,
            scale: 1.0,
            weigh: Weigh::Results,
        };
        let [router_bias, correction, expert_bias] = [Bias::None; 3];
        Self {
            dim,
            experts,
            kind: MlpKind::Gated,
            hidden,
            latent: None,
            act,
            routing,
            router_bias,
            router_input: RouterInput::Same,
            factors: ExpertFactors::None,
            correction,
            expert_bias,
            shared: None,
        }
    }

    /// Width that experts read and give.
    pub fn expert_dim(&self) -> usize {
        self.latent.map_or(self.dim, |latent| latent.dim)
    }
}

/// Products of all experts with the same rows.
#[derive(Debug)]
struct ExpertLinear<B: Backend> {
    weight: B::Weight,
    bias: Option<B::Weight>,
}

impl<B: Experts> ExpertLinear<B> {
    /// Loads `experts.{e}.{name}.weight: [out, in]` of each `(name, out)` in `parts`, and the biases.
    fn load(w: &Weights<'_, B>, spec: &MoeSpec, parts: &[(&str, usize)], inp: usize) -> Result<Self> {
        let (mut weights, mut biases) = (Vec::new(), Vec::new());
        for e in 0..spec.experts {
            let w = w.at("experts").at(e);
            let raw = parts.iter().map(|(name, out)| w.at(name).raw("weight", &[*out, inp]));
            weights.push(w.prepare(&raw.collect::<Result<Vec<_>>>()?)?);
            if spec.expert_bias == Bias::Added {
                let mut values = Vec::new();
                for (name, out) in parts {
                    values.extend(w.at(name).values("bias", &[*out])?);
                }
                biases.push(w.vector("bias", &values)?);
            }
        }
        let be = w.backend();
        let bias = if biases.is_empty() { None } else { Some(be.stack(biases)?) };
        Ok(Self { weight: be.stack(weights)?, bias })
    }

    fn forward(&self, be: &B, x: Input<'_, B>, routes: &B::Routes) -> Result<B::Tensor> {
        Ok(be.linear_experts(x, &self.weight, self.bias.as_ref(), routes)?)
    }

    fn bytes(&self, be: &B) -> usize {
        be.weight_bytes(&self.weight) + self.bias.as_ref().map_or(0, |b| be.weight_bytes(b))
    }
}

/// A mixture of experts.
#[derive(Debug)]
pub struct Moe<B: Backend> {
    router: Linear<B>,
    /// Of the router's norm.
    router_scale: Option<B::Weight>,
    correction: Option<B::Weight>,
    factors: Option<B::Weight>,
    /// Gates and what they open, or the way up alone.
    up: ExpertLinear<B>,
    down: ExpertLinear<B>,
    latent: Option<[Linear<B>; 2]>,
    shared: Option<Shared<B>>,
    spec: MoeSpec,
}

#[derive(Debug)]
struct Shared<B: Backend> {
    mlp: Mlp<B>,
    gate: Option<Linear<B>>,
}

impl<B: Experts> Moe<B> {
    /// Loads the router `gate` and what belongs to it, `experts.{e}.gate_proj` (if gated), `up_proj` and `down_proj`, and if
    /// asked for `fc1_latent_proj` and `fc2_latent_proj`, `shared_experts` and `shared_expert_gate`.
    ///
    /// # Errors
    /// Missing or misshapen parameters, or the backend's refusal.
    pub fn load(w: &Weights<'_, B>, spec: MoeSpec) -> Result<Self> {
        let (dim, expert_dim, hidden) = (spec.dim, spec.expert_dim(), spec.hidden);
        let gate = w.at("gate");
        let up = match spec.kind {
            MlpKind::Gated => &[("gate_proj", hidden), ("up_proj", hidden)][..],
            MlpKind::Plain => &[("up_proj", hidden)],
        };
        let latent = |LatentSpec { dim: inner, bias }| {
            let there = Linear::load(w, &[("fc1_latent_proj", inner)], dim, bias)?;
            Ok::<_, crate::Error>([there, Linear::load(w, &[("fc2_latent_proj", dim)], inner, bias)?])
        };
        Ok(Self {
            up: ExpertLinear::load(w, &spec, up, expert_dim)?,
            down: ExpertLinear::load(w, &spec, &[("down_proj", expert_dim)], hidden)?,
            latent: spec.latent.map(latent).transpose()?,
            router: Linear::load(w, &[("gate", spec.experts)], dim, spec.router_bias)?,
            router_scale: match spec.router_input {
                RouterInput::Normed { .. } => {
                    let values = gate.values("scale", &[dim])?;
                    let root = (dim as f32).sqrt();
                    Some(gate.vector("scale", &values.iter().map(|x| x / root).collect::<Vec<_>>())?)
                }
                RouterInput::Same => None,
            },
            factors: match spec.factors {
                ExpertFactors::Each => Some(gate.weight("per_expert_scale", &[spec.experts])?),
                ExpertFactors::None => None,
            },
            correction: match spec.correction {
                Bias::Added => Some({
                    let values = gate.opt_values("e_score_correction_bias", spec.experts)?;
                    let name = gate.name("e_score_correction_bias");
                    let values = values.ok_or(crate::Error::MissingWeight { name })?;
                    gate.vector("e_score_correction_bias", &values)?
                }),
                Bias::None => None,
            },
            shared: spec.shared.map(|shared| Shared::load(w, &spec, shared)).transpose()?,
            spec,
        })
    }
}

impl<B: Experts> Shared<B> {
    fn load(w: &Weights<'_, B>, spec: &MoeSpec, shared: SharedSpec) -> Result<Self> {
        let (hidden, bias) = (shared.hidden, shared.bias);
        let (kind, dim, act) = (spec.kind, spec.dim, spec.act);
        let mlp = MlpSpec { kind, bias, ..MlpSpec::new([dim, hidden], act) };
        Ok(Self {
            mlp: Mlp::load(&w.at("shared_experts"), mlp)?,
            gate: match shared.gate {
                SharedGate::Open => None,
                SharedGate::Sigmoid => Some(w.linear("shared_expert_gate", 1, spec.dim)?),
            },
        })
    }

    /// `x: [t, dim]` -> `[t, dim]`.
    fn forward(&self, be: &B, x: &B::Tensor, pass: &Pass<'_, B>) -> Result<B::Tensor> {
        let y = self.mlp.output(be, self.mlp.mix(be, Input::Rows(x), pass, &mut [])?, None)?;
        let Some(gate) = &self.gate else { return Ok(y) };
        // An only expert, weighed by the sigmoid of its logit.
        let only = Routing {
            top_k: 1,
            score: Score::Sigmoid,
            groups: None,
            normalize: None,
            scale: 1.0,
            weigh: Weigh::Results,
        };
        let routes = be.route(&gate.forward(be, Input::Rows(x), None)?, None, None, &only)?;
        let pairs = be.spread(&y, &routes)?;
        Ok(be.combine(pairs, &routes, None)?)
    }
}

impl<B: Experts> Mixer<B> for Moe<B> {
    fn mix(
        &self,
        be: &B,
        x: Input<'_, B>,
        pass: &Pass<'_, B>,
        _: &mut [SequenceCache<B>],
    ) -> Result<B::Tensor> {
        // Several read it: the norm is computed once.
        let (before, x) = (x.source(), x.rows(be)?);
        let read = match (self.spec.router_input, &self.router_scale) {
            (RouterInput::Normed { eps }, Some(w)) => Input::RmsNorm { x: before, w, eps },
            _ => Input::Rows(&x),
        };
        let logits = self.router.forward(be, read, None)?;
        let (correction, factors) = (self.correction.as_ref(), self.factors.as_ref());
        let routes = be.route(&logits, correction, factors, &self.spec.routing)?;
        let pairs = match &self.latent {
            Some([there, _]) => be.spread(&there.forward(be, Input::Rows(&x), None)?, &routes)?,
            None => be.spread(&x, &routes)?,
        };
        let (act, h) = (self.spec.act, self.up.forward(be, Input::Rows(&pairs), &routes)?);
        let y = match self.spec.kind {
            MlpKind::Gated => self.down.forward(be, Input::Gated { act, gate_up: &h }, &routes)?,
            MlpKind::Plain => self.down.forward(be, Input::Rows(&be.activate(act, h)?), &routes)?,
        };
        let shared = self.shared.as_ref().map(|s| s.forward(be, &x, pass)).transpose()?;
        match &self.latent {
            Some([_, back]) => back.forward(be, Input::Rows(&be.combine(y, &routes, None)?), shared),
            None => Ok(be.combine(y, &routes, shared)?),
        }
    }

    fn output(&self, be: &B, h: B::Tensor, residual: Option<B::Tensor>) -> Result<B::Tensor> {
        match residual {
            Some(x) => Ok(be.add(x, &h)?),
            None => Ok(h),
        }
    }

    /// Of the experts only as many as a row chooses.
    fn bytes(&self, be: &B) -> usize {
        let experts = (self.up.bytes(be) + self.down.bytes(be)) / self.spec.experts;
        let latent: usize = self.latent.iter().flatten().map(|linear| linear.bytes(be)).sum();
        let shared = self.shared.as_ref();
        let gate = shared.and_then(|s| s.gate.as_ref()).map_or(0, |g| g.bytes(be));
        let shared = shared.map_or(0, |s| Mixer::bytes(&s.mlp, be)) + gate;
        self.router.bytes(be) + experts * self.spec.routing.top_k + latent + shared
    }
}
