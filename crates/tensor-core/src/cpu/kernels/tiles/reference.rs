//! What tile registers compute, in plain code: the definition that `amx.rs` must meet, and tiles for tests on machines
//! that have none. Not fast.

use half::bf16;

use super::{Product, Strips, TILE, Tiles, emit, expand};
use crate::cpu::kernels::scalar::Scalar;
use crate::cpu::kernels::vector::LANES;
use crate::cpu::kernels::{Kernels, table};
use crate::cpu::packed::UNIT;

/// The scalar table, with tiles.
pub(crate) static TILED: Kernels = Kernels {
    tiles: Some(Tiles { expand: expand::<Scalar>, multiply, emit: emit::<Scalar>, strips }),
    ..table::<Scalar>("scalar-tiles")
};

fn value(bytes: &[u8], at: usize) -> f32 {
    bf16::from_le_bytes([bytes[2 * at], bytes[2 * at + 1]]).to_f32()
}

/// `c[i][j] += Σ a[i][k] b[k][j]`, where `b` holds pairs of `k`.
fn multiply(product: Product<'_>) {
    let Product { a, a_stride, b, units, c, resume } = product;
    for (tile, c) in c.chunks_exact_mut(2).enumerate() {
        for (b, c) in b.iter().zip(c) {
            for (i, row) in c.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                for (j, c) in row.iter_mut().enumerate() {
                    let start = if resume { *c } else { 0.0 };
                    *c = (0..units * UNIT).fold(start, |sum, k| {
                        let (unit, k) = (k / UNIT, k % UNIT);
                        let x = value(&a[tile * a_stride + unit * TILE..], i * UNIT + k);
                        let w = value(&b[unit * TILE..], (k / 2 * LANES + j) * 2 + k % 2);
                        x.mul_add(w, sum)
                    });
                }
            }
        }
    }
}

/// The same for [`Strips`].
fn strips(s: Strips<'_>) {
    let number = |x: u16| bf16::from_bits(x).to_f32();
    for column in 0..s.columns {
        for i in 0..s.tiles * LANES {
            for j in 0..LANES {
                let c = &mut s.c[i * s.c_row + column * LANES + j];
                let start = if s.resume { *c } else { 0.0 };
                *c = (0..s.steps * UNIT).fold(start, |sum, k| {
                    let (step, pair) = (k / UNIT, k % UNIT / 2 * LANES + j);
                    let b = s.b[(column * s.steps + step) * (TILE / 2) + 2 * pair + k % 2];
                    number(s.a[i * s.a_row + k]).mul_add(number(b), sum)
                });
            }
        }
    }
}
