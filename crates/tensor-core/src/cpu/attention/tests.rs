//! Every table against double precision over shapes of all kinds, and bit by bit over ways to divide the work.

#![allow(clippy::unwrap_used)]

use half::f16;

use super::super::kernels::tiles::reference::TILED;
use super::super::kernels::{Kernels, available, best};
use super::super::matmul::{Precision, Scratch};
use super::super::threads::Threads;
use super::*;

/// Numbers from a linear congruential generator.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }
    fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }
    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
    fn values(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| (self.bits() as f32 / (1u64 << 30) as f32 - 1.0) * scale).collect()
    }
}

/// A sequence with all its positions, and the cache that would hold the last of them.
struct Sequence {
    /// Queries, `[len, q_dim]`, of which the last `t` are asked for.
    q: Vec<f32>,
    t: usize,
    /// Keys and values by position.
    k: Vec<f32>,
    v: Vec<f32>,
    layout: KvLayout,
    sink: usize,
    window: Option<usize>,
}

/// Keys and values by slot.
struct Cache {
    k: Vec<f32>,
    v: Vec<f32>,
    half: Option<[Vec<f16>; 2]>,
}

impl Cache {
    fn views(&self) -> [KvData<'_>; 2] {
        match &self.half {
            Some([k, v]) => [KvData::F16(k), KvData::F16(v)],
            None => [KvData::F32(&self.k), KvData::F32(&self.v)],
        }
    }
}

impl Sequence {
    fn random(random: &mut Random, p: &AttnParams, t: usize, len: usize) -> Self {
        let [q, k, v] = [p.q_dim(), p.k_dim(), p.v_dim()].map(|n| random.values(n * len, 1.5));
        // Values that half floats hold exactly, so that all caches have the same reference.
        let [k, v] = [k, v].map(|x| x.iter().map(|&x| f16::from_f32(x).to_f32()).collect());
        let layout = KvLayout { len, keep: 0, ring: len };
        Self { q, t, k, v, layout, sink: 0, window: None }
    }

    /// The cache after the first `len` positions.
    fn cache(&self, p: &AttnParams, len: usize, is_half: bool) -> Cache {
        let (dims, layout) = ([p.k_dim(), p.v_dim()], KvLayout { len, ..self.layout });
        let slots = len.min(layout.keep + layout.ring);
        // What no position was written to must not be read.
        let [mut k, mut v] = dims.map(|dim| vec![f32::NAN; slots * dim]);
        for at in 0..len {
            let slot = layout.slot(at);
            for (to, from, dim) in [(&mut k, &self.k, dims[0]), (&mut v, &self.v, dims[1])] {
                to[slot * dim..][..dim].copy_from_slice(&from[at * dim..][..dim]);
            }
        }
        let half = |x: &[f32]| x.iter().map(|&x| f16::from_f32(x)).collect();
        let half = is_half.then(|| [half(&k), half(&v)]);
        Cache { k, v, half }
    }

    /// Whether the query at `at` sees position `j`, by the definition.
    fn sees(&self, p: &AttnParams, at: usize, j: usize) -> bool {
        let stored = j < self.layout.keep || j >= self.layout.oldest();
        let within = |window: Option<usize>| window.is_none_or(|w| j + w > at);
        let chunk = p.chunk.is_none_or(|c| j / c == at / c);
        j <= at && stored && (j < self.sink || (within(self.window) && within(p.window) && chunk))
    }

    /// The last `t` rows of the result, in double precision.
    fn reference(&self, p: &AttnParams, sinks: Option<&[f32]>) -> Vec<f64> {
        let (group, hd, vd) = (p.heads / p.kv_heads, p.head_dim, p.v_head_dim);
        let mut out = Vec::new();
        for at in self.layout.len - self.t..self.layout.len {
            for head in 0..p.heads {
                let q = &self.q[at * p.q_dim() + head * hd..][..hd];
                let of = |x: &[f32], j: usize, n: usize, d: usize| {
                    f64::from(x[(j * p.kv_heads + head / group) * n + d])
                };
                let (mut sum, mut o) = (0.0, vec![0.0; vd]);
                for j in (0..self.layout.len).filter(|&j| self.sees(p, at, j)) {
                    let dot: f64 = (0..hd).map(|d| f64::from(q[d]) * of(&self.k, j, hd, d)).sum();
                    let mut s = dot * f64::from(p.scale);
                    if let Some(cap) = p.softcap.map(f64::from) {
                        s = cap * (s / cap).tanh();
                    }
                    sum += s.exp();
                    (0..vd).for_each(|d| o[d] += s.exp() * of(&self.v, j, vd, d));
                }
                let seen = sum > 0.0;
                sum += sinks.map_or(0.0, |s| f64::from(s[head]).exp());
                out.extend(o.iter().map(|o| if seen { o / sum } else { 0.0 }));
            }
        }
        out
    }
}

/// Exact attention over several sequences at once; the queries are columns of wider rows.
fn run(
    kernels: &'static Kernels,
    threads: &Threads,
    p: &AttnParams,
    parts: &[(&Sequence, Cache)],
) -> Vec<f32> {
    run_in(Precision::Exact, kernels, threads, (p, None), parts)
}

fn run_in(
    precision: Precision,
    kernels: &'static Kernels,
    threads: &Threads,
    (p, sinks): (&AttnParams, Option<&[f32]>),
    parts: &[(&Sequence, Cache)],
) -> Vec<f32> {
    let (dim, pad) = (p.q_dim(), 5);
    let mut q = Vec::new();
    let mut spans = Vec::new();
    for (sequence, cache) in parts {
        let first = q.len() / (dim + pad);
        let [k, v] = cache.views();
        let len = sequence.layout.len;
        for row in sequence.q[(len - sequence.t) * dim..len * dim].chunks_exact(dim) {
            q.extend_from_slice(row);
            q.extend([f32::NAN; 5]);
        }
        let rows = first..first + sequence.t;
        let (layout, sink, window) = (sequence.layout, sequence.sink, sequence.window);
        spans.push(SpanView { rows, k, v, layout, sink, window });
    }
    let rows = q.len() / (dim + pad);
    let mut out = vec![f32::NAN; rows * p.out_dim()];
    let scratch = Scratch::default();
    let ctx = Context { kernels, threads, precision, scratch: &scratch };
    let q = Rows { data: &q, rows, cols: dim, stride: dim + pad };
    // Twice: memory that was used before must do as well.
    for _ in 0..2 {
        let out = RowsMut { data: &mut out, rows, cols: p.out_dim(), stride: p.out_dim() };
        attention(&ctx, q, &spans, (p, sinks), out).unwrap();
    }
    out
}

fn params(heads: usize, kv_heads: usize, head_dim: usize) -> AttnParams {
    AttnParams::new(heads, kv_heads, head_dim)
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[track_caller]
fn assert_close(got: &[f32], want: &[f64], bound: f64, what: &str) {
    assert_eq!(got.len(), want.len());
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        assert!((f64::from(got) - want).abs() < bound, "{what}, value {i}: {got} instead of {want}");
    }
}

/// A sequence with windows, rings, kept positions and sinks at random.
fn any_sequence(random: &mut Random, p: &AttnParams) -> Sequence {
    let t = random.pick(&[1, 1, 2, 3, 17, 40, 70]);
    let len = t + random.pick(&[0, 0, 1, 30, 63, 200, 256, 700]);
    let mut sequence = Sequence::random(random, p, t, len);
    match random.below(5) {
        // A cache that drops what the window has left.
        0 => {
            let window = 1 + random.below(100);
            sequence.window = Some(window);
            sequence.layout.ring = window + t - 1;
        }
        // One that keeps the first positions for ever.
        1 => {
            let (keep, window) = (1 + random.below(6), 1 + random.below(80));
            (sequence.layout.keep, sequence.sink, sequence.window) = (keep, keep, Some(window));
            sequence.layout.ring = window + t - 1;
        }
        // Sinks that are not kept, kept positions that are no sinks, and a ring that holds too little.
        2 => {
            (sequence.layout.keep, sequence.sink) = (random.below(90), random.below(90));
            sequence.layout.ring = 1 + random.below(len);
            sequence.window = Some(1 + random.below(len));
        }
        3 => sequence.window = Some(1 + random.below(2 * len)),
        _ => {}
    }
    sequence
}

#[test]
fn agrees_with_double_precision() {
    let mut random = Random(1);
    let threads = [1, 2, 3].map(|n| Threads::new(n).unwrap());
    for round in 0..60 {
        let (kv_heads, group) = (random.pick(&[1, 2, 3]), random.pick(&[1, 1, 2, 3, 4, 7, 9, 16]));
        let head_dim = random.pick(&[2, 16, 24, 32, 64, 80, 96, 128, 256]);
        let mut p = params(kv_heads * group, kv_heads, head_dim);
        p.window = random.pick(&[None, None, Some(1), Some(50), Some(300)]);
        p.softcap = random.pick(&[None, None, Some(2.0), Some(50.0)]);
        p.chunk = random.pick(&[None, None, Some(1), Some(70)]);
        p.v_head_dim = random.pick(&[head_dim, head_dim, 1, 40, 512]);
        let logits = random.values(p.heads, 4.0);
        let sinks = random.pick(&[None, Some(&logits[..])]);
        let sequences: Vec<_> = (0..1 + random.below(3)).map(|_| any_sequence(&mut random, &p)).collect();
        let want: Vec<f64> = sequences.iter().flat_map(|s| s.reference(&p, sinks)).collect();
        let is_half = random.below(2) == 0;
        let caches = || sequences.iter().map(|s| (s, s.cache(&p, s.layout.len, is_half))).collect::<Vec<_>>();
        let mut first = None;
        for kernels in available().into_iter().chain([&TILED]) {
            if kernels.name.starts_with("scalar") && round % 8 != 0 {
                continue;
            }
            let some = random.pick(&[&threads[0], &threads[1], &threads[2]]);
            let got = run_in(Precision::Exact, kernels, some, (&p, sinks), &caches());
            assert_close(&got, &want, 3e-6, kernels.name);
            let first = first.get_or_insert_with(|| bits(&got));
            assert_eq!(bits(&got), *first, "{}", kernels.name);
            // Values are below 1; bfloat16 has steps of 2^-8 for queries, keys, weights and values.
            let fast = run_in(Precision::Fast, kernels, &threads[round % 3], (&p, sinks), &caches());
            assert_close(&fast, &want, 0.02, kernels.name);
            if kernels.tiles.is_none() {
                assert_eq!(bits(&fast), *first, "{}", kernels.name);
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_threads_neighbours_or_chunks() {
    let mut random = Random(2);
    let threads = [1, 2, 3].map(|n| Threads::new(n).unwrap());
    for (heads, kv_heads, head_dim) in [(9, 3, 64), (4, 4, 32), (8, 1, 128), (2, 1, 80)] {
        for softcap in [None, Some(30.0)] {
            let p = AttnParams { softcap, ..params(heads, kv_heads, head_dim) };
            let len = 520 + random.below(100);
            let mut whole = Sequence::random(&mut random, &p, len, len);
            whole.window = random.pick(&[None, Some(333)]);
            whole.sink = random.below(5);
            let at_once = run(best(), &threads[0], &p, &[(&whole, whole.cache(&p, len, true))]);
            for threads in &threads {
                let mut from = 0;
                while from < len {
                    // The end in single steps, what comes before in chunks.
                    let t =
                        if from < len - 8 { random.pick(&[1, 30, 64, 150]).min(len - 8 - from) } else { 1 };
                    let layout = KvLayout { len: from + t, keep: 0, ring: len };
                    let chunk = Sequence {
                        layout,
                        t,
                        q: whole.q.clone(),
                        k: whole.k.clone(),
                        v: whole.v.clone(),
                        ..whole
                    };
                    let other = any_sequence(&mut random, &p);
                    let parts = [
                        (&other, other.cache(&p, other.layout.len, false)),
                        (&chunk, whole.cache(&p, from + t, true)),
                    ];
                    for parts in [&parts[..], &parts[1..]] {
                        let got = run(best(), threads, &p, parts);
                        let dim = p.q_dim();
                        assert_eq!(
                            bits(&got[got.len() - t * dim..]),
                            bits(&at_once[from * dim..][..t * dim]),
                            "rows {from} to {} of {len}, {threads:?}",
                            from + t
                        );
                    }
                    from += t;
                }
            }
        }
    }
}

#[test]
fn later_positions_never_show() {
    let p = params(8, 2, 64);
    let mut sequence = Sequence::random(&mut Random(3), &p, 40, 100);
    let cache = |s: &Sequence| s.cache(&p, 100, true);
    let threads = Threads::new(1).unwrap();
    let clean = run(best(), &threads, &p, &[(&sequence, cache(&sequence))]);
    for at in [70, 90] {
        sequence.v[at * p.k_dim()..][..p.k_dim()].fill(f32::INFINITY);
        sequence.k[at * p.k_dim()..][..p.k_dim()].fill(f32::NAN);
    }
    let dirty = run(best(), &threads, &p, &[(&sequence, cache(&sequence))]);
    let seen = 10 * p.q_dim();
    assert_eq!(bits(&dirty[..seen]), bits(&clean[..seen]));
    assert!(dirty[seen..].iter().all(|x| x.is_nan()));
}

#[test]
fn large_scores_stay_finite() {
    let p = AttnParams { scale: 100.0, ..params(4, 2, 32) };
    let sequence = Sequence::random(&mut Random(4), &p, 30, 300);
    let got = run(best(), &Threads::new(2).unwrap(), &p, &[(&sequence, sequence.cache(&p, 300, true))]);
    assert!(got.iter().all(|x| x.abs() <= 1.5));
}
