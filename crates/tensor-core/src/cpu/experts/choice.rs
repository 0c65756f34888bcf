//! The experts of one row. Equal scores: the first.

use smallvec::SmallVec;

use super::Pair;
use crate::{GroupScore, Groups, Routing, Score};

/// Values, one for each expert.
type Values = SmallVec<[f32; 512]>;

/// Chooses `out.len()` experts, the likeliest first.
pub(super) fn choose(logits: &[f32], bias: Option<&[f32]>, how: &Routing, out: &mut [Pair]) {
    if let Score::SparseMixer { jitter } = how.score {
        sparse_mixer(logits, jitter, out);
    } else {
        let scores: Values = match how.score {
            Score::Softmax => softmax(logits),
            Score::Sigmoid => logits.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
            _ => logits.into(),
        };
        let mut choice = scores.clone();
        if let Some(bias) = bias {
            choice.iter_mut().zip(bias).for_each(|(c, b)| *c += b);
        }
        if let Some(groups) = &how.groups {
            keep_best(&mut choice, groups);
        }
        let mut taken: SmallVec<[bool; 512]> = SmallVec::from_elem(false, choice.len());
        for pair in out.iter_mut() {
            let expert = greatest(&choice, &taken);
            taken[expert] = true;
            *pair = Pair { expert: expert as u32, weight: scores[expert] };
        }
        if how.score == Score::Chosen {
            let chosen: Values = out.iter().map(|p| p.weight).collect();
            out.iter_mut().zip(softmax(&chosen)).for_each(|(pair, weight)| pair.weight = weight);
        }
    }
    if let Some(more) = how.normalize {
        let sum = out.iter().map(|p| p.weight).sum::<f32>() + more;
        out.iter_mut().for_each(|p| p.weight /= sum);
    }
    out.iter_mut().for_each(|p| p.weight *= how.scale);
}

/// The greatest value that was not taken.
fn greatest(values: &[f32], taken: &[bool]) -> usize {
    let free = (0..values.len()).filter(|&i| !taken[i]);
    free.reduce(|best, i| if values[i] > values[best] { i } else { best }).unwrap_or(0)
}

fn softmax(logits: &[f32]) -> Values {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut values: Values = logits.iter().map(|x| (x - most).exp()).collect();
    let sum: f32 = values.iter().sum();
    values.iter_mut().for_each(|x| *x /= sum);
    values
}

/// Hides what is in other groups than the best.
fn keep_best(choice: &mut [f32], groups: &Groups) {
    let size = choice.len() / groups.count;
    let score = |group: &[f32]| {
        let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
        for &x in group {
            if x > first {
                (first, second) = (x, first);
            } else if x > second {
                second = x;
            }
        }
        match groups.by {
            GroupScore::TwoGreatest if group.len() > 1 => first + second,
            _ => first,
        }
    };
    let scores: Values = choice.chunks(size).map(score).collect();
    let mut kept: SmallVec<[bool; 512]> = SmallVec::from_elem(false, scores.len());
    for _ in 0..groups.chosen {
        let best = greatest(&scores, &kept);
        kept[best] = true;
    }
    for (group, kept) in choice.chunks_mut(size).zip(kept) {
        if !kept {
            group.fill(f32::NEG_INFINITY);
        }
    }
}

fn sparse_mixer(logits: &[f32], jitter: f32, out: &mut [Pair]) {
    let mut taken: SmallVec<[bool; 512]> = SmallVec::from_elem(false, logits.len());
    for pair in out {
        let expert = greatest(logits, &taken);
        let most = logits[expert];
        // 0 / 0 where all are 0.
        let gap = |x: f32| (most - x) / x.abs().max(most);
        let near = |x: f32| gap(x).is_nan() || gap(x) <= 2.0 * jitter;
        let free = logits.iter().zip(&taken).filter(|(_, taken)| !**taken).map(|(x, _)| *x);
        let sum: f32 = free.filter(|x| near(*x)).map(|x| (x - most).exp()).sum();
        taken[expert] = true;
        *pair = Pair { expert: expert as u32, weight: 1.0 / sum };
    }
}
