//! The tile registers of AMX: products of 16 x 16 values over 32 columns of bfloat16. What the tiles hold is
//! `tiles.rs`.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::sync::OnceLock;

use super::tiles::{Product, Strips, TILE};
use super::vector::LANES;

/// `arch_prctl` of Linux, and what it is asked: the permission to use a state component of the processor.
const ARCH_PRCTL: usize = 158;
const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
/// The state component of tile data.
const XTILEDATA: usize = 18;

/// Whether the processor has the instructions and the system lets this process use them.
pub(super) fn detected() -> bool {
    static PERMITTED: OnceLock<bool> = OnceLock::new();
    *PERMITTED.get_or_init(|| {
        const AMX_BF16: u32 = 1 << 22;
        const AMX_TILE: u32 = 1 << 24;
        let features = if __cpuid(0).eax >= 7 { __cpuid_count(7, 0).edx } else { 0 };
        features & (AMX_BF16 | AMX_TILE) == AMX_BF16 | AMX_TILE && permitted()
    })
}

/// Asks Linux for the tile registers, for all threads of the process.
fn permitted() -> bool {
    if !cfg!(target_os = "linux") {
        return false;
    }
    let result: isize;
    // SAFETY: the system call takes two numbers and touches no memory of ours; it clobbers rcx and r11. An older
    // system answers with an error.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL as isize => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

/// The operand of `ldtilecfg`: palette 1, eight tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static CONFIG: Config = Config {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// See [`Product`].
///
/// Safe only as an entry of [`Kernels`](super::Kernels), which is handed out after detection.
pub(super) fn multiply(product: Product<'_>) {
    let Product { a, a_stride, b, units, c, resume } = product;
    let tiles = c.len() / 2;
    let size = units * TILE;
    assert!(units > 0 && b.iter().all(|b| b.len() >= size), "both blocks have the units");
    assert!(tiles == 0 || a.len() >= (tiles - 1) * a_stride + size, "each tile of tokens has the units");
    let [b0, b1] = b.map(<[u8]>::as_ptr);
    // SAFETY: detected before the table was handed out; the assertions say that all tiles lie in `a`, `b` and `c`.
    unsafe {
        asm!("ldtilecfg [{}]", in(reg) &raw const CONFIG, options(nostack, readonly));
        let mut tile = 0;
        while tile < tiles {
            let a0 = a.as_ptr().add(tile * a_stride);
            let c0 = c.as_mut_ptr().add(2 * tile).cast::<u8>();
            if tile + 1 < tiles {
                four(a0, a0.add(a_stride), [b0, b1], c0, units, resume);
            } else {
                two(a0, [b0, b1], c0, units, resume);
            }
            tile += 2;
        }
        asm!("tilerelease", options(nostack, nomem));
    }
}

/// Two tiles of tokens times two blocks.
///
/// # Safety
/// Tiles are configured; `a0`, `a1`, `b` have `units` tiles each, `c` four.
#[inline(always)]
unsafe fn four(a0: *const u8, a1: *const u8, b: [*const u8; 2], c: *mut u8, units: usize, resume: bool) {
    // SAFETY: the caller's contract.
    unsafe {
        if resume {
            asm!(
                "tileloadd tmm0, [{c} + {s}]",
                "tileloadd tmm1, [{c} + {s} + 1024]",
                "tileloadd tmm2, [{c} + {s} + 2048]",
                "tileloadd tmm3, [{c} + {s} + 3072]",
                c = in(reg) c, s = in(reg) 64usize, options(nostack, readonly),
            );
        } else {
            asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, nomem));
        }
        asm!(
            "2:",
            "tileloadd tmm4, [{b0} + {s}]",
            "tileloadd tmm6, [{a0} + {s}]",
            "tdpbf16ps tmm0, tmm6, tmm4",
            "tileloadd tmm5, [{b1} + {s}]",
            "tdpbf16ps tmm1, tmm6, tmm5",
            "tileloadd tmm7, [{a1} + {s}]",
            "tdpbf16ps tmm2, tmm7, tmm4",
            "tdpbf16ps tmm3, tmm7, tmm5",
            "add {a0}, 1024",
            "add {a1}, 1024",
            "add {b0}, 1024",
            "add {b1}, 1024",
            "dec {n}",
            "jnz 2b",
            "tilestored [{c} + {s}], tmm0",
            "tilestored [{c} + {s} + 1024], tmm1",
            "tilestored [{c} + {s} + 2048], tmm2",
            "tilestored [{c} + {s} + 3072], tmm3",
            a0 = inout(reg) a0 => _, a1 = inout(reg) a1 => _,
            b0 = inout(reg) b[0] => _, b1 = inout(reg) b[1] => _,
            n = inout(reg) units => _, c = in(reg) c, s = in(reg) 64usize,
            options(nostack),
        );
    }
}

/// One tile of tokens times two blocks.
///
/// # Safety
/// Tiles are configured; `a`, `b` have `units` tiles each, `c` two.
#[inline(always)]
unsafe fn two(a: *const u8, b: [*const u8; 2], c: *mut u8, units: usize, resume: bool) {
    // SAFETY: the caller's contract.
    unsafe {
        if resume {
            asm!(
                "tileloadd tmm0, [{c} + {s}]",
                "tileloadd tmm1, [{c} + {s} + 1024]",
                c = in(reg) c, s = in(reg) 64usize, options(nostack, readonly),
            );
        } else {
            asm!("tilezero tmm0", "tilezero tmm1", options(nostack, nomem));
        }
        asm!(
            "2:",
            "tileloadd tmm6, [{a} + {s}]",
            "tileloadd tmm4, [{b0} + {s}]",
            "tdpbf16ps tmm0, tmm6, tmm4",
            "tileloadd tmm5, [{b1} + {s}]",
            "tdpbf16ps tmm1, tmm6, tmm5",
            "add {a}, 1024",
            "add {b0}, 1024",
            "add {b1}, 1024",
            "dec {n}",
            "jnz 2b",
            "tilestored [{c} + {s}], tmm0",
            "tilestored [{c} + {s} + 1024], tmm1",
            a = inout(reg) a => _, b0 = inout(reg) b[0] => _, b1 = inout(reg) b[1] => _,
            n = inout(reg) units => _, c = in(reg) c, s = in(reg) 64usize,
            options(nostack),
        );
    }
}

/// See [`Strips`].
///
/// Safe only as an entry of [`Kernels`](super::Kernels), which is handed out after detection.
pub(super) fn strips(s: Strips<'_>) {
    if s.tiles == 0 || s.columns == 0 || s.steps == 0 {
        return;
    }
    assert!(s.a.len() >= (s.tiles * LANES - 1) * s.a_row + s.steps * 32, "rows have their steps");
    assert!(s.b.len() >= s.columns * s.steps * TILE / 2, "columns too");
    assert!(s.c.len() >= (s.tiles * LANES - 1) * s.c_row + s.columns * LANES, "and all results a place");
    // SAFETY: detected before the table was handed out; the assertions say that all tiles lie in `a`, `b` and `c`.
    unsafe {
        asm!("ldtilecfg [{}]", in(reg) &raw const CONFIG, options(nostack, readonly));
        for column in 0..s.columns {
            let b = s.b.as_ptr().cast::<u8>().add(column * s.steps * TILE);
            let mut tile = 0;
            while tile < s.tiles {
                let a = s.a.as_ptr().add(tile * LANES * s.a_row);
                let c = s.c.as_mut_ptr().add(tile * LANES * s.c_row + column * LANES);
                let rows = [2 * s.a_row, 4 * s.c_row];
                if tile + 4 <= s.tiles {
                    strip4(a.cast(), b, c.cast(), rows, s.steps, s.resume);
                    tile += 4;
                } else {
                    strip1(a.cast(), b, c.cast(), rows, s.steps, s.resume);
                    tile += 1;
                }
            }
        }
        asm!("tilerelease", options(nostack, nomem));
    }
}

/// Four tiles of rows times one of columns.
///
/// # Safety
/// Tiles are configured; `a` has 64 rows of `steps` steps, `rows[0]` bytes apart, `b` a tile for each step, `c` 64 rows
/// of 16 floats, `rows[1]` bytes apart.
#[inline(always)]
unsafe fn strip4(a: *const u8, b: *const u8, c: *mut u8, rows: [usize; 2], steps: usize, resume: bool) {
    // SAFETY: the caller's contract.
    unsafe {
        let [c1, c2, c3] = [1, 2, 3].map(|i| c.add(i * LANES * rows[1]));
        let [a1, a2, a3] = [1, 2, 3].map(|i| a.add(i * LANES * rows[0]));
        if resume {
            asm!(
                "tileloadd tmm0, [{c0} + {s}]",
                "tileloadd tmm1, [{c1} + {s}]",
                "tileloadd tmm2, [{c2} + {s}]",
                "tileloadd tmm3, [{c3} + {s}]",
                c0 = in(reg) c, c1 = in(reg) c1, c2 = in(reg) c2, c3 = in(reg) c3, s = in(reg) rows[1],
                options(nostack, readonly),
            );
        } else {
            asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, nomem));
        }
        for step in 0..steps {
            let at = step * 64;
            asm!(
                "tileloadd tmm4, [{b} + {s}]",
                "tileloadd tmm5, [{a0} + {r}]",
                "tdpbf16ps tmm0, tmm5, tmm4",
                "tileloadd tmm6, [{a1} + {r}]",
                "tdpbf16ps tmm1, tmm6, tmm4",
                "tileloadd tmm7, [{a2} + {r}]",
                "tdpbf16ps tmm2, tmm7, tmm4",
                "tileloadd tmm5, [{a3} + {r}]",
                "tdpbf16ps tmm3, tmm5, tmm4",
                a0 = in(reg) a.add(at), a1 = in(reg) a1.add(at), a2 = in(reg) a2.add(at), a3 = in(reg) a3.add(at),
                b = in(reg) b.add(step * TILE), r = in(reg) rows[0], s = in(reg) 64usize,
                options(nostack, readonly),
            );
        }
        asm!(
            "tilestored [{c0} + {s}], tmm0",
            "tilestored [{c1} + {s}], tmm1",
            "tilestored [{c2} + {s}], tmm2",
            "tilestored [{c3} + {s}], tmm3",
            c0 = in(reg) c, c1 = in(reg) c1, c2 = in(reg) c2, c3 = in(reg) c3, s = in(reg) rows[1],
            options(nostack),
        );
    }
}

/// [`strip4`] for one tile of rows.
///
/// # Safety
/// That of [`strip4`] for 16 rows.
#[inline(always)]
unsafe fn strip1(a: *const u8, b: *const u8, c: *mut u8, rows: [usize; 2], steps: usize, resume: bool) {
    // SAFETY: the caller's contract.
    unsafe {
        if resume {
            asm!("tileloadd tmm0, [{} + {}]", in(reg) c, in(reg) rows[1], options(nostack, readonly));
        } else {
            asm!("tilezero tmm0", options(nostack, nomem));
        }
        for step in 0..steps {
            asm!(
                "tileloadd tmm4, [{b} + {s}]",
                "tileloadd tmm5, [{a} + {r}]",
                "tdpbf16ps tmm0, tmm5, tmm4",
                a = in(reg) a.add(step * 64), b = in(reg) b.add(step * TILE),
                r = in(reg) rows[0], s = in(reg) 64usize,
                options(nostack, readonly),
            );
        }
        asm!("tilestored [{} + {}], tmm0", in(reg) c, in(reg) rows[1], options(nostack));
    }
}
