//! What tokens of a chunk have to do with earlier ones: lower triangular matrices, with the decays between two tokens.
//!
//! Products of decays are formed by multiplying, never as quotients or differences of logarithms: these overflow, or
//! cancel, where a token forgets everything.

use mlx_rs::{Array, ops};

use super::{Made, number};

/// Which pairs of tokens of a chunk count: `[chunk, chunk]`, rows later tokens.
pub(super) struct Triangle {
    diagonal: Array,
    /// On the diagonal and below.
    lower: Array,
    /// Below the diagonal.
    strict: Array,
    /// Pairs that halves of blocks of 2, 4, 8, .. tokens separate. Together they are `strict`.
    halves: Vec<Array>,
}

impl Triangle {
    /// Of chunks of `size` tokens, a power of two.
    pub(super) fn new(size: i32) -> Self {
        let mask = |f: &dyn Fn(i32, i32) -> bool| {
            let cells: Vec<bool> = (0..size).flat_map(|i| (0..size).map(move |j| f(i, j))).collect();
            Array::from_slice(&cells, &[size, size])
        };
        let half = |level: u32| mask(&|i, j| i > j && (i ^ j).ilog2() == level);
        Self {
            diagonal: mask(&|i, j| i == j),
            lower: mask(&|i, j| i >= j),
            strict: mask(&|i, j| i > j),
            halves: (0..size.ilog2()).map(half).collect(),
        }
    }

    /// `(I + a)⁻¹` of strictly lower triangular `a`, by halves: with the inverses `t` of two blocks on the diagonal,
    /// that of both has `-t a t` below.
    pub(super) fn inverse(&self, a: &Array) -> Made {
        let mut inverse = ops::select(&self.diagonal, number(1.0), number(0.0))?;
        for (level, half) in self.halves.iter().enumerate() {
            let between = ops::select(half, a, number(0.0))?;
            let correction = match level {
                0 => between,
                _ => inverse.matmul(between)?.matmul(&inverse)?,
            };
            inverse = inverse.subtract(correction)?;
        }
        Ok(inverse)
    }
}

/// The cells of a triangle that count.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Diagonal {
    In,
    Out,
}

/// What is left of a token at a later one of its chunk.
pub(super) struct Decays<'a> {
    triangle: &'a Triangle,
    between: Between,
    /// Decays of a token and all before it in its chunk, `[.., chunk, key_dim or 1]`.
    pub since: Array,
    /// Decays of all tokens after it.
    pub until: Array,
}

enum Between {
    /// The same for all values of a key, `[.., chunk, chunk]`.
    Shared(Array),
    /// For each value of a key, as two factors that meet between the halves of a block: of the later token since
    /// then, and of the earlier one until then. `[.., chunk, key_dim]`, for blocks of 2, 4, 8, .. tokens.
    ByKey(Vec<[Array; 2]>),
}

/// Decays within blocks of twice `size` tokens, from those within blocks of `size`: of a token and all before it
/// (`since`), and of all after it (`until`). Not by `cumprod` of MLX 0.32.2, which gave wrong values for some of these shapes
/// on an H100.
fn doubled([since, until]: &[Array; 2], size: i32) -> Made<[Array; 2]> {
    let halves = |x: &Array| x.reshape(&[-1, 2, size, x.dim(-1)])?.split_equal(2, 1);
    let (early, late) = (halves(since)?, halves(until)?);
    let whole = |x: &Array| x.split_at_indices(&[size - 1], 2).map(|mut parts| parts.swap_remove(1));
    let joined = |a: &Array, b: &Array| ops::concatenate(&[a, b], 1)?.reshape(since.shape());
    Ok([
        joined(&early[0], &early[1].multiply(whole(&early[0])?)?)?,
        joined(&late[0].multiply(whole(&early[1])?)?, &late[1])?,
    ])
}

impl<'a> Decays<'a> {
    /// Of tokens that decay the state by `decay: [.., chunk, width]`; a width of 1 applies to all values of a key.
    pub(super) fn new(triangle: &'a Triangle, decay: &Array) -> Made<Self> {
        if decay.dim(-1) == 1 {
            let later = ops::select(&triangle.strict, decay, number(1.0))?;
            return Ok(Self {
                triangle,
                between: Between::Shared(later.cumprod(-2, false, true)?),
                since: decay.cumprod(-2, false, true)?,
                until: decay.cumprod(-2, true, false)?,
            });
        }
        let mut block = [decay.clone(), ops::ones_dtype(decay.shape(), decay.dtype())?];
        let mut between = Vec::new();
        for level in 0..triangle.halves.len() {
            let next = doubled(&block, 1 << level)?;
            between.push(std::mem::replace(&mut block, next));
        }
        let [since, until] = block;
        Ok(Self { triangle, between: Between::ByKey(between), since, until })
    }

    /// What rows of later tokens and rows of earlier ones, both `[.., chunk, key_dim]`, are to each other: sums of
    /// products of three, the decay between the two among them. `[.., chunk, chunk]`, lower triangular.
    pub(super) fn products(&self, later: &Array, earlier: &Array, diagonal: Diagonal) -> Made {
        let zero = number(0.0);
        let dots = |later: &Array, earlier: &Array| later.matmul(earlier.swap_axes(-1, -2)?);
        match &self.between {
            Between::Shared(decays) => {
                let mask = match diagonal {
                    Diagonal::In => &self.triangle.lower,
                    Diagonal::Out => &self.triangle.strict,
                };
                ops::select(mask, dots(later, earlier)?.multiply(decays)?, zero)
            }
            Between::ByKey(factors) => {
                let mut sum = match diagonal {
                    Diagonal::In => ops::select(&self.triangle.diagonal, dots(later, earlier)?, &zero)?,
                    Diagonal::Out => ops::zeros_dtype(self.triangle.strict.shape(), zero.dtype())?,
                };
                for ([since, until], half) in factors.iter().zip(&self.triangle.halves) {
                    let part = dots(&later.multiply(since)?, &earlier.multiply(until)?)?;
                    sum = ops::select(half, part, sum)?;
                }
                Ok(sum)
            }
        }
    }
}
