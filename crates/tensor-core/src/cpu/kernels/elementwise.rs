//! Norms, activations, rope and the rest of what touches each value of a row once. No matrices, no threads.

use half::f16;

use super::vector::{Kernel, LANES, Vector};
use crate::{Activation, Pairing};

/// The elementwise kernels of one instruction set. Lengths are checked; results depend on nothing but the values.
#[derive(Debug)]
pub(crate) struct Elementwise {
    /// `x / sqrt(mean(x²) + eps) * w` for `x` and `out` as long as `w`.
    pub rms_norm: fn(x: &[f32], w: &[f32], eps: f32, out: &mut [f32]),
    /// `(x - mean) / sqrt(var + eps) * w + bias` for operands as long as `w`.
    pub layer_norm: LayerNormFn,
    /// `x = act(x)`.
    pub activate: fn(act: Activation, x: &mut [f32]),
    /// `out = act(gate) * up`.
    pub gate: fn(act: Activation, gate: &[f32], up: &[f32], out: &mut [f32]),
    /// `x += y`.
    pub add: fn(x: &mut [f32], y: &[f32]),
    /// `x *= factor`.
    pub scale: fn(x: &mut [f32], factor: f32),
    /// `x = cap * tanh(x / cap)`.
    pub softcap: fn(x: &mut [f32], cap: f32),
    /// The row with its heads turned.
    pub rope: fn(x: &[f32], turn: RopeTurn<'_>, out: &mut [f32]),
    /// [`rope`](Self::rope), then [`narrow`](Self::narrow).
    pub rope_narrow: fn(x: &[f32], turn: RopeTurn<'_>, out: &mut [f16]),
    /// `x` in half precision. Values beyond its range become its largest, so that a stray outlier does not turn
    /// scores into NaN.
    pub narrow: fn(x: &[f32], out: &mut [f16]),
}

/// Takes `x`, `w`, the bias, `eps` and where the result goes.
type LayerNormFn = fn(&[f32], &[f32], Option<&[f32]>, f32, &mut [f32]);

/// How each head of a row is turned: pair `i` by the angle of `cos[i]` and `sin[i]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RopeTurn<'a> {
    /// Cosines, one a pair, times the rope's scale.
    pub cos: &'a [f32],
    /// Sines, likewise.
    pub sin: &'a [f32],
    /// Values of a head. The first `2 * cos.len()` are turned.
    pub head_dim: usize,
    /// How pairs lie in a head.
    pub pairing: Pairing,
}

impl Elementwise {
    /// The kernels of `V`. Only for a table that is handed out after detection.
    pub(super) const fn of<V: Vector>() -> Self {
        Self {
            rms_norm: rms_norm::<V>,
            layer_norm: layer_norm::<V>,
            activate: activate::<V>,
            gate: gate::<V>,
            add: add::<V>,
            scale: |x, factor| map::<V, _>(x, Scale(factor)),
            softcap: |x, cap| map::<V, _>(x, Softcap(cap)),
            rope: rope::<V, f32>,
            rope_narrow: rope::<V, f16>,
            narrow: narrow::<V>,
        }
    }
}

fn rms_norm<V: Vector>(x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len() == w.len() && out.len() == w.len());
    // SAFETY: the table of `V` was handed out after detection.
    unsafe { V::call(RmsNorm { x, w, eps, out }) }
}

fn layer_norm<V: Vector>(x: &[f32], w: &[f32], bias: Option<&[f32]>, eps: f32, out: &mut [f32]) {
    assert!(x.len() == w.len() && out.len() == w.len() && bias.is_none_or(|b| b.len() == w.len()));
    // SAFETY: the table of `V` was handed out after detection.
    unsafe { V::call(LayerNorm { x, w, bias, eps, out }) }
}

fn activate<V: Vector>(act: Activation, x: &mut [f32]) {
    match act {
        Activation::Identity => {}
        Activation::Silu => map::<V, _>(x, Silu),
        Activation::Gelu => map::<V, _>(x, Gelu),
        Activation::GeluTanh => map::<V, _>(x, GeluTanh),
        Activation::Relu => map::<V, _>(x, Relu),
        Activation::Relu2 => map::<V, _>(x, Relu2),
        Activation::Sigmoid => map::<V, _>(x, Sigmoid),
        Activation::Clip { limit } => map::<V, _>(x, Clip(limit)),
        Activation::XIelu { positive, negative, slope } => {
            map::<V, _>(x, XIelu { positive, negative, slope })
        }
        Activation::ClippedSwish { alpha, limit } => map::<V, _>(x, ClippedSwish { alpha, limit }),
    }
}

fn gate<V: Vector>(act: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    match act {
        Activation::Identity => gated::<V, _>(gate, up, out, Identity),
        Activation::Silu => gated::<V, _>(gate, up, out, Silu),
        Activation::Gelu => gated::<V, _>(gate, up, out, Gelu),
        Activation::GeluTanh => gated::<V, _>(gate, up, out, GeluTanh),
        Activation::Relu => gated::<V, _>(gate, up, out, Relu),
        Activation::Relu2 => gated::<V, _>(gate, up, out, Relu2),
        Activation::Sigmoid => gated::<V, _>(gate, up, out, Sigmoid),
        Activation::Clip { limit } => gated::<V, _>(gate, up, out, Clip(limit)),
        Activation::XIelu { positive, negative, slope } => {
            gated::<V, _>(gate, up, out, XIelu { positive, negative, slope });
        }
        Activation::ClippedSwish { alpha, limit } => {
            gated::<V, _>(gate, up, out, ClippedSwish { alpha, limit });
        }
    }
}

fn gated<V: Vector, A: Unary>(gate: &[f32], up: &[f32], out: &mut [f32], act: A) {
    assert!(gate.len() == out.len() && up.len() == out.len());
    let (n, x, y, out) = (out.len(), gate.as_ptr(), up.as_ptr(), out.as_mut_ptr());
    // SAFETY: the table of `V` was handed out after detection; the three slices have `n` values.
    unsafe { V::call(Zip { n, x, y, out, op: Gated(act) }) }
}

fn add<V: Vector>(x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len());
    let (n, out) = (x.len(), x.as_mut_ptr());
    // SAFETY: the table of `V` was handed out after detection; both slices have `n` values, and those at `out` are
    // read before they are written.
    unsafe { V::call(Zip { n, x: out, y: y.as_ptr(), out, op: Add }) }
}

fn rope<V: Vector, T: Stored>(x: &[f32], turn: RopeTurn<'_>, out: &mut [T]) {
    let pairs = turn.cos.len();
    assert!(turn.sin.len() == pairs && 2 * pairs <= turn.head_dim && x.len().is_multiple_of(turn.head_dim));
    assert_eq!(x.len(), out.len());
    // SAFETY: the table of `V` was handed out after detection.
    unsafe { V::call(Turn { x, turn, out }) }
}

fn narrow<V: Vector>(x: &[f32], out: &mut [f16]) {
    assert_eq!(x.len(), out.len());
    // SAFETY: the table of `V` was handed out after detection.
    unsafe { V::call(Convert { x, out }) }
}

/// `x = op(x)`.
fn map<V: Vector, O: Unary>(x: &mut [f32], op: O) {
    // SAFETY: the table of `V` was handed out after detection.
    unsafe { V::call(Map { x, op }) }
}

/// A function of one value.
trait Unary {
    /// # Safety
    /// That of [`Vector`]'s functions.
    unsafe fn apply<V: Vector>(&self, x: V::F) -> V::F;

    /// What is done to `y` before the function of another value multiplies it.
    ///
    /// # Safety
    /// That of [`Vector`]'s functions.
    #[inline(always)]
    unsafe fn open<V: Vector>(&self, y: V::F) -> V::F {
        y
    }
}

/// A function of two values.
trait Binary {
    /// # Safety
    /// That of [`Vector`]'s functions.
    unsafe fn apply<V: Vector>(&self, x: V::F, y: V::F) -> V::F;
}

struct Identity;
struct Silu;
struct Gelu;
struct GeluTanh;
struct Relu;
struct Relu2;
struct Sigmoid;
struct Clip(f32);
struct XIelu {
    positive: f32,
    negative: f32,
    slope: f32,
}
struct ClippedSwish {
    alpha: f32,
    limit: f32,
}
struct Scale(f32);
struct Softcap(f32);
struct Add;
struct Gated<A>(A);

impl Unary for Identity {
    #[inline(always)]
    unsafe fn apply<V: Vector>(&self, x: V::F) -> V::F {
        x
    }
}

#[expect(unsafe_op_in_unsafe_fn, reason = "arithmetic in registers, under the contract of Unary")]
impl Unary for Silu {
    #[inline(always)]
    unsafe fn apply<V: Vector>(&self, x: V::F) -> V::F {
        V::div(x, V::add(V::splat(1.0), V::exp(V::neg(x))))
    }
}

#[expect(unsafe_op_in_unsafe_fn, reason = "arithmetic in registers, under the contract of Unary")]
impl Unary for Gelu {
    /// `max(x, 0) - |x| erfc(|x|/√2) / 2`. With `z = |x|/√2` and `t = 1 / (1 + 0.4 z)`, `erfc(z) exp(z²) / t` is a
    /// polynomial in `t`: the Chebyshev expansion of degree 9 over `z <= 10.2`, relative error `1.6e-8`.
    #[inline(always)]
    unsafe fn apply<V: Vector>(&self, x: V::F) -> V::F {
        // From here on Φ(-|x|) is 0. The operands are in the order that keeps NaN.
        let a = V::min(V::splat(14.4), V::abs(x));
        let t =
            V::div(V::splat(1.0), V::fma(a, V::splat(0.4 * std::f32::consts::FRAC_1_SQRT_2), V::splat(1.0)));
        let u = V::fma(t, V::splat(2.490_196), V::splat(-1.490_196));
        let mut p = V::splat(-8.761_353e-6);
        p = V::fma(p, u, V::splat(2.588_680_6e-5));
        p = V::fma(p, u, V::splat(1.154_909_7e-4));
        p = V::fma(p, u, V::splat(-3.740_752_6e-4));
        p = V::fma(p, u, V::splat(-1.796_036_7e-3));
        p = V::fma(p, u, V::splat(2.909_145_5e-3));
        p = V::fma(p, u, V::splat(3.929_648e-2));
        p = V::fma(p, u, V::splat(1.447_223_6e-1));
        p = V::fma(p, u, V::splat(3.225_642_4e-1));
        p = V::fma(p, u, V::splat(4.925_452_7e-1));
        // exp(-x²/2), with what rounding x² lost as a factor.
        let square = V::mul(a, a);
        let lost = V::fma(a, a, V::neg(square));
        let e = V::exp(V::mul(square, V::splat(-0.5)));
        let e = V::mul(e, V::fma(lost, V::splat(-0.5), V::splat(1.0)));
        let tail = V::mul(V::mul(V::mul(p, t), V::splat(0.5)), e);
        V::sub(V::max(V::splat(0.0), x), V::mul(a, tail))
    }
}

#[expect(unsafe_op_in_unsafe_fn, reason = "arithmetic in registers, under the contract of Unary")]
impl Unary for GeluTanh {
    /// `(1 + tanh u) / 2` is the logistic function of `2 u`.
    #[inline(always)]
    unsafe fn apply<V: Vector>(&self, x: V::F) -> V::F {
        // 2 √(2/π), negative. Far out, where x³ overflows, the quotient is x or 0.
        let c = V::splat(-1.595_769);
        let u = V::mul(V::mul(c, x), V::fma(V::mul(x, x), V::splat(0.044_715), V::splat(1.0)));
        V::div(x, V::add(V::splat(1.0), V::exp(u)))
    }
}

#[expect(unsafe_op_in_unsafe_fn, reason = "arithmetic in registers, under the contract of Unary")]
impl Unary for Relu {
    #[inline(always)]
    unsafe fn apply<V: Vector>(&self, x: V::F) -> V::F {
        V::max(V::splat(0.0), x)
    }
}

#[expect(unsafe_op_in_unsafe_fn, reason = "arithmetic in registers, under the contract of Unary")]
impl Unary for Sigmoid {
    #[inline(always)]
    unsafe fn apply<V: Vector>(&self, x: V::F) -> V::F {
        V::div(V::splat(1.0), V::add(V::splat(1.0), V::exp(V::neg(x))))
    }
}

#[expect(unsafe_op_in_unsafe_fn, reason = "arithmetic in registers, under the contract of Unary")]
impl Unary for Clip {
    /// The operands are in the order that keeps NaN.
    #[inline(always)]
    unsafe fn apply<V: Vector>(&self, x: V::F) -> V::F {
        V::max(V::splat(-self.0), V::min(V::splat(self.0), x))
    }
}

#[expect(unsafe_op_in_unsafe_fn, reason = "arithmetic in registers, under the contract of Unary")]
impl Unary for XIelu {
    /// Both branches are 0 on the other's side.
    #[inline(always)]
    unsafe fn apply<V: Vector>(&self, x: V::F) -> V::F {
        let (p, n) = (V::max(V::splat(0.0), x), V::min(V::splat(0.0), x));
        let below = V::sub(V::sub(V::exp(n), V::splat(1.0)), n);
        let y = V::fma(V::mul(p, V::splat(self.positive)), p, V::mul(x, V::splat(self.slope)));
        V::fma(below, V::splat(self.negative), y)
    }
}

#[expect(unsafe_op_in_unsafe_fn, reason = "arithmetic in registers, under the contract of Unary")]
impl Unary for ClippedSwish {
    /// The operands of `min` are in the order that keeps NaN, as in [`Clip`].
    #[inline(always)]
    unsafe fn apply<V: Vector>(&self, x: V::F) -> V::F {
        let x = V::min(V::splat(self.limit), x);
        let e = V::exp(V::neg(V::mul(x, V::splat(self.alpha))));
        V::div(x, V::add(V::splat(1.0), e))
    }
    #[inline(always)]
    unsafe fn open<V: Vector>(&self, y: V::F) -> V::F {
        V::add(Clip(self.limit).apply::<V>(y), V::splat(1.0))
    }
}

#[expect(unsafe_op_in_unsafe_fn, reason = "arithmetic in registers, under the contract of Unary")]
impl Unary for Relu2 {
    #[inline(always)]
    unsafe fn apply<V: Vector>(&self, x: V::F) -> V::F {
        let r = V::max(V::splat(0.0), x);
        V::mul(r, r)
    }
}

#[expect(unsafe_op_in_unsafe_fn, reason = "arithmetic in registers, under the contract of Unary")]
impl Unary for Scale {
    #[inline(always)]
    unsafe fn apply<V: Vector>(&self, x: V::F) -> V::F {
        V::mul(x, V::splat(self.0))
    }
}

#[expect(unsafe_op_in_unsafe_fn, reason = "arithmetic in registers, under the contract of Unary")]
impl Unary for Softcap {
    #[inline(always)]
    unsafe fn apply<V: Vector>(&self, x: V::F) -> V::F {
        softcap::<V>(x, self.0)
    }
}

#[expect(unsafe_op_in_unsafe_fn, reason = "arithmetic in registers, under the contract of Binary")]
impl Binary for Add {
    #[inline(always)]
    unsafe fn apply<V: Vector>(&self, x: V::F, y: V::F) -> V::F {
        V::add(x, y)
    }
}

#[expect(unsafe_op_in_unsafe_fn, reason = "arithmetic in registers, under the contract of Binary")]
impl<A: Unary> Binary for Gated<A> {
    #[inline(always)]
    unsafe fn apply<V: Vector>(&self, x: V::F, y: V::F) -> V::F {
        V::mul(self.0.apply::<V>(x), self.0.open::<V>(y))
    }
}

/// `cap * tanh(x / cap)`; tanh is Cephes' `tanhf`: an odd polynomial up to 0.625, `1 - 2 / (e^2u + 1)` beyond.
///
/// # Safety
/// That of [`Vector`]'s functions.
#[inline(always)]
#[expect(unsafe_op_in_unsafe_fn, reason = "arithmetic in registers, under the contract of Vector")]
pub(super) unsafe fn softcap<V: Vector>(x: V::F, cap: f32) -> V::F {
    let u = V::div(x, V::splat(cap));
    let a = V::abs(u);
    let s = V::mul(u, u);
    let mut p = V::splat(-5.704_988_7e-3);
    p = V::fma(p, s, V::splat(2.063_909e-2));
    p = V::fma(p, s, V::splat(-5.373_971_6e-2));
    p = V::fma(p, s, V::splat(1.333_144_2e-1));
    p = V::fma(p, s, V::splat(-3.333_328e-1));
    let near = V::fma(V::mul(p, s), u, u);
    let e = V::exp(V::add(a, a));
    let far = V::sub(V::splat(1.0), V::div(V::splat(2.0), V::add(e, V::splat(1.0))));
    // All bits where a < 0.625, from the sign of the difference; `far` takes the sign of u.
    let below = V::shr(V::to_bits(V::sub(a, V::splat(0.625))), 31);
    let is_near = V::sub_i(V::splat_i(0), below);
    let is_far = V::add_i(below, V::splat_i(-1));
    let sign = V::and(V::to_bits(u), V::splat_i(i32::MIN));
    let far = V::and(is_far, V::or(V::to_bits(far), sign));
    let tanh = V::from_bits(V::or(V::and(is_near, V::to_bits(near)), far));
    V::mul(V::splat(cap), tanh)
}

/// [`map`].
struct Map<'a, O> {
    x: &'a mut [f32],
    op: O,
}

impl<O: Unary> Kernel for Map<'_, O> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let (n, x) = (self.x.len(), self.x.as_mut_ptr());
        let whole = n - n % LANES;
        // SAFETY: the offsets are below `n`, and `n - whole` values follow the last.
        unsafe {
            for i in (0..whole).step_by(LANES) {
                V::store(x.add(i), self.op.apply::<V>(V::load(x.add(i))));
            }
            if whole < n {
                let (x, rest) = (x.add(whole), n - whole);
                V::store_partial(x, self.op.apply::<V>(V::load_partial(x, rest)), rest);
            }
        }
    }
}

/// `out = op(x, y)`. `n` values can be read at `x` and `y` and written at `out`, which may be `x`.
struct Zip<O> {
    n: usize,
    x: *const f32,
    y: *const f32,
    out: *mut f32,
    op: O,
}

impl<O: Binary> Kernel for Zip<O> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Self { n, x, y, out, op } = self;
        let whole = n - n % LANES;
        // SAFETY: this kernel's contract; the offsets are below `n`, and `n - whole` values follow the last.
        unsafe {
            for i in (0..whole).step_by(LANES) {
                V::store(out.add(i), op.apply::<V>(V::load(x.add(i)), V::load(y.add(i))));
            }
            if whole < n {
                let (x, y, rest) = (x.add(whole), y.add(whole), n - whole);
                let z = op.apply::<V>(V::load_partial(x, rest), V::load_partial(y, rest));
                V::store_partial(out.add(whole), z, rest);
            }
        }
    }
}

/// Sums over a row: `Σ x`, or `Σ (x - mean)²`, in four interleaved vectors that are added pairwise at the end.
///
/// # Safety
/// That of [`Vector`]'s functions; `n` values can be read at `x`.
#[inline(always)]
unsafe fn sum<V: Vector, T: Term>(x: *const f32, n: usize, term: T) -> f32 {
    let whole = n - n % LANES;
    // SAFETY: the offsets are below `n`, and `n - whole` values follow the last.
    unsafe {
        let mut sums = [V::splat(0.0); 4];
        let mut i = 0;
        while i + 4 * LANES <= whole {
            sums[0] = term.add::<V>(V::load(x.add(i)), sums[0]);
            sums[1] = term.add::<V>(V::load(x.add(i + LANES)), sums[1]);
            sums[2] = term.add::<V>(V::load(x.add(i + 2 * LANES)), sums[2]);
            sums[3] = term.add::<V>(V::load(x.add(i + 3 * LANES)), sums[3]);
            i += 4 * LANES;
        }
        while i < whole {
            sums[0] = term.add::<V>(V::load(x.add(i)), sums[0]);
            i += LANES;
        }
        if whole < n {
            // The lanes past the end must not count: their term is taken as that of a row of one value.
            let mut rest = [0.0; LANES];
            V::store(rest.as_mut_ptr(), term.add::<V>(V::load_partial(x.add(i), n - i), V::splat(0.0)));
            sums[1] = V::add(sums[1], V::load_partial(rest.as_ptr(), n - i));
        }
        V::reduce_sum(V::add(V::add(sums[0], sums[1]), V::add(sums[2], sums[3])))
    }
}

/// What [`sum`] adds for a value.
trait Term {
    /// # Safety
    /// That of [`Vector`]'s functions.
    unsafe fn add<V: Vector>(&self, x: V::F, sum: V::F) -> V::F;
}

struct Value;
struct SquareFrom(f32);

#[expect(unsafe_op_in_unsafe_fn, reason = "arithmetic in registers, under the contract of Term")]
impl Term for Value {
    #[inline(always)]
    unsafe fn add<V: Vector>(&self, x: V::F, sum: V::F) -> V::F {
        V::add(x, sum)
    }
}

#[expect(unsafe_op_in_unsafe_fn, reason = "arithmetic in registers, under the contract of Term")]
impl Term for SquareFrom {
    #[inline(always)]
    unsafe fn add<V: Vector>(&self, x: V::F, sum: V::F) -> V::F {
        let d = V::sub(x, V::splat(self.0));
        V::fma(d, d, sum)
    }
}

struct RmsNorm<'a> {
    x: &'a [f32],
    w: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let (n, x, w, out) = (self.x.len(), self.x.as_ptr(), self.w.as_ptr(), self.out.as_mut_ptr());
        let whole = n - n % LANES;
        // SAFETY: the three slices have `n` values, the offsets are below, and `n - whole` follow the last.
        unsafe {
            let mean = sum::<V, _>(x, n, SquareFrom(0.0)) / n as f32;
            let inv = V::splat(1.0 / (mean + self.eps).sqrt());
            for i in (0..whole).step_by(LANES) {
                V::store(out.add(i), V::mul(V::mul(V::load(x.add(i)), inv), V::load(w.add(i))));
            }
            if whole < n {
                let rest = n - whole;
                let y = V::mul(V::load_partial(x.add(whole), rest), inv);
                V::store_partial(out.add(whole), V::mul(y, V::load_partial(w.add(whole), rest)), rest);
            }
        }
    }
}

struct LayerNorm<'a> {
    x: &'a [f32],
    w: &'a [f32],
    bias: Option<&'a [f32]>,
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for LayerNorm<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let (n, x, w, out) = (self.x.len(), self.x.as_ptr(), self.w.as_ptr(), self.out.as_mut_ptr());
        // SAFETY: all slices have `n` values, the offsets are below, and `rest` values follow each.
        unsafe {
            let mean = sum::<V, _>(x, n, Value) / n as f32;
            let var = sum::<V, _>(x, n, SquareFrom(mean)) / n as f32;
            let (mean, inv) = (V::splat(mean), V::splat(1.0 / (var + self.eps).sqrt()));
            for i in (0..n).step_by(LANES) {
                let rest = (n - i).min(LANES);
                let b = match self.bias {
                    Some(bias) => V::load_partial(bias.as_ptr().add(i), rest),
                    None => V::splat(0.0),
                };
                let y = V::mul(V::sub(V::load_partial(x.add(i), rest), mean), inv);
                V::store_partial(out.add(i), V::fma(y, V::load_partial(w.add(i), rest), b), rest);
            }
        }
    }
}

/// How values are stored.
trait Stored: Sized {
    /// # Safety
    /// That of [`Vector`]'s functions; `n <= 16` values can be written at `p`.
    unsafe fn put<V: Vector>(p: *mut Self, x: V::F, n: usize);
}

#[expect(unsafe_op_in_unsafe_fn, reason = "one store, under the contract of Stored")]
impl Stored for f32 {
    #[inline(always)]
    unsafe fn put<V: Vector>(p: *mut Self, x: V::F, n: usize) {
        V::store_partial(p, x, n);
    }
}

#[expect(unsafe_op_in_unsafe_fn, reason = "one store, under the contract of Stored")]
impl Stored for f16 {
    #[inline(always)]
    unsafe fn put<V: Vector>(p: *mut Self, x: V::F, n: usize) {
        // In this order of operands a NaN passes.
        let most = Self::MAX.to_f32_const();
        let x = V::min(V::splat(most), V::max(V::splat(-most), x));
        if n == LANES {
            V::store_f16(p.cast(), x);
        } else {
            V::store_partial_f16(p.cast(), x, n);
        }
    }
}

/// `out = x`, of equal lengths.
struct Convert<'a, T> {
    x: &'a [f32],
    out: &'a mut [T],
}

impl<T: Stored> Kernel for Convert<'_, T> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let (x, out) = (self.x.as_ptr(), self.out.as_mut_ptr());
        for i in (0..self.x.len()).step_by(LANES) {
            let n = (self.x.len() - i).min(LANES);
            // SAFETY: both slices are of one length, and `n` values follow `i`.
            unsafe { T::put::<V>(out.add(i), V::load_partial(x.add(i), n), n) };
        }
    }
}

/// [`rope`].
struct Turn<'a, T> {
    x: &'a [f32],
    turn: RopeTurn<'a>,
    out: &'a mut [T],
}

impl<T: Stored> Kernel for Turn<'_, T> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let RopeTurn { cos, sin, head_dim, pairing } = self.turn;
        let pairs = cos.len();
        for (x, out) in self.x.chunks_exact(head_dim).zip(self.out.chunks_exact_mut(head_dim)) {
            // SAFETY: the caller's contract; both heads and tables have the lengths that the functions want.
            unsafe {
                match pairing {
                    Pairing::Halves => halves::<V, T>(x.as_ptr(), [cos, sin], out.as_mut_ptr()),
                    Pairing::Interleaved => interleaved::<V, T>(x, [cos, sin], out.as_mut_ptr()),
                }
            }
            let (x, out) = (&x[2 * pairs..], &mut out[2 * pairs..]);
            // SAFETY: the caller's contract.
            unsafe { Convert { x, out }.run::<V>() };
        }
    }
}

/// Turns `(x[i], x[pairs + i])`.
///
/// # Safety
/// That of [`Vector`]'s functions; `x` and `out` have `2 * pairs` values, the tables `pairs`.
#[inline(always)]
unsafe fn halves<V: Vector, T: Stored>(x: *const f32, [cos, sin]: [&[f32]; 2], out: *mut T) {
    let pairs = cos.len();
    for i in (0..pairs).step_by(LANES) {
        let n = (pairs - i).min(LANES);
        // SAFETY: this function's contract; `n` pairs follow `i`.
        unsafe {
            let (a, b) = (V::load_partial(x.add(i), n), V::load_partial(x.add(pairs + i), n));
            let c = V::load_partial(cos.as_ptr().add(i), n);
            let s = V::load_partial(sin.as_ptr().add(i), n);
            T::put::<V>(out.add(i), V::fma(a, c, V::neg(V::mul(b, s))), n);
            T::put::<V>(out.add(pairs + i), V::fma(b, c, V::mul(a, s)), n);
        }
    }
}

/// Turns `(x[2 i], x[2 i + 1])`.
///
/// # Safety
/// That of [`Vector`]'s functions; `out` has `2 * pairs` values.
#[inline(always)]
unsafe fn interleaved<V: Vector, T: Stored>(x: &[f32], [cos, sin]: [&[f32]; 2], out: *mut T) {
    let pairs = cos.len();
    for first in (0..pairs).step_by(LANES / 2) {
        let n = (pairs - first).min(LANES / 2);
        let mut turned = [0.0; LANES];
        for i in 0..n {
            let (a, b) = (x[2 * (first + i)], x[2 * (first + i) + 1]);
            let (c, s) = (cos[first + i], sin[first + i]);
            turned[2 * i] = a.mul_add(c, -(b * s));
            turned[2 * i + 1] = b.mul_add(c, a * s);
        }
        // SAFETY: this function's contract; `n` pairs follow `first`.
        unsafe { T::put::<V>(out.add(2 * first), V::load(turned.as_ptr()), 2 * n) };
    }
}

#[cfg(test)]
mod tests;
