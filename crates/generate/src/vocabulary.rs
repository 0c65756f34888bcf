//! Passes over the logits of a vocabulary, in blocks. What is done with what they find is the sampler's.
//!
//! One pass finds the best token and the peak of each block. With the peaks, what looks for some of the best tokens
//! passes over the blocks that have none of them.

use crate::{Error, Result};
use std::cmp::Ordering;

/// Lanes of maxima and sums, so that they compile to vector instructions.
const LANES: usize = 16;
/// Logits of a block.
const BLOCK: usize = 8 * LANES;

/// The token with the highest logit and that logit; the lowest id wins ties.
///
/// # Errors
/// [`Error::NanLogits`] if a logit is NaN or +inf, [`Error::NoCandidates`] if there is none above `-inf`.
pub fn argmax(logits: &[f32]) -> Result<(u32, f32)> {
    argmax_of_blocks(logits, |_| ())
}

/// [`argmax`], and the peak of each block in `peaks`.
pub(crate) fn argmax_and_peaks(logits: &[f32], peaks: &mut Vec<f32>) -> Result<(u32, f32)> {
    peaks.clear();
    argmax_of_blocks(logits, |peak| peaks.push(peak))
}

#[inline(always)]
fn argmax_of_blocks(logits: &[f32], mut each: impl FnMut(f32)) -> Result<(u32, f32)> {
    let (mut max, mut at, mut has_nan) = (f32::NEG_INFINITY, 0, false);
    for (i, block) in logits.chunks(BLOCK).enumerate() {
        let (peak, nan) = peak(block);
        each(peak);
        has_nan |= nan;
        if peak > max {
            (max, at) = (peak, i * BLOCK);
        }
    }
    if has_nan || max == f32::INFINITY {
        let index = logits.iter().position(|&x| is_tainted(x)).unwrap_or(0);
        return Err(Error::NanLogits { index });
    }
    match logits[at..].iter().position(|&x| x == max) {
        Some(i) if max > f32::NEG_INFINITY => Ok(((at + i) as u32, max)),
        _ => Err(Error::NoCandidates { vocab: logits.len() }),
    }
}

/// The highest number of `block`, and whether something in it is none.
#[inline(always)]
fn peak(block: &[f32]) -> (f32, bool) {
    let mut best = [f32::NEG_INFINITY; LANES];
    let mut nan = [0u32; LANES];
    let (rows, rest) = block.as_chunks::<LANES>();
    for row in rows {
        for lane in 0..LANES {
            let x = row[lane];
            best[lane] = if x > best[lane] { x } else { best[lane] };
            nan[lane] |= if x.is_nan() { u32::MAX } else { 0 };
        }
    }
    for (lane, &x) in rest.iter().enumerate() {
        best[lane] = best[lane].max(x);
        nan[lane] |= u32::from(x.is_nan());
    }
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            let (a, b) = (best[lane], best[lane + half]);
            best[lane] = if a > b { a } else { b };
            nan[lane] |= nan[lane + half];
        }
    }
    (best[0], nan[0] != 0)
}

/// No number that a distribution could be made of.
pub(crate) fn is_tainted(x: f32) -> bool {
    x.is_nan() || x == f32::INFINITY
}

/// Highest first. For numbers that [`argmax`] has let pass: there is no NaN among them.
pub(crate) fn descending(a: &f32, b: &f32) -> Ordering {
    b.partial_cmp(a).unwrap_or(Ordering::Equal)
}

/// A number that at least `count` logits reach, close to the `count`-th highest of them: the `count`-th highest peak, or
/// `-inf` if there are fewer peaks. `buffer` is overwritten.
pub(crate) fn reached_by(count: usize, peaks: &[f32], buffer: &mut Vec<f32>) -> f32 {
    if count == 0 || count > peaks.len() {
        return f32::NEG_INFINITY;
    }
    buffer.clear();
    buffer.extend_from_slice(peaks);
    *buffer.select_nth_unstable_by(count - 1, descending).1
}

/// Appends id and `value` of the logits whose value is at least `floor` and above `-inf` to `list`, in order. `value`
/// does not decrease; `peaks` are those of [`argmax_and_peaks`].
#[inline(always)]
pub(crate) fn list_from(
    floor: f32,
    logits: &[f32],
    peaks: &[f32],
    value: impl Fn(f32) -> f32,
    list: &mut Vec<(u32, f32)>,
) {
    let floor = floor.max(f32::MIN);
    for ((i, block), &peak) in logits.chunks(BLOCK).enumerate().zip(peaks) {
        if value(peak) < floor {
            continue;
        }
        for (j, row) in block.chunks(LANES).enumerate() {
            let any = row.iter().fold(0, |any, &x| any | u32::from(value(x) >= floor));
            if any == 0 {
                continue;
            }
            // Without branches, which where many are found would be guessed wrong half the time.
            let (mut found, mut n) = ([(0, 0.0); LANES], 0);
            for (lane, &x) in row.iter().enumerate() {
                let value = value(x);
                found[n] = ((i * BLOCK + j * LANES + lane) as u32, value);
                n += usize::from(value >= floor);
            }
            list.extend_from_slice(&found[..n]);
        }
    }
}

/// Sum of `f(x)` over `values`.
#[inline(always)]
pub(crate) fn sum_of(values: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    values.chunks(BLOCK).map(|block| sum_of_block(block, &f)).sum()
}

/// Sums of `f(x)` over the blocks of `values`, in `sums`, and the sum of all.
#[inline(always)]
pub(crate) fn sums_of(values: &[f32], f: impl Fn(f32) -> f32, sums: &mut Vec<f64>) -> f64 {
    sums.clear();
    sums.extend(values.chunks(BLOCK).map(|block| sum_of_block(block, &f)));
    sums.iter().sum()
}

/// The values of the block that [`sums_of`] numbers `i`, and the index of their first.
pub(crate) fn block(values: &[f32], i: usize) -> (usize, &[f32]) {
    (i * BLOCK, &values[i * BLOCK..values.len().min((i + 1) * BLOCK)])
}

/// A lane adds eight numbers at most, so that single precision does.
#[inline(always)]
fn sum_of_block(block: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    // In a loop of its own, which compiles to vector instructions whatever `f` is.
    let mut terms = [0.0f32; BLOCK];
    for (term, &x) in terms.iter_mut().zip(block) {
        *term = f(x);
    }
    let mut sums = [0.0f32; LANES];
    for row in terms.as_chunks::<LANES>().0 {
        for lane in 0..LANES {
            sums[lane] += row[lane];
        }
    }
    sums.iter().map(|sum| f64::from(*sum)).sum()
}

/// `e^x` for `x <= 0` with a relative error below 3e-7, and 0 from `x = -87` down. Without
/// branches and calls, so that a pass over a vocabulary compiles to vector instructions.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    /// Adding it rounds a small number to an integer, which is then in the low bits.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts; the first has few enough bits that its product with the exponent is exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    const LOWEST: f32 = -87.0;

    let clamped = if x > LOWEST { x } else { LOWEST };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * LN_2[0] - n * LN_2[1];
    // The series up to r^7 / 7!; |r| <= ln(2) / 2, so the rest is below 6e-9.
    let mut series = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        series = series * r + coefficient;
    }
    let scale = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x > LOWEST { series * scale } else { 0.0 }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::Rng;

    #[test]
    fn argmax_takes_the_lowest_of_equals() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0, 2.0]).unwrap(), (1, 3.0));
        assert_eq!(argmax(&[-0.0, 0.0]).unwrap().0, 0);
        let mut long = vec![f32::NEG_INFINITY; 100];
        (long[33], long[70], long[99]) = (-5.0, -4.0, -4.0);
        assert_eq!(argmax(&long).unwrap(), (70, -4.0));
        assert_eq!(argmax(&[f32::MIN, f32::NEG_INFINITY]).unwrap().0, 0);
        assert_eq!(argmax(&[f32::MAX; 64]).unwrap().0, 0);
    }

    #[test]
    fn logits_that_are_no_distribution_are_errors() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY] {
            for index in [0, 15, 16, 39, 40] {
                let mut logits = vec![f32::NEG_INFINITY; 41];
                logits[5] = 1.0;
                logits[index] = bad;
                assert!(matches!(argmax(&logits), Err(Error::NanLogits { index: i }) if i == index));
                assert!(crate::log_softmax(&mut logits).is_err());
            }
        }
        assert!(matches!(argmax(&[]), Err(Error::NoCandidates { vocab: 0 })));
        assert!(matches!(argmax(&[f32::NEG_INFINITY; 40]), Err(Error::NoCandidates { vocab: 40 })));
    }

    #[test]
    fn exp_is_exact_to_single_precision() {
        for i in 0..87_000 {
            let x = i as f32 * -1e-3;
            let want = f64::from(x).exp();
            assert!((f64::from(exp(x)) / want - 1.0).abs() < 3e-7, "e^{x}");
        }
        assert_eq!([exp(0.0), exp(-88.0), exp(f32::MIN), exp(f32::NEG_INFINITY)], [1.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn passes_over_blocks_agree_with_whole_passes() {
        let rng = Rng::new(5);
        for n in [1, 15, 16, 127, 128, 129, 1000, 5003] {
            // Some values repeat, some are masked.
            let mut x: Vec<f32> =
                (0..n).map(|i| (rng.uniform_f32(i as u64, 0) * 300.0).round() / 10.0 - 40.0).collect();
            x.iter_mut().skip(3).step_by(7).for_each(|x| *x = f32::NEG_INFINITY);
            let mut peaks = Vec::new();
            let got = argmax_and_peaks(&x, &mut peaks).unwrap();
            assert_eq!(got, argmax(&x).unwrap());
            assert!(
                peaks.iter().zip(x.chunks(BLOCK)).all(|(p, b)| b.iter().all(|x| x <= p) && b.contains(p))
            );
            for count in [1, 2, 10, 39, 5003] {
                let floor = reached_by(count, &peaks, &mut Vec::new());
                assert!(x.iter().filter(|x| **x >= floor).count() >= count.min(n));
            }
            for floor in [f32::NEG_INFINITY, -40.0, -25.5, -11.0, 0.0] {
                let mut found = Vec::new();
                list_from(2.0 * floor, &x, &peaks, |x| 2.0 * x, &mut found);
                let kept = x.iter().enumerate().filter(|(_, x)| **x >= floor && **x > f32::NEG_INFINITY);
                let want: Vec<(u32, f32)> = kept.map(|(id, x)| (id as u32, 2.0 * x)).collect();
                assert_eq!(found, want);
            }
            let want: f64 = x.iter().map(|x| f64::from(*x).exp()).sum();
            let mut sums = Vec::new();
            for got in [sum_of(&x, exp), sums_of(&x, exp, &mut sums), sums.iter().sum()] {
                assert!((got / want - 1.0).abs() < 1e-6, "{got} for {want}");
            }
            assert_eq!((0..sums.len()).map(|i| block(&x, i).1.len()).sum::<usize>(), n);
        }
    }
}
