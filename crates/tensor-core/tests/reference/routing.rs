//! What the ways of choosing experts mean, in `f64`. Not tests.

use rillm_tensor_core::{GroupScore, Routing, Score};

/// The experts of a row with their weights.
pub fn choose(logits: &[f32], bias: Option<&[f32]>, how: &Routing) -> Vec<(usize, f64)> {
    let logits: Vec<f64> = logits.iter().map(|x| f64::from(*x)).collect();
    let mut chosen = match how.score {
        Score::SparseMixer { jitter } => sparse_mixer(&logits, f64::from(jitter), how.top_k),
        _ => {
            let scores = match how.score {
                Score::Softmax => softmax(&logits),
                Score::Sigmoid => logits.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
                _ => logits,
            };
            let choice: Vec<f64> =
                (0..scores.len()).map(|e| scores[e] + bias.map_or(0.0, |b| f64::from(b[e]))).collect();
            let mut order: Vec<usize> = (0..scores.len()).filter(|e| stays(&choice, *e, how)).collect();
            order.sort_by(|a, b| choice[*b].total_cmp(&choice[*a]));
            order.truncate(how.top_k);
            let mut weights: Vec<f64> = order.iter().map(|e| scores[*e]).collect();
            if how.score == Score::Chosen {
                weights = softmax(&weights);
            }
            order.into_iter().zip(weights).collect()
        }
    };
    let sum: f64 = chosen.iter().map(|(_, w)| w).sum();
    for (_, weight) in &mut chosen {
        if let Some(more) = how.normalize {
            *weight /= sum + f64::from(more);
        }
        *weight *= f64::from(how.scale);
    }
    chosen
}

fn softmax(x: &[f64]) -> Vec<f64> {
    let sum: f64 = x.iter().map(|x| x.exp()).sum();
    x.iter().map(|x| x.exp() / sum).collect()
}

/// Whether the group of `expert` is among the best.
fn stays(choice: &[f64], expert: usize, how: &Routing) -> bool {
    let Some(groups) = how.groups else { return true };
    let size = choice.len() / groups.count;
    let score = |g: usize| {
        let mut group = choice[g * size..][..size].to_vec();
        group.sort_by(|a, b| b.total_cmp(a));
        match groups.by {
            GroupScore::Greatest => group[0],
            GroupScore::TwoGreatest => group[0] + group[1],
        }
    };
    let own = score(expert / size);
    (0..groups.count).filter(|g| score(*g) > own).count() < groups.chosen
}

fn sparse_mixer(logits: &[f64], jitter: f64, top_k: usize) -> Vec<(usize, f64)> {
    let mut left: Vec<usize> = (0..logits.len()).collect();
    let mut chosen = Vec::new();
    for _ in 0..top_k {
        let best = left.iter().copied().max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
        let m = logits[best];
        let near = left.iter().filter(|e| (m - logits[**e]) / logits[**e].abs().max(m) <= 2.0 * jitter);
        let sum: f64 = near.map(|e| logits[*e].exp()).sum();
        chosen.push((best, m.exp() / sum));
        left.retain(|e| *e != best);
    }
    chosen
}
