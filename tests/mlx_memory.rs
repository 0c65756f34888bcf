//! What MLX and the process hold: numbers of a whole process, so these tests have one and take turns.
#![cfg(feature = "mlx")]
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rillm::generate::{Generator, Request};
use rillm::quant::{FloatType, Format, encode};
use rillm::tensor::mlx::{Mlx, MlxDevice, MlxTensor};
use rillm::tensor::{AttnParams, AttnSpan, Backend, Batch, Ids, Input, Keys, KvLayout, Pairing, Rope};
use rillm::{Device, Loader};

use support::{golden, source};

static TURN: Mutex<()> = Mutex::new(());

/// A thousand sequences, each with a prompt and some tokens: neither MLX nor the process holds more after the last than
/// after the first hundred.
#[test]
fn a_thousand_sessions_leave_nothing_behind() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let device = std::env::var("MLX_DEVICE").unwrap_or("mlx".into()).parse::<Device>().unwrap();
    let lm = Loader::new(source(&golden("llama"))).device(device).load().unwrap();
    let prompt = support::tokens(24, lm.info().vocab, 3);
    // The least of some looks: passes that ran ahead end meanwhile.
    let held = || {
        let look = |_| {
            std::thread::sleep(Duration::from_millis(10));
            (lm.device_usage().unwrap().active_bytes, resident_bytes())
        };
        (0..30).map(look).min().unwrap()
    };
    let mut early = (0, 0);
    for i in 0..1000 {
        let request = Request::new(prompt.clone()).max_tokens(3);
        let made = Generator::new(lm.session(), request).unwrap().filter(Result::is_ok).count();
        assert_eq!(made, 3);
        if i == 99 {
            early = held();
        }
    }
    let (active, resident) = held();
    // A leak of 100 bytes a session shows.
    assert!(active < early.0 + (64 << 10), "MLX held {} bytes, then {active}", early.0);
    assert!(resident <= early.1 + (8 << 20), "the process grew from {} to {resident} bytes", early.1);
}

/// 0 where the system does not tell.
fn resident_bytes() -> usize {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return 0 };
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix("kB").unwrap().trim().parse::<usize>().unwrap() * 1024
}

const KV_HEADS: usize = 4;
const HEAD: usize = 128;

/// A layer's attention over a cache of 32,768 positions.
struct Long {
    be: Mlx,
    table: <Mlx as Backend>::Weight,
    qkv: <Mlx as Backend>::Weight,
    rope: Rope,
    cache: [MlxTensor; 2],
}

impl Long {
    const SLOTS: usize = 32_768;
    const P: AttnParams = AttnParams {
        heads: KV_HEADS,
        kv_heads: KV_HEADS,
        head_dim: HEAD,
        v_head_dim: HEAD,
        scale: 0.1,
        window: None,
        chunk: None,
        softcap: None,
    };

    /// Appends `t` positions from `at` on. Returns the queries, as they were projected, and the batch.
    fn append(&mut self, at: usize, t: usize) -> (MlxTensor, Batch) {
        let (be, width) = (&self.be, KV_HEADS * HEAD);
        let mut batch = Batch::default();
        batch.reset(Self::SLOTS);
        batch.push(0, at, t);
        let x = be.embed(&self.table, Ids::Host(&vec![3; t])).unwrap();
        let all = be.project(Input::Rows(&x), &self.qkv, None, None).unwrap();
        let [q, k, v] = be.split_cols(all, [width; 3]).unwrap();
        let keys = Keys { x: &k, rope: Some((&self.rope, &batch)) };
        be.write_keys(&mut self.cache[0], at, keys, 0..t).unwrap();
        be.write_rows(&mut self.cache[1], at, &v, 0..t).unwrap();
        (q, batch)
    }

    /// Appends positions and computes that.
    fn write(&mut self, at: usize, t: usize) {
        self.append(at, t);
        self.be.evaluate(&[&self.cache[0], &self.cache[1]]).unwrap();
    }

    /// Appends a position that attends to all.
    fn attend(&mut self, at: usize) {
        let (q, batch) = self.append(at, 1);
        let q = self.be.rope(q, &self.rope, &batch).unwrap();
        let [k, v] = &self.cache;
        let layout = KvLayout { len: at + 1, keep: 0, ring: Self::SLOTS };
        let span = AttnSpan { rows: 0..1, k, v, layout, sink: 0, window: None };
        let y = self.be.attention(&q, &[span], &Self::P, None).unwrap();
        self.be.evaluate(&[&y]).unwrap();
    }
}

/// Tokens at the end of a context of 32,768: a step needs a small part of the memory that a copy of the keys would. On
/// MLX's CPU without attention, which copies keys and values there, whoever wrote them.
#[test]
fn a_long_cache_is_not_copied() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let gpu = std::env::var("MLX_DEVICE").is_ok_and(|d| d == "mlx-gpu");
    let device = if gpu { MlxDevice::Gpu } else { MlxDevice::Best };
    let be = Mlx::builder().device(device).build().unwrap();
    let width = KV_HEADS * HEAD;
    let matrix = |rows: usize, cols: usize| {
        let values: Vec<f32> = (0..rows * cols).map(|i| (i % 7) as f32 * 0.01).collect();
        be.prepare(&[encode(&values, vec![rows, cols], Format::Float(FloatType::BF16)).unwrap()]).unwrap()
    };
    let (table, qkv) = (matrix(8, 64), matrix(3 * width, 64));
    let inv_freq = (0..HEAD / 2).map(|i| 10_000f32.powf(-(i as f32) / 64.0)).collect();
    let rope = Rope { head_dim: HEAD, inv_freq, scale: 1.0, pairing: Pairing::Halves };
    let cache = [0, 1].map(|_| be.kv_buffer(Long::SLOTS, width).unwrap());
    let buffer = be.tensor_bytes(&cache[0]);
    let mut long = Long { be, table, qkv, rope, cache };
    let first = Long::SLOTS - 256;
    (0..first).step_by(512).for_each(|at| long.write(at, 512.min(first - at)));
    // The first step after a prompt may take memory of its own.
    let mut step = |at| if gpu { long.attend(at) } else { long.write(at, 1) };
    step(first);
    Mlx::reset_peak_memory().unwrap();
    let before = Mlx::memory().unwrap();
    let started = Instant::now();
    (first + 1..Long::SLOTS).for_each(&mut step);
    let took = started.elapsed().as_secs_f64() / 255.0;
    let extra = Mlx::memory().unwrap().peak.saturating_sub(before.active);
    println!("{:.0} us a step, {buffer} bytes of keys, {extra} more at most", took * 1e6);
    assert!(extra < buffer / 8, "{extra} bytes beside a buffer of {buffer}");
}
