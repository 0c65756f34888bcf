//! The tokens that a chain of filters has kept so far. Which to keep is the sampler's.

use crate::vocabulary::{descending, exp, list_from, reached_by, sum_of};

/// The logits of a vocabulary and what the filters see of one, which does not decrease with it.
pub(crate) struct Scores<'a, V> {
    pub(crate) logits: &'a [f32],
    pub(crate) value: V,
}

/// The tokens that the filters have kept so far. Buffers are kept from step to step.
#[derive(Debug, Clone, Default)]
pub(crate) struct Candidates {
    /// Whether `list` holds them. Before the first filter they are the vocabulary.
    pub(crate) listed: bool,
    /// Ids and values, in the order of the ids; none is `-inf`.
    pub(crate) list: Vec<(u32, f32)>,
    /// The peak of each block of logits.
    pub(crate) peaks: Vec<f32>,
    /// Values that are selected from.
    selected: Vec<f32>,
}

impl Candidates {
    /// Lists the candidates whose value is at least `floor`, if nothing was listed yet: some filters can tell early
    /// what they will not keep.
    pub(crate) fn list(&mut self, floor: f32, all: &Scores<'_, impl Fn(f32) -> f32>) {
        if !self.listed {
            self.list.clear();
            list_from(floor, all.logits, &self.peaks, &all.value, &mut self.list);
            self.listed = true;
        }
    }

    /// A value that the best `count` of the vocabulary reach.
    pub(crate) fn floor_of_best(&mut self, count: usize, all: &Scores<'_, impl Fn(f32) -> f32>) -> f32 {
        (all.value)(reached_by(count, &self.peaks, &mut self.selected))
    }

    /// The sum of `e` to the values.
    pub(crate) fn mass(&self, all: &Scores<'_, impl Fn(f32) -> f32>) -> f64 {
        if self.listed {
            self.list.iter().map(|c| f64::from(exp(c.1))).sum()
        } else {
            sum_of(all.logits, |x| exp((all.value)(x)))
        }
    }

    /// Keeps the `k` most probable tokens, the lowest ids of equal ones.
    pub(crate) fn keep_best(&mut self, k: usize, all: &Scores<'_, impl Fn(f32) -> f32>) {
        if k == 0 || k >= all.logits.len() {
            return;
        }
        if !self.listed {
            let floor = self.floor_of_best(k, all);
            self.list(floor, all);
        }
        if k >= self.list.len() {
            return;
        }
        self.selected.clear();
        self.selected.extend(self.list.iter().map(|c| c.1));
        let (above, &mut cut, _) = self.selected.select_nth_unstable_by(k - 1, descending);
        let mut ties = k - above.iter().filter(|x| **x > cut).count();
        self.list.retain(|(_, x)| {
            let tie = *x == cut && ties > 0;
            ties -= usize::from(tie);
            *x > cut || tie
        });
    }

    /// Keeps the listed values from the lowest of the best that reach the mass `limit`.
    pub(crate) fn keep_nucleus(&mut self, limit: f64) {
        self.selected.clear();
        self.selected.extend(self.list.iter().map(|c| c.1));
        let (mut rest, mut mass) = (&mut self.selected[..], 0.0);
        // The lowest is in the better half of the rest, or that half is in the nucleus.
        while rest.len() > 1 {
            let half = rest.len() / 2;
            rest.select_nth_unstable_by(half, descending);
            let better = sum_of(&rest[..half], exp);
            if mass + better >= limit {
                rest = &mut rest[..half];
            } else {
                mass += better;
                rest = &mut rest[half..];
            }
        }
        let cut = rest.first().copied().unwrap_or(f32::NEG_INFINITY);
        self.list.retain(|c| c.1 >= cut);
    }
}
