//! The suite on MLX, and in bfloat16 what its kernels for CUDA stand in for. `MLX_DEVICE=mlx-gpu` takes the graphics
//! card.

use super::*;
use rillm_tensor_core::mlx::{Mlx, MlxDevice};

fn device() -> MlxDevice {
    if std::env::var("MLX_DEVICE").is_ok_and(|d| d == "mlx-gpu") { MlxDevice::Gpu } else { MlxDevice::Best }
}

#[test]
fn exact() {
    conformance(&Mlx::builder().device(device()).precision(Precision::Exact).build().unwrap(), EXACT);
}

#[test]
fn default_bodies() {
    let mlx = Mlx::builder().device(device()).precision(Precision::Exact).build().unwrap();
    conformance(&Plain(mlx), EXACT);
}

const PARAMS: AttnParams = AttnParams {
    heads: 4,
    kv_heads: 2,
    head_dim: 64,
    v_head_dim: 64,
    scale: 0.125,
    window: None,
    chunk: None,
    softcap: None,
};
const WIDTH: usize = 128;
const BF16: Format = Format::Float(FloatType::BF16);

/// A table of 40 tokens, projections to queries, keys and values and back, and a norm.
fn weights(random: &mut Random, format: Format) -> [RawTensor<'static>; 4] {
    let width = PARAMS.q_dim() + 2 * PARAMS.k_dim();
    [
        matrix(random, BF16, 40, WIDTH),
        matrix(random, format, width, WIDTH),
        matrix(random, format, WIDTH, PARAMS.q_dim()),
        // Small: scores of a sharp softmax would make much of what bfloat16 rounds.
        RawTensor::from_f32(vec![WIDTH], &random.values(WIDTH, 0.1)).unwrap(),
    ]
}

/// What MLX gives in bfloat16 beside what is exact.
fn compare(name: &str, got: &[f32], want: &[f32]) {
    let most = want.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter().zip(want) {
        close(*got, f64::from(*want), 0.03 * f64::from(most), name);
    }
}

/// bfloat16, in which our kernels for CUDA compute: projections and decoding against the operations one by one.
#[test]
fn halves() {
    let random = &mut Random(77);
    let exact = Cpu::builder().precision(Precision::Exact).build().unwrap();
    let affine = |bits, group| Format::Affine { bits, group, meta: FloatType::BF16 };
    for format in [BF16, affine(4, 64), affine(8, 64), affine(4, 32), affine(8, 128), affine(6, 64)] {
        let mlx = Mlx::builder().device(device()).build().unwrap();
        let weights = weights(random, format);
        let events = [Event::Token; 12];
        let got = decode(&mlx, &weights, 0, &events);
        compare(&format!("{}: {format}", mlx.name()), &got, &decode(&exact, &weights, 0, &events));
    }
}

/// Few rows times matrices of many shapes: narrow and wide, of whole and of odd numbers of what a kernel loads at a time.
#[test]
fn products() {
    let random = &mut Random(80);
    let exact = Cpu::builder().precision(Precision::Exact).build().unwrap();
    let mlx = Mlx::builder().device(device()).build().unwrap();
    let affine = |bits, group| Format::Affine { bits, group, meta: FloatType::BF16 };
    let cases = [
        (affine(4, 64), [704, 40], &[1, 3][..]),
        (affine(4, 64), [11008, 32], &[1, 8]),
        (affine(4, 64), [14336, 32], &[1]),
        (affine(4, 64), [4096, 2200], &[1]),
        (affine(4, 32), [1440, 48], &[1, 2]),
        (affine(4, 32), [28672, 16], &[1, 4]),
        (affine(8, 64), [11008, 32], &[1, 5]),
        (affine(8, 64), [14336, 50], &[1]),
        (affine(8, 128), [1408, 40], &[1, 7]),
        (BF16, [1000, 50], &[1, 2]),
        (BF16, [14336, 32], &[1, 7]),
    ];
    for (format, [inp, out], all) in cases {
        let raw = matrix(random, format, out, inp);
        let [bias, gain] = [out, inp].map(|n| random.values(n, 1.0));
        for &rows in all {
            let [x, gates, residual] = [inp, 2 * inp, out].map(|n| random.values(rows * n, 1.0));
            let inputs = [None, Some(None), Some(Some(Activation::Silu)), Some(Some(Activation::GeluTanh))];
            for input in inputs {
                let data = [&x, &gates, &residual, &bias, &gain].map(Vec::as_slice);
                let label = format!("{format}, {inp} to {out}, {rows} rows, {input:?}");
                compare(&label, &product(&mlx, &raw, data, input), &product(&exact, &raw, data, input));
            }
        }
    }
}

/// A product of rows as they are, of a norm, or of what a gate opens, with a bias and a residual.
fn product<B: Backend>(
    be: &B,
    raw: &RawTensor<'_>,
    [x, gates, residual, bias, gain]: [&[f32]; 5],
    input: Option<Option<Activation>>,
) -> Vec<f32> {
    let (out, inp) = (bias.len(), gain.len());
    let [x, gate_up, h] = [(x, inp), (gates, 2 * inp), (residual, out)].map(|(x, n)| tensor(be, x, n));
    let [bias, gain] = [bias, gain].map(|v| vector(be, v));
    let input = match input {
        None => Input::Rows(&x),
        Some(None) => Input::RmsNorm { x: &x, w: &gain, eps: 1e-5 },
        Some(Some(act)) => Input::Gated { act, gate_up: &gate_up },
    };
    let w = be.prepare(std::slice::from_ref(raw)).unwrap();
    values(be, &be.project(input, &w, Some(&bias), Some(h)).unwrap())
}

/// Caches that are long, go back, are kept aside, or are read by something else than decoding.
#[test]
fn caches() {
    use Event::{Back, Keep, Look, Pair, Token};
    let random = &mut Random(78);
    let exact = Cpu::builder().precision(Precision::Exact).build().unwrap();
    let mlx = Mlx::builder().device(device()).build().unwrap();
    let weights = weights(random, BF16);
    let stories: [(usize, &[Event]); 5] = [
        (1100, &[Token, Token, Back(1099), Token, Token, Look, Token]),
        (3, &[Token, Token, Token, Back(4), Token, Token, Token, Back(2), Token, Token]),
        (3, &[Token, Token, Keep, Back(4), Token, Token, Look, Token]),
        (3, &[Token, Look, Token, Token, Look, Back(3), Token, Look]),
        (3, &[Pair, Token, Pair, Back(4), Pair, Look, Pair]),
    ];
    for (i, (start, events)) in stories.into_iter().enumerate() {
        let got = decode(&mlx, &weights, start, events);
        compare(&format!("story {i}"), &got, &decode(&exact, &weights, start, events));
    }
}

/// Sequences of different lengths that decode together, in changing company.
#[test]
fn batches() {
    let random = &mut Random(79);
    let exact = Cpu::builder().precision(Precision::Exact).build().unwrap();
    let mlx = Mlx::builder().device(device()).build().unwrap();
    let steps: [&[usize]; 7] = [&[0, 1, 2], &[0, 1, 2], &[0, 2], &[1], &[0, 1, 2], &[1, 2], &[0, 1, 2]];
    for (format, starts) in [(BF16, [3, 1100, 40]), (BF16, [0, 1, 7]), (Format::Q8_0, [600, 2, 1])] {
        let weights = weights(random, format);
        let got = decode_together(&mlx, &weights, &starts, &steps);
        compare(
            &format!("{format} after {starts:?}"),
            &got,
            &decode_together(&exact, &weights, &starts, &steps),
        );
    }
}

#[derive(Clone, Copy)]
enum Event {
    /// The next token.
    Token,
    /// Two, of which nothing is read before both are recorded.
    Pair,
    /// The cache goes back to a length.
    Back(usize),
    /// A copy is kept, and read at the end.
    Keep,
    /// Attention of two rows that come from elsewhere reads the cache.
    Look,
}

/// A layer of attention with norm and residual, and a gated one.
struct Layer<'a, B: Backend> {
    be: &'a B,
    w: [B::Weight; 4],
    rope: Rope,
}

impl<B: Backend> Layer<'_, B> {
    /// The token at `position`.
    fn token(&self, cache: &mut [B::Tensor; 2], position: usize) -> [B::Tensor; 2] {
        self.tokens(&mut [(cache, position)])
    }

    /// The tokens at positions of different sequences.
    fn tokens(&self, sequences: &mut [(&mut [B::Tensor; 2], usize)]) -> [B::Tensor; 2] {
        let (be, p, [table, qkv, o, gain]) = (self.be, &PARAMS, &self.w);
        let mut batch = Batch::default();
        batch.reset(sequences.iter().map(|s| s.1 + 1).max().unwrap());
        for (i, (_, position)) in sequences.iter().enumerate() {
            batch.push(i, *position, 1);
        }
        let ids: Vec<u32> = batch.positions().iter().map(|position| (position * 3 + 1) % 40).collect();
        let x = be.embed(table, Ids::Host(&ids)).unwrap();
        let norm = Input::RmsNorm { x: &x, w: gain, eps: 1e-5 };
        let all = be.project(norm, qkv, None, None).unwrap();
        let [q, key, value] = be.split_cols(all, [p.q_dim(), p.k_dim(), p.k_dim()]).unwrap();
        for (i, ([k, v], position)) in sequences.iter_mut().enumerate() {
            let keys = Keys { x: &key, rope: Some((&self.rope, &batch)) };
            be.write_keys(k, *position, keys, i..i + 1).unwrap();
            be.write_rows(v, *position, &value, i..i + 1).unwrap();
        }
        let q = be.rope(q, &self.rope, &batch).unwrap();
        let spans: Vec<_> = sequences
            .iter()
            .enumerate()
            .map(|(i, ([k, v], position))| {
                let layout = KvLayout { len: position + 1, keep: 0, ring: be.shape(k)[0] };
                AttnSpan { rows: i..i + 1, k, v, layout, sink: 0, window: None }
            })
            .collect();
        let y = be.attention(&q, &spans, p, None).unwrap();
        let h = be.project(Input::Rows(&y), o, None, Some(x)).unwrap();
        let [gates, _] = be.split_cols(be.linear(&h, qkv, None).unwrap(), [2 * p.q_dim(), 0]).unwrap();
        let gated = Input::Gated { act: Activation::Silu, gate_up: &gates };
        [be.project(gated, o, None, Some(h.clone())).unwrap(), h]
    }

    fn attend(&self, [k, v]: [&B::Tensor; 2], q: &B::Tensor, len: usize) -> B::Tensor {
        let layout = KvLayout { len, keep: 0, ring: self.be.shape(k)[0] };
        let rows = 0..self.be.shape(q)[0];
        let span = AttnSpan { rows, k, v, layout, sink: 0, window: None };
        self.be.attention(q, &[span], &PARAMS, None).unwrap()
    }
}

impl<'a, B: Backend> Layer<'a, B> {
    fn new(be: &'a B, weights: &[RawTensor<'_>; 4]) -> Self {
        let inv_freq = (0..32).map(|i| 10_000f32.powf(-(i as f32) / 32.0)).collect();
        let rope = Rope { head_dim: 64, inv_freq, scale: 1.0, pairing: Pairing::Halves };
        let w = weights.each_ref().map(|raw| be.prepare(std::slice::from_ref(raw)).unwrap());
        Self { be, w, rope }
    }

    /// Keys and values of `start` positions, and room for more.
    fn cache(&self, random: &mut Random, start: usize) -> [B::Tensor; 2] {
        [0, 1].map(|_| {
            let (be, cols) = (self.be, PARAMS.k_dim());
            let mut buffer = be.kv_buffer(start + 256, cols).unwrap();
            if start > 0 {
                let rows = tensor(be, &random.values(start * cols, 0.5), cols);
                be.write_rows(&mut buffer, 0, &rows, 0..start).unwrap();
            }
            buffer
        })
    }
}

/// What comes out of a cache that has `start` positions first.
fn decode<B: Backend>(be: &B, weights: &[RawTensor<'_>; 4], start: usize, events: &[Event]) -> Vec<f32> {
    let (random, p, layer) = (&mut Random(5), PARAMS, Layer::new(be, weights));
    let mut cache = layer.cache(random, start);
    let queries = tensor(be, &random.values(2 * p.q_dim(), 0.5), p.q_dim());
    let (mut position, mut kept, mut out) = (start, None, Vec::new());
    for event in events {
        let mut made = Vec::new();
        match *event {
            Event::Token | Event::Pair => {
                for _ in 0..if matches!(event, Event::Pair) { 2 } else { 1 } {
                    made.extend(layer.token(&mut cache, position));
                    position += 1;
                }
            }
            Event::Back(len) => position = len,
            Event::Keep => kept = Some((cache.clone(), position)),
            Event::Look => made.push(layer.attend(cache.each_ref(), &queries, position)),
        }
        made.iter().rev().for_each(|x| out.extend(values(be, x)));
    }
    if let Some((cache, len)) = &kept {
        out.extend(values(be, &layer.attend(cache.each_ref(), &queries, *len)));
    }
    out
}

/// What comes out of caches that have so many positions first, where sequences of each step take a token.
fn decode_together<B: Backend>(
    be: &B,
    weights: &[RawTensor<'_>; 4],
    starts: &[usize],
    steps: &[&[usize]],
) -> Vec<f32> {
    let (random, layer) = (&mut Random(6), Layer::new(be, weights));
    let mut caches: Vec<_> = starts.iter().map(|start| (layer.cache(random, *start), *start)).collect();
    let mut out = Vec::new();
    for step in steps {
        let chosen = caches.iter_mut().enumerate().filter(|(i, _)| step.contains(i));
        let mut sequences: Vec<_> = chosen.map(|(_, (cache, position))| (cache, *position)).collect();
        let made = layer.tokens(&mut sequences);
        made.iter().rev().for_each(|x| out.extend(values(be, x)));
        step.iter().for_each(|i| caches[*i].1 += 1);
    }
    out
}
