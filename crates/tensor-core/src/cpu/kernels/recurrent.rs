//! States that change with each token: 32 columns of one head's matrix, or 16 channels, at a time. No threads.
//!
//! Lanes are columns of the state, and sums run over its rows in order: a result depends neither on how tokens were
//! divided among calls nor on the width of vectors.

use super::super::rows::Rows;
use super::vector::{Kernel, LANES, Vector};

/// The kernels of one instruction set for layers with a state. Lengths are checked.
#[derive(Debug)]
pub(crate) struct Recurrences {
    /// Tokens of one head: see [`HeadScan`].
    pub head: fn(HeadScan<'_>),
    /// Tokens of some channels: see [`ChannelScan`].
    pub channels: fn(ChannelScan<'_>),
    /// `out = bias + Σ kernel[i] * taps[i]`, as wide as `out`.
    pub conv: ConvFn,
    /// `out = bias + Σ factors[i] * w[i]`, as wide as `out`.
    pub combine: fn(factors: &[f32], w: Rows<'_>, bias: &[f32], out: &mut [f32]),
}

/// Takes the taps, the kernel, the bias and where the result goes.
type ConvFn = fn(&[&[f32]], Rows<'_>, Option<&[f32]>, &mut [f32]);

impl Recurrences {
    /// The kernels of `V`. Only for a table that is handed out after detection.
    pub(super) const fn of<V: Vector>() -> Self {
        Self { head: head::<V>, channels: channels::<V>, conv: conv::<V>, combine: combine::<V> }
    }
}

/// Columns of a state that [`HeadScan`] takes at a time, at most.
pub(crate) const COLUMNS: usize = 2 * LANES;

/// What is looked up in a state before it changes: `u = factor Sᵀ key`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Erase<'a> {
    /// `[t, n]`.
    pub key: Rows<'a>,
    /// `[t, 1]`.
    pub factor: Rows<'a>,
    /// Where `u` is added, `[t, n]`; to the key if `None`.
    pub at: Option<Rows<'a>>,
}

/// Tokens of some columns of a head: `S = decay S + at uᵀ + k (scale v)ᵀ`, then `y = Sᵀ q + skip v`.
#[derive(Debug)]
pub(crate) struct HeadScan<'a> {
    /// `[t, n]`.
    pub q: Rows<'a>,
    /// `[t, n]`.
    pub k: Rows<'a>,
    /// `[t, columns]`, at most [`COLUMNS`].
    pub v: Rows<'a>,
    /// `[t, 1]` or `[t, n]`.
    pub decay: Rows<'a>,
    /// `[t, 1]`.
    pub scale: Rows<'a>,
    /// What is looked up.
    pub erase: Option<Erase<'a>>,
    /// Factor of `v` in `y`.
    pub skip: f32,
    /// `[n, width]` with `width` the columns, rounded up to whole vectors.
    pub state: &'a mut [f32],
    /// `[t, width]`.
    pub y: &'a mut [f32],
}

fn head<V: Vector>(s: HeadScan<'_>) {
    let (t, n, width) = (s.k.rows, s.k.cols, s.v.cols.next_multiple_of(LANES));
    let fits = |x: Rows<'_>, cols: usize| x.rows == t && x.cols == cols;
    assert!((1..=COLUMNS).contains(&s.v.cols) && s.v.rows == t && n > 0);
    assert!(fits(s.q, n) && fits(s.scale, 1) && (fits(s.decay, 1) || fits(s.decay, n)));
    if let Some(e) = &s.erase {
        assert!(fits(e.key, n) && fits(e.factor, 1) && e.at.is_none_or(|at| fits(at, n)));
    }
    assert!(s.state.len() == n * width && s.y.len() == t * width);
    // SAFETY: the table of `V` was handed out after detection.
    unsafe { V::call(Head(s)) }
}

struct Head<'a>(HeadScan<'a>);

impl Kernel for Head<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let wide = self.0.v.cols > LANES;
        // SAFETY: `head` has checked all lengths.
        unsafe {
            match (wide, self.0.erase) {
                (false, None) => tokens::<V, 1, PLAIN>(self.0),
                (true, None) => tokens::<V, 2, PLAIN>(self.0),
                (false, Some(Erase { at: None, .. })) => tokens::<V, 1, TO_KEY>(self.0),
                (true, Some(Erase { at: None, .. })) => tokens::<V, 2, TO_KEY>(self.0),
                (false, Some(_)) => tokens::<V, 1, ELSEWHERE>(self.0),
                (true, Some(_)) => tokens::<V, 2, ELSEWHERE>(self.0),
            }
        }
    }
}

/// Nothing is looked up.
const PLAIN: u8 = 0;
/// What was found is added to the key.
const TO_KEY: u8 = 1;
/// What was found is added elsewhere.
const ELSEWHERE: u8 = 2;

/// # Safety
/// That of [`Vector`]'s functions; lengths are those that `head` checks, for `N` vectors and this kind of [`Erase`].
#[inline(always)]
unsafe fn tokens<V: Vector, const N: usize, const ERASE: u8>(s: HeadScan<'_>) {
    let (n, step) = (s.k.cols, usize::from(s.decay.cols > 1));
    let state = s.state.as_mut_ptr();
    // SAFETY: offsets into the state are below `n * N * LANES`, its length; rows are slices of the checked lengths.
    unsafe {
        let mut found = [V::splat(0.0); N];
        if let Some(e) = s.erase.filter(|_| s.k.rows > 0) {
            let key = e.key.row(0);
            for (i, key) in key.iter().enumerate() {
                for (j, found) in found.iter_mut().enumerate() {
                    *found = V::fma(V::load(state.add((i * N + j) * LANES)), V::splat(*key), *found);
                }
            }
        }
        for t in 0..s.k.rows {
            let (q, k, decay) = (s.q.row(t).as_ptr(), s.k.row(t).as_ptr(), s.decay.row(t).as_ptr());
            // The token after the last finds something that nobody looks at.
            let next = (t + 1).min(s.k.rows - 1);
            let (at, key) = match &s.erase {
                Some(e) => (e.at.map_or(k, |at| at.row(t).as_ptr()), e.key.row(next).as_ptr()),
                None => (k, k),
            };
            let v = values::<V, N>(s.v.row(t));
            let (mut taken, scale) = (v, V::splat(s.scale.row(t)[0]));
            if let Some(e) = &s.erase {
                let factor = V::splat(e.factor.row(t)[0]);
                found.iter_mut().for_each(|u| *u = V::mul(*u, factor));
            }
            for (taken, u) in taken.iter_mut().zip(found) {
                *taken = if ERASE == TO_KEY { V::fma(*taken, scale, u) } else { V::mul(*taken, scale) };
            }
            let mut y = [[V::splat(0.0); N]; 2];
            let mut coming = [V::splat(0.0); N];
            for i in 0..n {
                let (q, k) = (V::splat(*q.add(i)), V::splat(*k.add(i)));
                let w = V::splat(*decay.add(i * step));
                let lanes = taken.iter().zip(&found).zip(&mut coming);
                for (j, ((taken, found), coming)) in lanes.enumerate() {
                    let cell = state.add((i * N + j) * LANES);
                    let mut x = V::mul(V::load(cell), w);
                    if ERASE == ELSEWHERE {
                        x = V::fma(*found, V::splat(*at.add(i)), x);
                    }
                    x = V::fma(*taken, k, x);
                    V::store(cell, x);
                    y[i % 2][j] = V::fma(x, q, y[i % 2][j]);
                    if ERASE != PLAIN {
                        *coming = V::fma(x, V::splat(*key.add(i)), *coming);
                    }
                }
            }
            found = coming;
            let out = s.y.as_mut_ptr().add(t * N * LANES);
            for (j, v) in v.iter().enumerate() {
                let sum = V::add(y[0][j], y[1][j]);
                V::store(out.add(j * LANES), V::fma(*v, V::splat(s.skip), sum));
            }
        }
    }
}

/// The values of `row`, at most `N` vectors, and zeros.
///
/// # Safety
/// That of [`Vector`]'s functions.
#[inline(always)]
unsafe fn values<V: Vector, const N: usize>(row: &[f32]) -> [V::F; N] {
    // SAFETY: `LANES` or the remaining values are read.
    unsafe {
        let mut out = [V::splat(0.0); N];
        for (out, lanes) in out.iter_mut().zip(row.chunks(LANES)) {
            *out = match lanes.len() {
                LANES => V::load(lanes.as_ptr()),
                n => V::load_partial(lanes.as_ptr(), n),
            };
        }
        out
    }
}

/// Tokens of at most 16 channels: `dt = softplus(dt)`, `h = exp(dt a) h + dt x b`, `y = Σ h c + d x`.
#[derive(Debug)]
pub(crate) struct ChannelScan<'a> {
    /// `[t, channels]`.
    pub x: Rows<'a>,
    /// `[t, channels]`.
    pub dt: Rows<'a>,
    /// `[t, n]`.
    pub b: Rows<'a>,
    /// `[t, n]`.
    pub c: Rows<'a>,
    /// `[n, 16]`.
    pub a: &'a [f32],
    /// `[channels]`.
    pub d: &'a [f32],
    /// `[n, 16]`.
    pub state: &'a mut [f32],
    /// `[t, 16]`.
    pub y: &'a mut [f32],
}

fn channels<V: Vector>(s: ChannelScan<'_>) {
    let (t, n, width) = (s.x.rows, s.b.cols, s.x.cols);
    assert!((1..=LANES).contains(&width) && s.d.len() == width && s.dt.cols == width && s.c.cols == n);
    assert!([s.dt, s.b, s.c].iter().all(|x| x.rows == t) && s.y.len() == t * LANES);
    assert!(s.a.len() == n * LANES && s.state.len() == n * LANES);
    // SAFETY: the table of `V` was handed out after detection.
    unsafe { V::call(Channels(s)) }
}

struct Channels<'a>(ChannelScan<'a>);

impl Kernel for Channels<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let s = self.0;
        let (a, state) = (s.a.as_ptr(), s.state.as_mut_ptr());
        // SAFETY: `channels` has checked all lengths; offsets into `a` and the state are below `n * LANES`.
        unsafe {
            let [d] = values::<V, 1>(s.d);
            for t in 0..s.x.rows {
                let ([x], [dt]) = (values::<V, 1>(s.x.row(t)), values::<V, 1>(s.dt.row(t)));
                let dt = softplus::<V>(dt);
                let (taken, mut y) = (V::mul(dt, x), V::mul(d, x));
                for (i, (b, c)) in s.b.row(t).iter().zip(s.c.row(t)).enumerate() {
                    let cell = state.add(i * LANES);
                    let decay = V::exp(V::mul(dt, V::load(a.add(i * LANES))));
                    let h = V::fma(taken, V::splat(*b), V::mul(V::load(cell), decay));
                    V::store(cell, h);
                    y = V::fma(h, V::splat(*c), y);
                }
                V::store(s.y.as_mut_ptr().add(t * LANES), y);
            }
        }
    }
}

/// `ln(1 + e^x)`: `max(x, 0) + ln(1 + z)` with `z = e^-|x|`, and `ln(1 + z) = 2 atanh(z / (2 + z))`, whose series is cut
/// off at `2e-9`.
///
/// # Safety
/// That of [`Vector`]'s functions.
#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "arithmetic in registers, under the contract of Vector")]
pub(super) unsafe fn softplus<V: Vector>(x: V::F) -> V::F {
    let z = V::exp(V::neg(V::abs(x)));
    let s = V::div(z, V::add(z, V::splat(2.0)));
    let square = V::mul(s, s);
    let mut p = V::splat(2.0 / 15.0);
    for odd in [13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        p = V::fma(p, square, V::splat(2.0 / odd));
    }
    V::fma(p, s, V::max(V::splat(0.0), x))
}

fn combine<V: Vector>(factors: &[f32], w: Rows<'_>, bias: &[f32], out: &mut [f32]) {
    let n = out.len();
    assert!(w.rows == factors.len() && w.cols == n && bias.len() == n);
    // SAFETY: the table of `V` was handed out after detection.
    unsafe { V::call(Combine { factors, w, bias, out }) }
}

struct Combine<'a> {
    factors: &'a [f32],
    w: Rows<'a>,
    bias: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Combine<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Self { factors, w, bias, out } = self;
        // SAFETY: all rows are as long as `out`, of which a part of four vectors at most is read and written.
        unsafe {
            for (i, out) in out.chunks_mut(4 * LANES).enumerate() {
                let part = i * 4 * LANES..i * 4 * LANES + out.len();
                let mut sums = values::<V, 4>(&bias[part.clone()]);
                for (j, factor) in factors.iter().enumerate() {
                    let row = values::<V, 4>(&w.row(j)[part.clone()]);
                    for (sum, row) in sums.iter_mut().zip(row) {
                        *sum = V::fma(row, V::splat(*factor), *sum);
                    }
                }
                for (out, sum) in out.chunks_mut(LANES).zip(sums) {
                    V::store_partial(out.as_mut_ptr(), sum, out.len());
                }
            }
        }
    }
}

fn conv<V: Vector>(taps: &[&[f32]], kernel: Rows<'_>, bias: Option<&[f32]>, out: &mut [f32]) {
    let n = out.len();
    assert!(taps.iter().all(|x| x.len() == n) && kernel.rows == taps.len() && kernel.cols == n);
    assert!(bias.is_none_or(|b| b.len() == n));
    // SAFETY: the table of `V` was handed out after detection.
    unsafe { V::call(Conv { taps, kernel, bias, out }) }
}

struct Conv<'a> {
    taps: &'a [&'a [f32]],
    kernel: Rows<'a>,
    bias: Option<&'a [f32]>,
    out: &'a mut [f32],
}

impl Kernel for Conv<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Self { taps, kernel, bias, out } = self;
        let n = out.len();
        // SAFETY: all rows have `n` values, of which those from `i` on are read and written, a vector at most.
        unsafe {
            for i in (0..n).step_by(LANES) {
                let rest = (n - i).min(LANES);
                let load = |x: &[f32]| match rest {
                    LANES => V::load(x.as_ptr().add(i)),
                    _ => V::load_partial(x.as_ptr().add(i), rest),
                };
                let mut sum = bias.map_or(V::splat(0.0), load);
                for (j, tap) in taps.iter().enumerate() {
                    sum = V::fma(load(kernel.row(j)), load(tap), sum);
                }
                match rest {
                    LANES => V::store(out.as_mut_ptr().add(i), sum),
                    _ => V::store_partial(out.as_mut_ptr().add(i), sum, rest),
                }
            }
        }
    }
}
