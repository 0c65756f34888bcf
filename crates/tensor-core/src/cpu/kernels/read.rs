//! Reading memory and doing nothing with it: the measure of what a matrix-vector product could reach at best.

use super::vector::{Kernel, LANES, Vector};

/// Bytes of a step: eight vectors, so that as many loads are under way.
const STEP: usize = 8 * 4 * LANES;
/// How far ahead lines are asked for, in bytes.
const AHEAD: usize = 2048;

/// Reads `bytes`, but for what follows the last whole step. The result depends on all of it, so that nothing is
/// left out.
pub(crate) fn read<V: Vector>(bytes: &[u8]) -> f32 {
    // SAFETY: the table of `V` was handed out after detection.
    unsafe { V::call(Read { bytes }) }
}

struct Read<'a> {
    bytes: &'a [u8],
}

impl Kernel for Read<'_> {
    type Output = f32;
    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> f32 {
        // SAFETY: every load is inside a whole step of `bytes`; prefetching beyond the end reads nothing.
        unsafe {
            let mut seen = [V::splat_i(0); 8];
            for step in self.bytes.chunks_exact(STEP) {
                for (i, seen) in seen.iter_mut().enumerate() {
                    let p = step.as_ptr().wrapping_add(i * 4 * LANES);
                    V::prefetch(p.wrapping_add(AHEAD));
                    *seen = V::or(*seen, V::load_i(p));
                }
            }
            let all = seen.into_iter().fold(V::splat_i(0), |a, b| V::or(a, b));
            V::reduce_max(V::from_i32(all))
        }
    }
}
