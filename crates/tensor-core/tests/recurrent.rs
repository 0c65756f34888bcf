//! Layers with a state: each operation against its definition in `f64`, on the backends' own kernels and on the default
//! bodies; and that how a sequence is divided among calls changes no bit, or on MLX nothing that matters. `MLX_DEVICE=mlx-gpu`
//! takes the graphics card.
#![allow(clippy::needless_range_loop, clippy::unwrap_used, missing_docs)]

mod reference;

use std::ops::Range;

use reference::plain::Plain;
use reference::{Random, close};
use rillm_tensor_core::cpu::{Cpu, Precision};
use rillm_tensor_core::{
    Activation, Error, LinearAttention, Recurrent, RgLru, Rule, SelectiveScan, ShortConv, StateSpan, States,
};

type Matrix = Vec<Vec<f64>>;

/// What an operation of this test gives: rows, and a state for each span.
type Output<B> = rillm_tensor_core::Result<(
    <B as rillm_tensor_core::Backend>::Tensor,
    States<<B as rillm_tensor_core::Backend>::Tensor>,
)>;

fn upload<B: Recurrent>(be: &B, values: &[f32], cols: usize) -> B::Tensor {
    be.upload(values.len() / cols, cols, values).unwrap()
}

fn read<B: Recurrent>(be: &B, x: &B::Tensor) -> Vec<f32> {
    let mut out = Vec::new();
    be.read(x, &mut out).unwrap();
    out
}

fn wide(x: &[f32], cols: usize) -> Matrix {
    x.chunks(cols).map(|row| row.iter().map(|x| f64::from(*x)).collect()).collect()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// Operands of one operation, uploaded, and the operation over some of their rows.
trait Case<B: Recurrent> {
    /// Values of a state.
    fn state(&self) -> [usize; 2];
    fn rows(&self) -> usize;
    /// Runs rows `rows`, divided into spans of `lens`.
    fn run(&self, be: &B, rows: Range<usize>, spans: &[StateSpan<'_, B::Tensor>]) -> Output<B>;
    /// Rows and final state by definition, from `state` (`None`: the start) on.
    fn wanted(&self, rows: Range<usize>, state: Option<&Matrix>) -> (Matrix, Matrix);
}

fn rows_of(x: &[f32], cols: usize, rows: &Range<usize>) -> Vec<f32> {
    x[rows.start * cols..rows.end * cols].to_vec()
}

struct Conv {
    c: usize,
    k: usize,
    x: Vec<f32>,
    kernel: Vec<f32>,
    bias: Option<Vec<f32>>,
    act: Option<Activation>,
}

impl<B: Recurrent> Case<B> for Conv {
    fn state(&self) -> [usize; 2] {
        [self.k - 1, self.c]
    }
    fn rows(&self) -> usize {
        self.x.len() / self.c
    }
    fn run(&self, be: &B, rows: Range<usize>, spans: &[StateSpan<'_, B::Tensor>]) -> Output<B> {
        let x = upload(be, &rows_of(&self.x, self.c, &rows), self.c);
        let kernel = upload(be, &self.kernel, self.c);
        let bias = self.bias.as_ref().map(|b| upload(be, b, self.c));
        be.short_conv(&x, &ShortConv { kernel: &kernel, bias: bias.as_ref(), act: self.act }, spans)
    }
    fn wanted(&self, rows: Range<usize>, state: Option<&Matrix>) -> (Matrix, Matrix) {
        let (c, k) = (self.c, self.k);
        let mut seen = state.cloned().unwrap_or_else(|| vec![vec![0.0; c]; k - 1]);
        seen.extend(wide(&rows_of(&self.x, c, &rows), c));
        let kernel = wide(&self.kernel, c);
        let y = (0..rows.len()).map(|i| {
            let of = |j: usize| -> f64 {
                let sum: f64 = (0..k).map(|tap| kernel[tap][j] * seen[i + tap][j]).sum();
                let sum = sum + self.bias.as_ref().map_or(0.0, |b| f64::from(b[j]));
                self.act.map_or(sum, |act| reference::activation(act, sum))
            };
            (0..c).map(of).collect()
        });
        let y = y.collect();
        (y, seen.split_off(rows.len()))
    }
}

struct Selective {
    c: usize,
    n: usize,
    /// x, dt: `[t, c]`; b, c: `[t, n]`; a: `[n, c]`; d: `[1, c]`.
    operands: [Vec<f32>; 6],
}

impl<B: Recurrent> Case<B> for Selective {
    fn state(&self) -> [usize; 2] {
        [self.n, self.c]
    }
    fn rows(&self) -> usize {
        self.operands[0].len() / self.c
    }
    fn run(&self, be: &B, rows: Range<usize>, spans: &[StateSpan<'_, B::Tensor>]) -> Output<B> {
        let (c, n) = (self.c, self.n);
        let part = |i: usize, cols: usize| upload(be, &rows_of(&self.operands[i], cols, &rows), cols);
        let (x, dt, b, read) = (part(0, c), part(1, c), part(2, n), part(3, n));
        let (a, d) = (upload(be, &self.operands[4], c), upload(be, &self.operands[5], c));
        be.selective_scan(&x, &SelectiveScan { dt: &dt, b: &b, c: &read, a: &a, d: &d }, spans)
    }
    fn wanted(&self, rows: Range<usize>, state: Option<&Matrix>) -> (Matrix, Matrix) {
        let (c, n) = (self.c, self.n);
        let [x, dt, b, read, a, d] =
            [(0, c), (1, c), (2, n), (3, n), (4, c), (5, c)].map(|(i, cols)| wide(&self.operands[i], cols));
        let mut h = state.cloned().unwrap_or_else(|| vec![vec![0.0; c]; n]);
        let mut y = Matrix::new();
        for t in rows {
            y.push(
                (0..c)
                    .map(|j| {
                        let step = softplus(dt[t][j]);
                        for i in 0..n {
                            h[i][j] = (step * a[i][j]).exp() * h[i][j] + step * x[t][j] * b[t][i];
                        }
                        (0..n).map(|i| h[i][j] * read[t][i]).sum::<f64>() + d[0][j] * x[t][j]
                    })
                    .collect(),
            );
        }
        (y, h)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Constant,
    Ssd,
    Delta,
    DeltaByKey,
    Wkv7,
}

struct Heads {
    kind: Kind,
    heads: usize,
    key_heads: usize,
    n: usize,
    p: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// The rule's operands and their columns; those of one row apply to all tokens.
    rule: Vec<(Vec<f32>, usize)>,
}

const LIMITS: [f32; 2] = [0.05, 1.5];

impl Heads {
    fn new(random: &mut Random, kind: Kind, [t, heads, key_heads, n, p]: [usize; 5]) -> Self {
        let keys = key_heads * n;
        let mut unit = |rows: usize, cols: usize, scale: f32| (random.values(rows * cols, scale), cols);
        // Negative, as decays are.
        let a: Vec<f32> = unit(1, heads, 1.0).0.iter().map(|x| -x.abs() - 0.1).collect();
        let rule = match kind {
            Kind::Constant => vec![(a.iter().map(|x| x.exp()).collect(), heads)],
            Kind::Ssd => vec![unit(t, heads, 2.0), unit(1, heads, 1.0), (a, heads), unit(1, heads, 1.0)],
            Kind::Delta => vec![unit(t, heads, 2.0), unit(1, heads, 1.0), (a, heads), unit(t, heads, 2.0)],
            Kind::DeltaByKey => {
                vec![unit(t, heads * n, 2.0), unit(1, heads * n, 1.0), (a, heads), unit(t, heads, 2.0)]
            }
            Kind::Wkv7 => {
                let small = 1.0 / (n as f32).sqrt();
                vec![unit(t, keys, 3.0), unit(t, keys, small), unit(t, keys, small)]
            }
        };
        let small = 1.7 / (n as f32).sqrt();
        let [q, k] = [0, 1].map(|_| unit(t, keys, small).0);
        let v = unit(t, heads * p, 1.0).0;
        Self { kind, heads, key_heads, n, p, q, k, v, rule }
    }
}

impl<B: Recurrent> Case<B> for Heads {
    fn state(&self) -> [usize; 2] {
        [self.heads * self.n, self.p]
    }
    fn rows(&self) -> usize {
        self.q.len() / self.key_heads / self.n
    }
    fn run(&self, be: &B, rows: Range<usize>, spans: &[StateSpan<'_, B::Tensor>]) -> Output<B> {
        let (keys, values) = (self.key_heads * self.n, self.heads * self.p);
        // Queries and keys are some columns of wider rows, as of a merged projection.
        let both: Vec<f32> = rows
            .clone()
            .flat_map(|t| [&self.q[t * keys..][..keys], &self.k[t * keys..][..keys]].concat())
            .collect();
        let [q, k] = be.split_cols(upload(be, &both, 2 * keys), [keys; 2]).unwrap();
        let v = upload(be, &rows_of(&self.v, values, &rows), values);
        let rule: Vec<_> = self
            .rule
            .iter()
            .map(|(x, cols)| {
                if x.len() == *cols && self.kind != Kind::Wkv7 {
                    upload(be, x, *cols)
                } else {
                    upload(be, &rows_of(x, *cols, &rows), *cols)
                }
            })
            .collect();
        // Operands of one row that are operands of tokens.
        let rule = match self.kind {
            Kind::Constant => Rule::Constant { decay: &rule[0] },
            Kind::Ssd => {
                Rule::Ssd { dt: &rule[0], dt_bias: &rule[1], a: &rule[2], d: &rule[3], limits: LIMITS }
            }
            Kind::Delta | Kind::DeltaByKey => {
                Rule::Delta { gate: &rule[0], dt_bias: &rule[1], a: &rule[2], beta: &rule[3] }
            }
            Kind::Wkv7 => Rule::Wkv7 { decay: &rule[0], a: &rule[1], b: &rule[2] },
        };
        let p = LinearAttention { q: &q, k: &k, v: &v, heads: self.heads, key_heads: self.key_heads, rule };
        be.linear_attention(&p, spans)
    }
    fn wanted(&self, rows: Range<usize>, state: Option<&Matrix>) -> (Matrix, Matrix) {
        let (n, p) = (self.n, self.p);
        let [q, k] = [&self.q, &self.k].map(|x| wide(x, self.key_heads * n));
        let v = wide(&self.v, self.heads * p);
        let rule: Vec<Matrix> = self.rule.iter().map(|(x, cols)| wide(x, *cols)).collect();
        let mut all = state.cloned().unwrap_or_else(|| vec![vec![0.0; p]; self.heads * n]);
        let mut y = Matrix::new();
        for t in rows {
            let mut out = Vec::new();
            for h in 0..self.heads {
                let key = h / (self.heads / self.key_heads) * n;
                let (q, k, v) = (&q[t][key..][..n], &k[t][key..][..n], &v[t][h * p..][..p]);
                let s = &mut all[h * n..(h + 1) * n];
                let dot =
                    |s: &[Vec<f64>], x: &[f64], j: usize| -> f64 { (0..n).map(|i| s[i][j] * x[i]).sum() };
                let mut skip = 0.0;
                match self.kind {
                    Kind::Constant => {
                        for i in 0..n {
                            for j in 0..p {
                                s[i][j] = rule[0][0][h] * s[i][j] + k[i] * v[j];
                            }
                        }
                    }
                    Kind::Ssd => {
                        let dt =
                            softplus(rule[0][t][h] + rule[1][0][h]).clamp(LIMITS[0].into(), LIMITS[1].into());
                        skip = rule[3][0][h];
                        for i in 0..n {
                            for j in 0..p {
                                s[i][j] = (dt * rule[2][0][h]).exp() * s[i][j] + dt * k[i] * v[j];
                            }
                        }
                    }
                    Kind::Delta | Kind::DeltaByKey => {
                        for i in 0..n {
                            let at = if self.kind == Kind::Delta { h } else { h * n + i };
                            let g = (rule[2][0][h] * softplus(rule[0][t][at] + rule[1][0][at])).exp();
                            s[i].iter_mut().for_each(|x| *x *= g);
                        }
                        for j in 0..p {
                            let delta = sigmoid(rule[3][t][h]) * (v[j] - dot(s, k, j));
                            (0..n).for_each(|i| s[i][j] += k[i] * delta);
                        }
                    }
                    Kind::Wkv7 => {
                        let of = |x: usize| &rule[x][t][h * n..][..n];
                        for j in 0..p {
                            let found = dot(s, of(1), j);
                            for i in 0..n {
                                let w = (-(-0.5f64).exp() * sigmoid(of(0)[i])).exp();
                                s[i][j] = w * s[i][j] + of(2)[i] * found + k[i] * v[j];
                            }
                        }
                    }
                }
                out.extend((0..p).map(|j| dot(s, q, j) + skip * v[j]));
            }
            y.push(out);
        }
        (y, all)
    }
}

struct Lru {
    c: usize,
    /// x, input, recurrent: `[t, c]`; param: `[1, c]`.
    operands: [Vec<f32>; 4],
}

impl<B: Recurrent> Case<B> for Lru {
    fn state(&self) -> [usize; 2] {
        [1, self.c]
    }
    fn rows(&self) -> usize {
        self.operands[0].len() / self.c
    }
    fn run(&self, be: &B, rows: Range<usize>, spans: &[StateSpan<'_, B::Tensor>]) -> Output<B> {
        let part = |i: usize| upload(be, &rows_of(&self.operands[i], self.c, &rows), self.c);
        let (x, input, recurrent) = (part(0), part(1), part(2));
        let param = upload(be, &self.operands[3], self.c);
        be.rg_lru(&x, &RgLru { input: &input, recurrent: &recurrent, param: &param }, spans)
    }
    fn wanted(&self, rows: Range<usize>, state: Option<&Matrix>) -> (Matrix, Matrix) {
        let [x, input, recurrent, param] = [0, 1, 2, 3].map(|i| wide(&self.operands[i], self.c));
        let (mut h, mut y) = (state.map_or_else(|| vec![0.0; self.c], |s| s[0].clone()), Matrix::new());
        for t in rows.clone() {
            for j in 0..self.c {
                let log = -8.0 * sigmoid(recurrent[t][j]) * softplus(param[0][j]);
                let m =
                    if t == rows.start && state.is_none() { 1.0 } else { (1.0 - (2.0 * log).exp()).sqrt() };
                h[j] = log.exp() * h[j] + m * sigmoid(input[t][j]) * x[t][j];
            }
            y.push(h.clone());
        }
        (y, vec![h])
    }
}

fn near(got: &[f32], wanted: &Matrix, what: &str) {
    let wanted: Vec<f64> = wanted.iter().flatten().copied().collect();
    assert_eq!(got.len(), wanted.len(), "{what}");
    for (i, (got, wanted)) in got.iter().zip(wanted).enumerate() {
        close(*got, wanted, 2e-5 * (1.0 + wanted.abs()), &format!("{what}, value {i}"));
    }
}

/// Whether results may depend on how a sequence is divided among calls: within what the definition allows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pieces {
    Same,
    #[cfg_attr(not(feature = "mlx"), expect(dead_code))]
    Near,
}

/// `case` as three sequences that are divided anyhow, against its definition.
fn check<B: Recurrent>(be: &B, random: &mut Random, case: &impl Case<B>, (what, same): (&str, Pieces)) {
    let what = &format!("{}: {what}", be.name());
    let t = case.rows();
    // Two sequences in one call, the second from a state on.
    let (split, first) = (t / 3, random.below(t / 3));
    let (y, states) = case.run(be, 0..first + 1, &[StateSpan { rows: 0..first + 1, state: None }]).unwrap();
    let (wanted, start) = case.wanted(0..first + 1, None);
    near(&read(be, &y), &wanted, what);
    near(&read(be, &states[0]), &start, what);
    let before = read(be, &states[0]);
    let spans =
        [StateSpan { rows: 0..split, state: Some(&states[0]) }, StateSpan { rows: split..t, state: None }];
    let (y, after) = case.run(be, 0..t, &spans).unwrap();
    assert_eq!(be.shape(&after[1]), case.state());
    assert_eq!(read(be, &states[0]), before, "{what}: a state that was given is left alone");
    let (mut rows, state) = case.wanted(0..split, Some(&start));
    near(&read(be, &after[0]), &state, what);
    let (more, end) = case.wanted(split..t, None);
    near(&read(be, &after[1]), &end, what);
    rows.extend(more.clone());
    let whole = read(be, &y);
    near(&whole, &rows, what);
    // The second sequence again, in pieces.
    let (mut at, mut state, mut pieces) = (split, None, Vec::new());
    while at < t {
        let end = t.min(at + 1 + random.below(t / 2));
        let (y, mut next) =
            case.run(be, at..end, &[StateSpan { rows: 0..end - at, state: state.as_ref() }]).unwrap();
        pieces.extend(read(be, &y));
        (at, state) = (end, next.pop());
    }
    let state = read(be, &state.unwrap());
    near(&pieces, &more, &format!("{what}, in pieces"));
    near(&state, &end, &format!("{what}, in pieces"));
    if same == Pieces::Same {
        assert_eq!(pieces[..], whole[whole.len() - pieces.len()..], "{what}: the same bits in pieces");
        assert_eq!(state, read(be, &after[1]), "{what}: the same bits in pieces");
    }
}

/// Rows of the sequences of [`batches`]: on both sides of where chunks end.
const LENGTHS: [usize; 6] = [1, 150, 2, 17, 64, 65];

/// Six sequences together: a token of each, then [`LENGTHS`], then a token of each again.
fn batches<B: Recurrent>(be: &B, case: &impl Case<B>, what: &str) {
    let what = &format!("{}: {what}, sequences together", be.name());
    let mut states: [Option<B::Tensor>; 6] = Default::default();
    let mut known: [Option<Matrix>; 6] = Default::default();
    let mut at = 0;
    for lengths in [[1; 6], LENGTHS, [1; 6]] {
        let (mut spans, mut wanted, mut row) = (Vec::new(), Matrix::new(), 0);
        for ((t, state), known) in lengths.iter().zip(&states).zip(&mut known) {
            spans.push(StateSpan { rows: row..row + t, state: state.as_ref() });
            let (y, after) = case.wanted(at + row..at + row + t, known.as_ref());
            wanted.extend(y);
            *known = Some(after);
            row += t;
        }
        let (y, after) = case.run(be, at..at + row, &spans).unwrap();
        near(&read(be, &y), &wanted, what);
        for (after, wanted) in after.iter().zip(known.iter().flatten()) {
            near(&read(be, after), wanted, what);
        }
        states = after.into_iter().map(Some).collect::<Vec<_>>().try_into().unwrap();
        at += row;
    }
}

/// Many tokens, of which some forget all and others nothing.
fn long<B: Recurrent>(be: &B, random: &mut Random) {
    let t = LENGTHS.iter().sum::<usize>() + 12;
    let by = |x: &mut Vec<f32>, factor: f32| x.iter_mut().for_each(|x| *x *= factor);
    for strength in [1.0, 20.0, 400.0] {
        for kind in [Kind::Constant, Kind::Ssd, Kind::Delta, Kind::DeltaByKey, Kind::Wkv7] {
            for (key_heads, dims) in [(2, [8, 12]), (4, [33, 5])] {
                let mut case = Heads::new(random, kind, [t, 4, key_heads, dims[0], dims[1]]);
                match kind {
                    Kind::Constant => {
                        case.rule[0].0.iter_mut().for_each(|decay| *decay = decay.powf(strength))
                    }
                    Kind::Ssd => by(&mut case.rule[2].0, strength),
                    _ => by(&mut case.rule[0].0, strength),
                }
                if kind != Kind::Wkv7 || key_heads == 4 {
                    batches(be, &case, &format!("{kind:?} of strength {strength}"));
                }
            }
        }
        let (c, n) = (10, 4);
        let mut values = |rows: usize, cols: usize, scale| random.values(rows * cols, scale);
        let a = values(n, c, strength).iter().map(|x| -x.abs()).collect();
        let [x, b, read, d] = [(t, c), (t, n), (t, n), (1, c)].map(|(rows, cols)| values(rows, cols, 1.0));
        let operands = [x, values(t, c, 2.0), b, read, a, d];
        batches(be, &Selective { c, n, operands }, &format!("selective_scan of strength {strength}"));
        let mut operands = [t, t, t, 1].map(|rows| random.values(rows * c, 2.0));
        by(&mut operands[3], strength);
        batches(be, &Lru { c, operands }, &format!("rg_lru of strength {strength}"));
    }
    let [x, kernel] = [t, 4].map(|rows| random.values(rows * 7, 1.0));
    batches(be, &Conv { c: 7, k: 4, x, kernel, bias: None, act: Some(Activation::Silu) }, "short_conv");
    // The same key again and again, and nothing is forgotten: each token takes back all that the one before wrote.
    let mut case = Heads::new(random, Kind::Delta, [t, 2, 1, 16, 8]);
    case.k.iter_mut().for_each(|x| *x = 0.25);
    case.rule[0].0.fill(-40.0);
    case.rule[3].0.fill(9.0);
    batches(be, &case, "Delta of one key");
}

fn suite<B: Recurrent>(be: &B, pieces: Pieces) {
    let random = &mut Random(0x9e37_79b9_7f4a_7c15);
    for (t, c, k) in [(5, 7, 2), (40, 48, 4), (90, 33, 3), (4, 130, 9), (6, 5, 1)] {
        for (bias, act) in [(false, None), (true, Some(Activation::Silu))] {
            let [x, kernel] = [t, k].map(|rows| random.values(rows * c, 1.0));
            let bias = bias.then(|| random.values(c, 1.0));
            check(be, random, &Conv { c, k, x, kernel, bias, act }, ("short_conv", pieces));
        }
    }
    for (t, c, n) in [(5, 7, 3), (150, 40, 16), (70, 16, 8)] {
        let mut values = |rows: usize, cols: usize, scale| random.values(rows * cols, scale);
        let a = values(n, c, 1.0).iter().map(|x| -x.abs() - 0.05).collect();
        let operands = [
            values(t, c, 1.0),
            values(t, c, 2.0),
            values(t, n, 1.0),
            values(t, n, 1.0),
            a,
            values(1, c, 1.0),
        ];
        check(be, random, &Selective { c, n, operands }, ("selective_scan", pieces));
    }
    for kind in [Kind::Constant, Kind::Ssd, Kind::Delta, Kind::DeltaByKey, Kind::Wkv7] {
        for dims in
            [[5, 2, 1, 3, 5], [70, 4, 2, 16, 16], [150, 6, 2, 8, 40], [20, 3, 3, 33, 70], [8, 1, 1, 64, 64]]
        {
            // These have as many keys as values.
            let [t, heads, key_heads, n, p] = dims;
            let key_heads = if matches!(kind, Kind::DeltaByKey | Kind::Wkv7) { heads } else { key_heads };
            let case = Heads::new(random, kind, [t, heads, key_heads, n, p]);
            check(be, random, &case, (&format!("{kind:?} {dims:?}"), pieces));
        }
    }
    for (t, c) in [(5, 7), (70, 64)] {
        let operands = [t, t, t, 1].map(|rows| random.values(rows * c, 2.0));
        check(be, random, &Lru { c, operands }, ("rg_lru", pieces));
    }
    long(be, random);
    heads_by_matrices(be, random);
    wrong_shapes(be);
}

fn heads_by_matrices<B: Recurrent>(be: &B, random: &mut Random) {
    for (t, heads, n, m) in [(1, 1, 1, 1), (5, 3, 7, 5), (40, 2, 64, 70)] {
        let [x, w, bias] = [t * heads * n, heads * n * m, heads * m].map(|n| random.values(n, 1.0));
        let rows = wide(&x, heads * n);
        let wanted = rows.iter().map(|x| {
            let of = |j: usize| -> f64 {
                let h = j / m * n;
                let sum: f64 = (0..n).map(|i| x[h + i] * f64::from(w[(h + i) * m + j % m])).sum();
                sum + f64::from(bias[j])
            };
            (0..heads * m).map(of).collect()
        });
        let wanted: Matrix = wanted.collect();
        let [x, w, bias] =
            [(&x, heads * n), (&w, m), (&bias, heads * m)].map(|(x, cols)| upload(be, x, cols));
        near(&read(be, &be.head_linear(&x, &w, &bias).unwrap()), &wanted, "head_linear");
        assert!(be.head_linear(&x, &w, &x).is_err() || n * heads == 1);
    }
}

fn wrong_shapes<B: Recurrent>(be: &B) {
    let zeros = |rows: usize, cols: usize| upload(be, &vec![0.0; rows * cols], cols);
    let (x, kernel, narrow) = (zeros(6, 8), zeros(3, 8), zeros(3, 7));
    let fails = |what: &str, result: Output<B>| {
        let error = result.map(|(y, _)| be.shape(&y)).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }), "{what}: {error}");
    };
    let whole = [StateSpan { rows: 0..6, state: None }];
    let conv = |kernel, bias, spans: &[StateSpan<'_, B::Tensor>]| {
        be.short_conv(&x, &ShortConv { kernel, bias, act: None }, spans)
    };
    assert!(conv(&kernel, None, &whole).is_ok());
    fails("a narrow kernel", conv(&narrow, None, &whole));
    fails("a tall bias", conv(&kernel, Some(&kernel), &whole));
    fails("too few rows", conv(&kernel, None, &[StateSpan { rows: 0..5, state: None }]));
    fails("too many rows", conv(&kernel, None, &[StateSpan { rows: 0..7, state: None }]));
    fails("a gap", conv(&kernel, None, &[0..2, 3..6].map(|rows| StateSpan { rows, state: None })));
    fails("another state", conv(&kernel, None, &[StateSpan { rows: 0..6, state: Some(&kernel) }]));

    let (a, one, four) = (zeros(4, 8), zeros(1, 8), zeros(6, 4));
    let p = SelectiveScan { dt: &x, b: &four, c: &four, a: &a, d: &one };
    assert!(be.selective_scan(&x, &p, &whole).is_ok());
    fails("other steps", be.selective_scan(&x, &SelectiveScan { dt: &kernel, ..p }, &whole));
    fails("a narrow b", be.selective_scan(&x, &SelectiveScan { b: &x, ..p }, &whole));
    fails("a tall d", be.selective_scan(&x, &SelectiveScan { d: &a, ..p }, &whole));

    let decay = zeros(1, 4);
    let p = LinearAttention {
        q: &four,
        k: &four,
        v: &x,
        heads: 4,
        key_heads: 2,
        rule: Rule::Constant { decay: &decay },
    };
    assert!(be.linear_attention(&p, &whole).is_ok());
    fails("heads that don't divide", be.linear_attention(&LinearAttention { key_heads: 3, ..p }, &whole));
    fails("no heads", be.linear_attention(&LinearAttention { key_heads: 0, ..p }, &whole));
    fails("values that don't divide", be.linear_attention(&LinearAttention { heads: 6, ..p }, &whole));
    fails("other queries", be.linear_attention(&LinearAttention { q: &x, ..p }, &whole));
    fails(
        "a tall decay",
        be.linear_attention(&LinearAttention { rule: Rule::Constant { decay: &four }, ..p }, &whole),
    );
    let p = RgLru { input: &x, recurrent: &x, param: &one };
    assert!(be.rg_lru(&x, &p, &whole).is_ok());
    fails("other gates", be.rg_lru(&x, &RgLru { input: &a, ..p }, &whole));
    assert!(matches!(be.upload(2, 3, &[0.0; 5]), Err(Error::Shape { .. })));
}

#[test]
fn cpu() {
    for kernels in Cpu::kernel_names() {
        for threads in [1, 3] {
            let cpu = Cpu::builder().kernels(kernels).threads(threads).precision(Precision::Exact);
            suite(&cpu.build().unwrap(), Pieces::Same);
        }
    }
}

#[test]
fn default_bodies() {
    suite(&Plain(Cpu::builder().precision(Precision::Exact).build().unwrap()), Pieces::Same);
}

#[cfg(feature = "mlx")]
#[test]
fn mlx() {
    use rillm_tensor_core::mlx::{Mlx, MlxDevice};
    let gpu = std::env::var("MLX_DEVICE").is_ok_and(|device| device == "mlx-gpu");
    let device = if gpu { MlxDevice::Gpu } else { MlxDevice::Best };
    let mlx = Mlx::builder().device(device).precision(Precision::Exact).build().unwrap();
    suite(&mlx, Pieces::Near);
}

/// The same bits for every table and number of threads.
#[test]
fn cpu_kernels_agree() {
    let case = Heads::new(&mut Random(7), Kind::Delta, [70, 4, 2, 20, 40]);
    let mut all: Vec<Vec<f32>> = Vec::new();
    for kernels in Cpu::kernel_names() {
        for threads in [1, 4] {
            let cpu = Cpu::builder().kernels(kernels).threads(threads).build().unwrap();
            let (y, _) = case.run(&cpu, 0..70, &[StateSpan { rows: 0..70, state: None }]).unwrap();
            all.push(read(&cpu, &y));
        }
    }
    assert!(all.windows(2).all(|w| w[0] == w[1]));
}
