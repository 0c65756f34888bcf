//! The most multiply-adds a second that this machine's instructions allow: loops of nothing else, with accumulators
//! enough to hide their latency and operands in registers. Memory's ceiling is `rillm::tensor::cpu::Bandwidth`.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

/// What is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// 8-bit integers, added in 32 bits.
    Int8,
    /// bfloat16, added in f32.
    Bf16,
    /// f32.
    F32,
}

/// A loop of multiply-adds.
#[derive(Clone, Copy, Debug)]
pub struct Peak {
    /// The instruction, for people.
    pub name: &'static str,
    /// Multiply-adds of one turn of the loop.
    macs: usize,
    run: fn(usize),
}

/// Accumulators: more than latency times throughput on any processor of interest.
const ACCUMULATORS: usize = 12;
/// Turns of the loop between two looks at the clock: some tens of microseconds.
const TURNS: usize = 10_000;

impl Peak {
    /// The fastest instruction for `operand` among those that the kernels called `kernels` are made of.
    pub fn of(kernels: &str, operand: Operand) -> Self {
        of_instructions(kernels, operand).unwrap_or(PORTABLE)
    }

    /// Multiply-adds a second of `threads` threads together.
    pub fn measure(&self, threads: usize) -> f64 {
        let barrier = Barrier::new(threads);
        let one = || {
            barrier.wait();
            let started = Instant::now();
            (self.run)(TURNS);
            (self.macs * TURNS) as f64 / started.elapsed().as_secs_f64()
        };
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(one)).collect();
            let mine = one();
            mine + others.into_iter().map(|t| t.join().unwrap_or(0.0)).sum::<f64>()
        })
    }
}

/// Whatever the compiler makes of it for the baseline of the target.
const PORTABLE: Peak = Peak { name: "portable f32", macs: 4 * ACCUMULATORS, run: portable };

fn portable(turns: usize) {
    let (a, b) = black_box(([1.0f32; 4], [0.5f32; 4]));
    let mut sums = [[0.0f32; 4]; ACCUMULATORS];
    for _ in 0..turns {
        for sum in &mut sums {
            for lane in 0..4 {
                sum[lane] += a[lane] * b[lane];
            }
        }
        // Else the products are computed once.
        black_box(&mut sums);
    }
}

#[cfg(target_arch = "x86_64")]
use x86::of_instructions;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{ACCUMULATORS, Operand, Peak};
    use std::arch::is_x86_feature_detected as has;
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// Stamps a loop of `$step` over registers of `$zero`'s type, for processors with `$feature`.
    macro_rules! peak {
        ($name:ident, $feature:literal, $zero:ident, $a:expr, $step:expr) => {
            fn $name(turns: usize) {
                #[target_feature(enable = $feature)]
                fn run(turns: usize) {
                    let (a, b) = (black_box($a), black_box($a));
                    let mut sums = [$zero(); ACCUMULATORS];
                    for _ in 0..turns {
                        for sum in &mut sums {
                            *sum = $step(*sum, a, b);
                        }
                    }
                    black_box(sums);
                }
                // SAFETY: `of_instructions` hands this function out after it has detected the feature.
                unsafe { run(turns) }
            }
        };
    }

    peak!(int8_avx512, "avx512f,avx512vnni", _mm512_setzero_si512, _mm512_set1_epi8(1), |s, a, b| {
        _mm512_dpbusd_epi32(s, a, b)
    });
    peak!(
        bf16_avx512,
        "avx512f,avx512bf16",
        _mm512_setzero_ps,
        _mm512_cvtne2ps_pbh(_mm512_set1_ps(1.0), _mm512_set1_ps(1.0)),
        |s, a, b| _mm512_dpbf16_ps(s, a, b)
    );
    peak!(f32_avx512, "avx512f", _mm512_setzero_ps, _mm512_set1_ps(1.0), |s, a, b| _mm512_fmadd_ps(a, b, s));
    peak!(int8_avx_vnni, "avx2,avxvnni", _mm256_setzero_si256, _mm256_set1_epi8(1), |s, a, b| {
        _mm256_dpbusd_avx_epi32(s, a, b)
    });
    peak!(int8_avx2, "avx2", _mm256_setzero_si256, _mm256_set1_epi8(1), |s, a, b| {
        // The sum enters, so that the product is not the same in every turn.
        let pairs = _mm256_maddubs_epi16(_mm256_xor_si256(a, s), b);
        _mm256_add_epi32(s, _mm256_madd_epi16(pairs, b))
    });
    peak!(f32_avx2, "avx2,fma", _mm256_setzero_ps, _mm256_set1_ps(1.0), |s, a, b| _mm256_fmadd_ps(a, b, s));

    pub(super) fn of_instructions(kernels: &str, operand: Operand) -> Option<Peak> {
        let peak = |name, lanes: usize, run| Some(Peak { name, macs: lanes * ACCUMULATORS, run });
        match (kernels, operand) {
            ("avx512" | "avx512-bf16", Operand::Int8) if has!("avx512vnni") => {
                peak("int8 avx512-vnni", 64, int8_avx512)
            }
            ("avx512-bf16", Operand::Bf16) if has!("avx512bf16") => peak("bf16 avx512", 32, bf16_avx512),
            ("avx512" | "avx512-bf16", _) if has!("avx512f") => peak("f32 avx512", 16, f32_avx512),
            ("avx2-vnni", Operand::Int8) if has!("avxvnni") && has!("avx2") => {
                peak("int8 avx-vnni", 32, int8_avx_vnni)
            }
            ("avx2", Operand::Int8) if has!("avx2") => peak("int8 avx2", 32, int8_avx2),
            ("avx2" | "avx2-vnni", _) if has!("avx2") && has!("fma") => peak("f32 avx2", 8, f32_avx2),
            _ => None,
        }
    }
}

#[cfg(target_arch = "aarch64")]
use arm::of_instructions;

#[cfg(target_arch = "aarch64")]
mod arm {
    use super::{ACCUMULATORS, Operand, Peak};
    use std::arch::aarch64::*;
    use std::arch::{asm, is_aarch64_feature_detected as has};
    use std::hint::black_box;

    fn f32_neon(turns: usize) {
        // SAFETY: NEON is part of the target.
        unsafe {
            let (a, b) = (black_box(vdupq_n_f32(1.0)), black_box(vdupq_n_f32(0.5)));
            let mut sums = [vdupq_n_f32(0.0); ACCUMULATORS];
            for _ in 0..turns {
                for sum in &mut sums {
                    *sum = vfmaq_f32(*sum, a, b);
                }
            }
            black_box(sums);
        }
    }

    /// Stamps a loop of the instruction `$code`, whose intrinsic is not stable.
    macro_rules! peak {
        ($name:ident, $extension:literal, $code:literal) => {
            fn $name(turns: usize) {
                // SAFETY: `of_instructions` hands this function out after it has detected the extension; the code
                // reads and writes the registers that it names and no memory.
                unsafe {
                    let (a, b) = (black_box(vdupq_n_s8(1)), black_box(vdupq_n_s8(1)));
                    let mut sums = [vdupq_n_s32(0); ACCUMULATORS];
                    for _ in 0..turns {
                        for sum in &mut sums {
                            asm!(
                                concat!(".arch_extension ", $extension), $code,
                                s = inout(vreg) *sum, a = in(vreg) a, b = in(vreg) b,
                                options(pure, nomem, nostack, preserves_flags)
                            );
                        }
                    }
                    black_box(sums);
                }
            }
        };
    }

    peak!(int8_dotprod, "dotprod", "sdot {s:v}.4s, {a:v}.16b, {b:v}.16b");
    peak!(int8_i8mm, "i8mm", "smmla {s:v}.4s, {a:v}.16b, {b:v}.16b");

    pub(super) fn of_instructions(kernels: &str, operand: Operand) -> Option<Peak> {
        let peak = |name, lanes: usize, run| Some(Peak { name, macs: lanes * ACCUMULATORS, run });
        match (kernels, operand) {
            ("neon-i8mm", Operand::Int8) if has!("i8mm") => peak("int8 i8mm", 32, int8_i8mm),
            ("neon-dotprod", Operand::Int8) if has!("dotprod") => peak("int8 dotprod", 16, int8_dotprod),
            ("neon" | "neon-dotprod" | "neon-i8mm", _) => peak("f32 neon", 4, f32_neon),
            _ => None,
        }
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn of_instructions(_: &str, _: Operand) -> Option<Peak> {
    None
}
