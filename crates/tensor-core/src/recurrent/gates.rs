//! From the gates that projections give to what a state is multiplied with: a row of small vectors for each token.

use super::{AttentionDims, Rule};

/// A token's operands of a [`Rule`].
#[derive(Clone, Copy, Debug)]
pub(crate) enum RuleRow<'a> {
    Constant { decay: &'a [f32] },
    Ssd { dt: &'a [f32], dt_bias: &'a [f32], a: &'a [f32], limits: [f32; 2] },
    Delta { gate: &'a [f32], dt_bias: &'a [f32], a: &'a [f32], beta: &'a [f32] },
    Wkv7 { decay: &'a [f32] },
}

/// Where in a row of gates things are: for each head its decays, the factor of its values, and, if its rule looks
/// something up in the state, the factor of what was found and the vector that is looked up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gates {
    dims: AttentionDims,
    erases: bool,
    /// Whether the vector that is looked up is made here.
    keyed: bool,
}

impl Gates {
    pub(crate) fn of<T>(rule: &Rule<'_, T>, dims: AttentionDims) -> Self {
        let (delta, wkv) = (matches!(rule, Rule::Delta { .. }), matches!(rule, Rule::Wkv7 { .. }));
        Self { dims, erases: delta || wkv, keyed: delta && dims.decays > 1 }
    }

    /// Values of a row.
    pub(crate) fn width(&self) -> usize {
        self.key_at(self.dims.heads)
    }

    /// Where the decays of a head are.
    pub(crate) fn decay_at(&self, head: usize) -> usize {
        head * self.dims.decays
    }

    /// Where the factor of a head's values is.
    pub(crate) fn scale_at(&self, head: usize) -> usize {
        self.decay_at(self.dims.heads) + head
    }

    /// Where the factor of what was found is; only if something is looked up.
    pub(crate) fn erase_at(&self, head: usize) -> usize {
        self.scale_at(self.dims.heads) + head
    }

    /// Where the vector that is looked up is, if it is neither the key nor an operand.
    pub(crate) fn made_key_at(&self, head: usize) -> Option<usize> {
        self.keyed.then(|| self.key_at(head))
    }

    fn key_at(&self, head: usize) -> usize {
        let erases = if self.erases { self.dims.heads } else { 0 };
        let keys = if self.keyed { self.dims.key_dim } else { 0 };
        self.scale_at(self.dims.heads) + erases + head * keys
    }

    /// Writes the row of a token whose keys are `k`.
    pub(crate) fn fill(&self, rule: RuleRow<'_>, k: &[f32], out: &mut [f32]) {
        let AttentionDims { heads, key_dim, decays, .. } = self.dims;
        let (decay, rest) = out.split_at_mut(heads * decays);
        let (scale, rest) = rest.split_at_mut(heads);
        match rule {
            RuleRow::Constant { decay: constant } => {
                decay.copy_from_slice(constant);
                scale.fill(1.0);
            }
            RuleRow::Ssd { dt, dt_bias, a, limits } => {
                for (h, (scale, decay)) in scale.iter_mut().zip(decay).enumerate() {
                    *scale = softplus(dt[h] + dt_bias[h]).max(limits[0]).min(limits[1]);
                    *decay = (*scale * a[h]).exp();
                }
            }
            RuleRow::Delta { gate, dt_bias, a, beta } => {
                let (erase, keys) = rest.split_at_mut(heads);
                for (h, a) in a.iter().enumerate() {
                    let part = h * decays..(h + 1) * decays;
                    let gates = gate[part.clone()].iter().zip(&dt_bias[part.clone()]);
                    for (decay, (x, bias)) in decay[part].iter_mut().zip(gates) {
                        *decay = (a * softplus(x + bias)).exp();
                    }
                    scale[h] = sigmoid(beta[h]);
                    erase[h] = if self.keyed { -scale[h] } else { -scale[h] * decay[h] };
                    if self.keyed {
                        let k = &k[self.dims.key_head(h) * key_dim..][..key_dim];
                        let made = &mut keys[h * key_dim..][..key_dim];
                        let decay = &decay[h * decays..][..key_dim];
                        made.iter_mut().zip(k).zip(decay).for_each(|((e, k), g)| *e = k * g);
                    }
                }
            }
            RuleRow::Wkv7 { decay: raw } => {
                decay.iter_mut().zip(raw).for_each(|(w, x)| *w = (-WKV7 * sigmoid(*x)).exp());
                scale.fill(1.0);
                rest[..heads].fill(1.0);
            }
        }
    }
}

/// `e^-0.5`: the most that RWKV-7 forgets in a token is `1 - exp(-e^-0.5)`.
const WKV7: f32 = 0.606_530_66;

pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// `ln(1 + e^x)`.
pub(super) fn softplus(x: f32) -> f32 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}
