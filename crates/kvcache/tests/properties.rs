//! Random appends, views and truncations of every cache against a list of rows that forgets nothing.
#![allow(clippy::unwrap_used, missing_docs)]

use proptest::prelude::*;
use rillm_kvcache::{
    Arrays, ArraysCache, CacheKind, DenseKvCache, Error, KvCache, RotatingKvCache, SequenceCache,
};
use rillm_quant::RawTensor;
use rillm_tensor_core::cpu::{Cpu, CpuTensor, Precision};
use rillm_tensor_core::{AttnSpan, Backend, Ids, Keys};

/// Values of a row.
const COLS: usize = 3;
/// Rows of the table that activations are made from.
const TABLE: usize = 1 << 12;

/// Activations `[n, COLS]` whose row `i` is told by `ids[i]`: made by embedding.
struct Rows {
    cpu: Cpu,
    table: <Cpu as Backend>::Weight,
}

impl Rows {
    fn new() -> Self {
        let cpu = Cpu::builder().threads(1).precision(Precision::Exact).build().unwrap();
        let values: Vec<f32> = (0..TABLE).flat_map(row).collect();
        let table = cpu.prepare(&[RawTensor::from_f32(vec![TABLE, COLS], &values).unwrap()]).unwrap();
        Self { cpu, table }
    }

    fn of(&self, ids: &[u32]) -> CpuTensor {
        self.cpu.embed(&self.table, Ids::Host(ids)).unwrap()
    }

    fn append(&self, cache: &mut dyn KvCache<Cpu>, ids: &[u32]) {
        // Values are other rows than keys, and both stand between rows of other sequences.
        let around = |ids: Vec<u32>| [&[0, 1][..], &ids, &[2]].concat();
        let k = self.of(&around(ids.to_vec()));
        let v = self.of(&around(ids.iter().map(|id| id + 1).collect()));
        let k = Keys { x: &k, rope: None };
        cache.append(&self.cpu, k, &v, 2..2 + ids.len()).unwrap();
    }

    fn read(&self, x: &CpuTensor) -> Vec<f32> {
        let mut out = Vec::new();
        self.cpu.read(x, &mut out).unwrap();
        out
    }
}

/// The row of `id`.
fn row(id: usize) -> [f32; COLS] {
    [id as f32, 0.5 - id as f32, 1.0 / (1.0 + id as f32)]
}

/// Positions that the queries of the latest `t` rows see by the view.
fn visible(view: &AttnSpan<'_, CpuTensor>, t: usize) -> Vec<usize> {
    let len = view.layout.len;
    let first = (len - t + 1).saturating_sub(view.window.unwrap_or(usize::MAX));
    (0..len).filter(|p| *p < view.sink || *p >= first).collect()
}

/// What rows `len - t..len` should see, by definition.
fn wanted(len: usize, t: usize, window: Option<usize>, keep: usize) -> Vec<usize> {
    (0..len)
        .filter(|p| *p < keep || (len - t..len).any(|q| *p <= q && window.is_none_or(|w| q - p < w)))
        .collect()
}

/// Every visible position holds the row that was appended there.
fn check(rows: &Rows, cache: &dyn KvCache<Cpu>, model: &[u32], t: usize, shape: (Option<usize>, usize)) {
    assert_eq!(cache.len(), model.len());
    assert_eq!(cache.is_empty(), model.is_empty());
    let Some(view) = cache.view(7..7 + t) else {
        assert!(model.is_empty());
        return;
    };
    assert_eq!((view.rows.clone(), view.layout.len), (7..7 + t, model.len()));
    let (keys, values) = (rows.read(view.k), rows.read(view.v));
    let seen = visible(&view, t);
    assert_eq!(seen, wanted(model.len(), t, shape.0, shape.1), "{t} rows");
    for p in seen {
        let at = view.layout.slot(p) * COLS;
        let id = model[p] as usize;
        assert_eq!(keys[at..at + COLS], row(id), "key {p} of {}", model.len());
        assert_eq!(values[at..at + COLS], row(id + 1), "value {p} of {}", model.len());
    }
}

#[derive(Clone, Debug)]
enum Op {
    Append(usize),
    /// To this part of the length, in thousandths; beyond 1000 it is too long.
    Truncate(usize),
    /// By so many positions.
    Back(usize),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        4 => (1usize..4).prop_map(Op::Append),
        2 => (1usize..60).prop_map(Op::Append),
        1 => (200usize..400).prop_map(Op::Append),
        1 => (0usize..1100).prop_map(Op::Truncate),
        2 => (0usize..6).prop_map(Op::Back),
    ];
    prop::collection::vec(op, 1..25)
}

/// Runs `ops` on `cache`, of these window and kept positions. Returns the largest append.
fn run(rows: &Rows, cache: &mut dyn KvCache<Cpu>, ops: &[Op], shape: (Option<usize>, usize)) -> usize {
    let (mut model, mut next, mut largest) = (Vec::new(), 0u32, 1);
    // Rows of the latest append that were not taken back.
    let mut latest = 0;
    for op in ops {
        let bytes = cache.bytes(&rows.cpu);
        let len = match *op {
            Op::Append(n) => {
                let ids: Vec<u32> = (next..next + n as u32).map(|i| i % (TABLE as u32 - 1)).collect();
                rows.append(cache, &ids);
                (next, largest, latest) = (next + n as u32, largest.max(n), n);
                model.extend(ids);
                check(rows, cache, &model, n, shape);
                continue;
            }
            Op::Truncate(part) => model.len() * part / 1000 + usize::from(part > 1000),
            Op::Back(n) => model.len().saturating_sub(n),
        };
        let checked = cache.check_truncate(len);
        match cache.truncate(len) {
            Ok(()) => {
                assert!(checked.is_ok() && len <= model.len());
                latest = latest.saturating_sub(model.len() - len);
                model.truncate(len);
            }
            Err(Error::TooShort { len: wanted, have }) => {
                assert!(matches!(checked, Err(Error::TooShort { .. })));
                assert_eq!((wanted, have), (len, model.len()));
                assert!(len > model.len());
            }
            Err(Error::Overwritten { len: wanted, oldest, window }) => {
                assert!(matches!(checked, Err(Error::Overwritten { .. })));
                assert_eq!((wanted, Some(window)), (len, shape.0));
                assert!(len < model.len() - latest, "the latest append can be taken back");
                assert!(len > 0 && oldest > (len + 1).saturating_sub(window), "all that a row sees is there");
            }
            Err(other) => panic!("{other}"),
        }
        assert_eq!((cache.len(), cache.bytes(&rows.cpu)), (model.len(), bytes), "truncation moves nothing");
    }
    largest
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn a_dense_cache_keeps_everything(ops in ops()) {
        run(&Rows::new(), &mut DenseKvCache::new(), &ops, (None, 0));
    }

    #[test]
    fn a_rotating_cache_keeps_what_rows_see(window in 1usize..50, ops in ops()) {
        let rows = Rows::new();
        let mut cache = RotatingKvCache::new(window);
        let largest = run(&rows, &mut cache, &ops, (Some(window), 0));
        let slots = (window + largest).max(64.min(window));
        prop_assert!(KvCache::<Cpu>::bytes(&cache, &rows.cpu) <= 2 * 4 * COLS * slots);
    }

    #[test]
    fn a_rotating_cache_keeps_the_first_positions(size in 2usize..60, keep in 0usize..8, ops in ops()) {
        let rows = Rows::new();
        let mut cache = RotatingKvCache::with_keep(size, keep);
        let keep = keep.min(size - 1);
        let largest = run(&rows, &mut cache, &ops, (Some(size - keep), keep));
        prop_assert!(KvCache::<Cpu>::bytes(&cache, &rows.cpu) <= 2 * 4 * COLS * (size + largest));
    }

    #[test]
    fn a_wide_window_grows_like_the_sequence(window in 300usize..3000, ops in ops()) {
        let rows = Rows::new();
        let mut cache = RotatingKvCache::new(window);
        let largest = run(&rows, &mut cache, &ops, (Some(window), 0));
        let all: usize = ops.iter().map(|op| if let Op::Append(n) = op { *n } else { 0 }).sum();
        let slots = (all + all / 8 + 64).min(window + largest);
        prop_assert!(KvCache::<Cpu>::bytes(&cache, &rows.cpu) <= 2 * 4 * COLS * slots);
    }

    #[test]
    fn a_sequence_goes_back_in_all_layers_or_in_none(
        window in 1usize..30,
        appends in prop::collection::vec(1usize..20, 1..12),
        back in 0usize..60,
    ) {
        let rows = Rows::new();
        let kinds = [CacheKind::Dense, CacheKind::Rotating { window }, CacheKind::None, CacheKind::Dense];
        let mut caches: SequenceCache<Cpu> = SequenceCache::new(&kinds);
        let mut len = 0;
        for n in appends {
            let ids: Vec<u32> = (len as u32..(len + n) as u32).collect();
            for layer in [0, 1, 3] {
                rows.append(caches.layer(layer).unwrap(), &ids);
            }
            len += n;
        }
        assert!(matches!(caches.layer(2), Err(Error::NoSuchLayer { layer: 2 })));
        assert!(matches!(caches.layer(4), Err(Error::NoSuchLayer { layer: 4 })));
        prop_assert_eq!(caches.len(), len);
        let to = len.saturating_sub(back);
        let lengths = |caches: &mut SequenceCache<Cpu>| [0, 1, 3].map(|l| caches.layer(l).unwrap().len());
        match caches.truncate(to) {
            Ok(()) => prop_assert_eq!(lengths(&mut caches), [to; 3]),
            Err(_) => prop_assert_eq!(lengths(&mut caches), [len; 3]),
        }
    }
}

/// A state that tells how many tokens it has seen.
fn state(cpu: &Cpu, seen: usize) -> Arrays<CpuTensor> {
    [seen, seen + 1].iter().map(|n| cpu.upload(1, 1, &[*n as f32]).unwrap()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn states_go_back_to_what_was_kept(checkpoints in 0usize..4, ops in ops()) {
        let rows = Rows::new();
        let mut cache = ArraysCache::<Cpu>::new(checkpoints);
        // Lengths that appends led to, and the one before the latest append.
        let (mut len, mut reached, mut before) = (0, vec![0], None);
        for op in &ops {
            let to = match *op {
                Op::Append(n) => {
                    cache.append(n, state(&rows.cpu, len + n));
                    before = Some(len);
                    len += n;
                    reached.push(len);
                    len
                }
                Op::Truncate(part) => len * part / 1000 + usize::from(part > 1000),
                Op::Back(n) => len.saturating_sub(n),
            };
            let nearest = cache.nearest(to);
            prop_assert!(nearest <= to && reached.contains(&nearest));
            match cache.truncate(to) {
                Ok(()) => {
                    prop_assert_eq!(nearest, to);
                    if to < len {
                        before = None;
                    }
                    len = to;
                    reached.retain(|l| *l <= len);
                }
                Err(Error::TooShort { len: wanted, have }) => {
                    prop_assert_eq!((wanted, have), (to, len));
                    prop_assert!(to > len);
                }
                Err(Error::NoCheckpoint { len: wanted, kept }) => {
                    prop_assert_eq!(wanted, to);
                    prop_assert!(to > 0 && before != Some(to) && to < len);
                    prop_assert!(kept.iter().all(|l| reached.contains(l)) && !kept.contains(&to));
                    prop_assert!(kept.len() <= checkpoints + 1);
                    // The nearest is one that works.
                    cache.truncate(nearest).unwrap();
                    (len, before) = (nearest, None);
                    reached.retain(|l| *l <= len);
                }
                Err(other) => panic!("{other}"),
            }
            prop_assert_eq!((cache.len(), cache.is_empty()), (len, len == 0));
            let seen = [0, 1].map(|i| cache.array(i).map(|x| rows.read(x)[0]));
            let wanted = (len > 0).then_some(len as f32);
            prop_assert_eq!(seen, [wanted, wanted.map(|n| n + 1.0)]);
            prop_assert!(cache.arrays().count() <= 2 * (checkpoints + 2));
            prop_assert!((cache.bytes(&rows.cpu) == 0) == (len == 0));
        }
    }

    #[test]
    fn a_hybrid_sequence_finds_a_length_that_all_layers_have(
        window in 1usize..30,
        appends in prop::collection::vec(1usize..9, 1..12),
        back in 0usize..40,
    ) {
        let rows = Rows::new();
        let state_kind = CacheKind::State { checkpoints: 2 };
        let mut caches = SequenceCache::<Cpu>::new(&[CacheKind::Rotating { window }, state_kind, CacheKind::Dense]);
        let mut len = 0;
        for n in appends {
            let ids: Vec<u32> = (len as u32..(len + n) as u32).collect();
            rows.append(caches.layer(0).unwrap(), &ids);
            caches.state_mut(1).unwrap().append(n, state(&rows.cpu, len + n));
            rows.append(caches.layer(2).unwrap(), &ids);
            len += n;
        }
        prop_assert!(caches.layer(1).is_err() && caches.state(0).is_err() && caches.view(1, 0..1).is_err());
        prop_assert_eq!((caches.len(), caches.buffers().count() >= 6), (len, true));
        let to = len.saturating_sub(back);
        let nearest = caches.nearest(to);
        prop_assert_eq!(caches.check_truncate(to).is_ok(), nearest == to);
        caches.truncate(nearest).unwrap();
        prop_assert_eq!(caches.len(), nearest);
        prop_assert_eq!(caches.state(1).unwrap().len(), nearest);
    }
}

#[test]
fn a_prompt_stays_while_its_answer_is_decoded() {
    let cpu = Cpu::builder().threads(1).build().unwrap();
    let mut cache = ArraysCache::<Cpu>::new(1);
    for n in [512, 88, 1, 1, 1, 1] {
        cache.append(n, state(&cpu, 0));
    }
    assert_eq!((cache.nearest(603), cache.nearest(602), cache.nearest(599)), (603, 600, 0));
    let error = cache.check_truncate(512).unwrap_err();
    assert_eq!(
        error.to_string(),
        "can't go back to 512 tokens: states were kept of 0 and of [600, 603] tokens"
    );
}

#[test]
fn a_long_sequence_is_copied_rarely_and_a_window_grows_to_its_width() {
    let rows = Rows::new();
    let (mut dense, mut rotating) = (DenseKvCache::new(), RotatingKvCache::new(100));
    let (mut sizes, mut rings) = (Vec::new(), Vec::new());
    for i in 0..3000u32 {
        rows.append(&mut dense, &[i % 4000]);
        rows.append(&mut rotating, &[i % 4000]);
        sizes.push(KvCache::<Cpu>::bytes(&dense, &rows.cpu));
        rings.push(KvCache::<Cpu>::bytes(&rotating, &rows.cpu));
    }
    sizes.dedup();
    rings.dedup();
    // A position is copied eight times on average, and once more for the first, shorter steps.
    let (last, copied) = (sizes[sizes.len() - 1], sizes[..sizes.len() - 1].iter().sum::<usize>());
    assert!(copied <= 9 * last, "{copied} bytes copied for {last}");
    assert_eq!(sizes[0], 2 * 4 * COLS * 64);
    assert!(*sizes.last().unwrap() <= 2 * 4 * COLS * 3440);
    assert_eq!(rings, [2 * 4 * COLS * 64, 2 * 4 * COLS * 100]);
}

#[test]
fn nothing_is_allocated_for_an_empty_sequence() {
    let rows = Rows::new();
    let kinds = [CacheKind::Dense, CacheKind::Rotating { window: 1 << 20 }, CacheKind::None];
    let mut caches: SequenceCache<Cpu> = SequenceCache::new(&kinds);
    assert!(caches.is_empty());
    assert_eq!((caches.len(), caches.bytes(&rows.cpu)), (0, 0));
    caches.truncate(0).unwrap();
    assert!(matches!(caches.truncate(1), Err(Error::TooShort { len: 1, have: 0 })));
    assert!(matches!(caches.view(0, 0..1), Err(Error::NoSuchLayer { layer: 0 })));
    // A window far wider than the sequence takes no more than the sequence needs.
    rows.append(caches.layer(1).unwrap(), &[1]);
    assert_eq!(caches.layer(1).unwrap().bytes(&rows.cpu), 2 * 4 * COLS * 64);
}
