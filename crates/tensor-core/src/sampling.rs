//! Drawing tokens: what [`Backend::sample`](crate::Backend::sample) takes, and what it means.

/// How a token is drawn from a row of logits: filters leave some of the most probable ones, and the cumulative
/// distribution of these is inverted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; above 0.
    pub temperature: f32,
    /// Whether the filters see the tempered distribution, and `top_k` comes first. Else they see the model's, and it
    /// comes last.
    pub tempered: bool,
    /// Leaves the tokens that have less than this mass above them; 0 and 1 are off.
    pub top_p: f32,
    /// Leaves tokens at least this times as probable as the best; 0 is off.
    pub min_p: f32,
    /// Leaves this many tokens, the lowest ids of equal ones; 0 and anything from the vocabulary's size on are off.
    pub top_k: usize,
}

impl Sampling {
    /// The definition, slowly: the tokens that are left of `logits`, in the order of ids, each with its mass.
    pub fn masses(&self, logits: &[f32]) -> Vec<(usize, f64)> {
        let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let scale = if self.tempered { f64::from(self.temperature) } else { 1.0 };
        let mass = |x: f32| (f64::from(x - best) / scale).exp();
        let mut ranked: Vec<usize> = (0..logits.len()).collect();
        ranked.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
        let top_k = if self.top_k == 0 { logits.len() } else { self.top_k };
        if self.tempered {
            ranked.truncate(top_k);
        }
        let total: f64 = ranked.iter().map(|i| mass(logits[*i])).sum();
        let nucleus =
            if self.top_p > 0.0 && self.top_p < 1.0 { f64::from(self.top_p) * total } else { f64::INFINITY };
        let (mut above, mut equals) = (0.0, 0.0);
        let mut kept = Vec::new();
        for (rank, &i) in ranked.iter().enumerate() {
            if rank > 0 && logits[i] < logits[ranked[rank - 1]] {
                (above, equals) = (above + equals, 0.0);
            }
            let is_left = rank < top_k && mass(logits[i]) >= f64::from(self.min_p);
            if above < nucleus && is_left {
                kept.push((i, (f64::from(logits[i] - best) / f64::from(self.temperature)).exp()));
            }
            equals += mass(logits[i]);
        }
        kept.sort_by_key(|(i, _)| *i);
        kept
    }
}
