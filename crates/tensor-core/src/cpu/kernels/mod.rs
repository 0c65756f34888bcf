//! One table of kernels for each instruction set, handed out only after the processor was asked.
//! What kernels compute is in the other files, once for all tables.

#[cfg(target_arch = "x86_64")]
mod amx;
pub(crate) mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod elementwise;
pub(crate) mod matmul;
#[cfg(target_arch = "aarch64")]
mod neon;
pub(crate) mod panel;
pub(crate) mod read;
pub(crate) mod rearrange;
pub(crate) mod recurrent;
mod scalar;
#[cfg(target_arch = "x86_64")]
pub(crate) mod slabs;
#[cfg_attr(
    not(any(target_arch = "x86_64", test)),
    expect(dead_code, reason = "no other table has tile registers so far")
)]
pub(crate) mod tiles;
mod unit;
pub(crate) mod vector;

use vector::Vector;

/// The kernels of one instruction set, as safe functions.
///
/// A table is only reachable through [`available`], after detection; that is what makes its functions safe.
#[derive(Debug)]
pub(crate) struct Kernels {
    /// What people call it, e.g. `"avx512"`.
    pub name: &'static str,
    /// Whether bfloat16 pairs have a dot product.
    pub bf16: bool,
    /// Packs codes: see [`rearrange::rearrange`].
    pub rearrange: fn(rearrange::Strip<'_>),
    /// Builds a panel: see [`panel::build`].
    pub panel: fn(panel::Panel, panel::Tokens<'_>, &mut [u8]),
    /// Multiplies a block and a panel: see [`matmul::multiply`].
    pub multiply: fn(matmul::Tile<'_>),
    /// Multiplies some blocks and the int8 panels of 8 or 16 tokens faster than `multiply`, if something does.
    pub slabs: Option<fn(matmul::Tile<'_>)>,
    /// Tile registers, where there are some: for batches of many tokens.
    pub tiles: Option<tiles::Tiles>,
    /// Tiles of queries against blocks of keys.
    pub attention: attention::Attention,
    /// Reads every byte once, as fast as vectors can: see [`read::read`].
    pub read: fn(&[u8]) -> f32,
    /// Norms, activations, rope.
    pub elementwise: elementwise::Elementwise,
    /// Layers with a state.
    pub recurrent: recurrent::Recurrences,
}

/// The table of `V`. Not reachable from outside but through [`available`].
const fn table<V: Vector>(name: &'static str) -> Kernels {
    Kernels {
        name,
        bf16: V::BF16,
        rearrange: rearrange::rearrange::<V::Base>,
        panel: panel::build::<V::Base>,
        read: read::read::<V::Base>,
        multiply: matmul::multiply::<V>,
        slabs: None,
        tiles: None,
        attention: attention::Attention::of::<V::Base>(),
        elementwise: elementwise::Elementwise::of::<V::Base>(),
        recurrent: recurrent::Recurrences::of::<V::Base>(),
    }
}

static SCALAR: Kernels = table::<scalar::Scalar>("scalar");
#[cfg(target_arch = "x86_64")]
static AVX2: [Kernels; 2] = [
    Kernels { slabs: Some(slabs::multiply), ..table::<avx2::Avx2<false>>("avx2") },
    table::<avx2::Avx2<true>>("avx2-vnni"),
];
#[cfg(target_arch = "x86_64")]
static AVX512: [Kernels; 3] = [
    table::<avx512::Avx512<false>>("avx512"),
    table::<avx512::Avx512<true>>("avx512-bf16"),
    Kernels {
        tiles: Some(tiles::Tiles {
            expand: tiles::expand::<avx512::Avx512<true>>,
            multiply: amx::multiply,
            emit: tiles::emit::<avx512::Avx512<true>>,
            strips: amx::strips,
        }),
        // Splits values into bfloat16 for the tile registers.
        attention: attention::Attention::of::<avx512::Avx512<true>>(),
        ..table::<avx512::Avx512<true>>("avx512-amx")
    },
];
#[cfg(target_arch = "aarch64")]
static NEON: [Kernels; 3] = [
    table::<neon::Neon<{ neon::BASE }>>("neon"),
    table::<neon::Neon<{ neon::DOTPROD }>>("neon-dotprod"),
    table::<neon::Neon<{ neon::I8MM }>>("neon-i8mm"),
];

/// The tables that this processor can run, slowest first.
pub(crate) fn available() -> Vec<&'static Kernels> {
    let mut tables = vec![&SCALAR];
    #[cfg(target_arch = "x86_64")]
    for (table, detected) in [
        (&AVX2[0], avx2::Avx2::<false>::detected()),
        (&AVX2[1], avx2::Avx2::<true>::detected()),
        (&AVX512[0], avx512::Avx512::<false>::detected()),
        (&AVX512[1], avx512::Avx512::<true>::detected()),
        (&AVX512[2], avx512::Avx512::<true>::detected() && amx::detected()),
    ] {
        tables.extend(detected.then_some(table));
    }
    #[cfg(target_arch = "aarch64")]
    for (table, detected) in [
        (&NEON[0], neon::Neon::<{ neon::BASE }>::detected()),
        (&NEON[1], neon::Neon::<{ neon::DOTPROD }>::detected()),
        (&NEON[2], neon::Neon::<{ neon::I8MM }>::detected()),
    ] {
        tables.extend(detected.then_some(table));
    }
    tables
}

/// The fastest table of this processor.
pub(crate) fn best() -> &'static Kernels {
    available().pop().unwrap_or(&SCALAR)
}

/// The table called `name`, if this processor can run it.
pub(crate) fn by_name(name: &str) -> Option<&'static Kernels> {
    available().into_iter().find(|k| k.name == name)
}
