//! What the places of evals cost on MLX: tokens a second with too many, with too few, and as they are. A backend that
//! wraps another changes one thing and is loaded in its place. Prints a table:
//!
//!     cargo run --config target/mlx/config.toml --release --features mlx --example mlx_pace
//!
//! `MLX_DEVICE` is the device, `PACE_MODEL` a shape and `PACE_QUANTIZE` a format, as `bench` has them.

use std::ops::Range;
use std::time::Instant;

use rillm::generate::{Session, Want, Work};
use rillm::models::Registry;
use rillm::quant::RawTensor;
use rillm::tensor::mlx::{Mlx, MlxDevice, MlxTensor, MlxWeight};
use rillm::tensor::{
    Activation, AttnParams, AttnSpan, Backend, Batch, Experts, Ids, Input, Keys, Recurrent, Result, Rope,
    Routing, Sampling,
};
use rillm::{Loader, RandomShape};

/// When MLX is asked to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// After every projection and every attention.
    EachOperation,
    /// When a token is read, and not before: no pass runs ahead, and a prompt is one graph.
    WhenRead,
    /// As the session asks.
    AsItIs,
}

#[derive(Clone, Debug)]
struct Paced(Mlx, Pace);

impl Paced {
    fn done(&self, x: MlxTensor) -> Result<MlxTensor> {
        if self.1 == Pace::EachOperation {
            self.0.evaluate(&[&x])?;
        }
        Ok(x)
    }
}

fn plain(input: Input<'_, Paced>) -> Input<'_, Mlx> {
    match input {
        Input::Rows(x) => Input::Rows(x),
        Input::RmsNorm { x, w, eps } => Input::RmsNorm { x, w, eps },
        Input::LayerNorm { x, w, bias, eps } => Input::LayerNorm { x, w, bias, eps },
        Input::Gated { act, gate_up } => Input::Gated { act, gate_up },
    }
}

/// No family of this test has experts or states.
impl Experts for Paced {
    type Routes = <Mlx as Experts>::Routes;

    fn stack(&self, matrices: Vec<MlxWeight>) -> Result<MlxWeight> {
        self.0.stack(matrices)
    }
    fn route(
        &self,
        logits: &MlxTensor,
        bias: Option<&MlxWeight>,
        factors: Option<&MlxWeight>,
        how: &Routing,
    ) -> Result<Self::Routes> {
        self.0.route(logits, bias, factors, how)
    }
    fn spread(&self, x: &MlxTensor, routes: &Self::Routes) -> Result<MlxTensor> {
        self.0.spread(x, routes)
    }
    fn linear_experts(
        &self,
        x: Input<'_, Self>,
        w: &MlxWeight,
        bias: Option<&MlxWeight>,
        routes: &Self::Routes,
    ) -> Result<MlxTensor> {
        self.0.linear_experts(plain(x), w, bias, routes)
    }
    fn combine(&self, y: MlxTensor, routes: &Self::Routes, residual: Option<MlxTensor>) -> Result<MlxTensor> {
        self.0.combine(y, routes, residual)
    }
    fn join_heads(&self, a: &MlxTensor, b: &MlxTensor, heads: usize) -> Result<MlxTensor> {
        self.0.join_heads(a, b, heads)
    }
    fn linear_heads(&self, x: &MlxTensor, w: &MlxWeight) -> Result<MlxTensor> {
        self.0.linear_heads(x, w)
    }
}

impl Recurrent for Paced {}

impl Backend for Paced {
    type Tensor = MlxTensor;
    type Weight = MlxWeight;

    fn name(&self) -> String {
        self.0.name()
    }
    fn shape(&self, x: &MlxTensor) -> [usize; 2] {
        self.0.shape(x)
    }
    fn prepare(&self, parts: &[RawTensor<'_>]) -> Result<MlxWeight> {
        self.0.prepare(parts)
    }
    fn weight_bytes(&self, w: &MlxWeight) -> usize {
        self.0.weight_bytes(w)
    }
    fn kv_buffer(&self, rows: usize, cols: usize) -> Result<MlxTensor> {
        self.0.kv_buffer(rows, cols)
    }
    fn tensor_bytes(&self, x: &MlxTensor) -> usize {
        self.0.tensor_bytes(x)
    }
    fn embed(&self, table: &MlxWeight, ids: Ids<'_, Self>) -> Result<MlxTensor> {
        self.0.embed(
            table,
            match ids {
                Ids::Host(ids) => Ids::Host(ids),
                Ids::Device(ids) => Ids::Device(ids),
            },
        )
    }
    fn linear(&self, x: &MlxTensor, w: &MlxWeight, bias: Option<&MlxWeight>) -> Result<MlxTensor> {
        self.done(self.0.linear(x, w, bias)?)
    }
    fn rms_norm(&self, x: &MlxTensor, w: &MlxWeight, eps: f32) -> Result<MlxTensor> {
        self.0.rms_norm(x, w, eps)
    }
    fn layer_norm(
        &self,
        x: &MlxTensor,
        w: &MlxWeight,
        bias: Option<&MlxWeight>,
        eps: f32,
    ) -> Result<MlxTensor> {
        self.0.layer_norm(x, w, bias, eps)
    }
    fn rope(&self, x: MlxTensor, rope: &Rope, batch: &Batch) -> Result<MlxTensor> {
        self.0.rope(x, rope, batch)
    }
    fn attention(
        &self,
        q: &MlxTensor,
        spans: &[AttnSpan<'_, MlxTensor>],
        p: &AttnParams,
        sinks: Option<&MlxWeight>,
    ) -> Result<MlxTensor> {
        self.done(self.0.attention(q, spans, p, sinks)?)
    }
    fn upload(&self, rows: usize, cols: usize, values: &[f32]) -> Result<MlxTensor> {
        self.0.upload(rows, cols, values)
    }
    fn scale_rows(&self, x: MlxTensor, factors: &[f32]) -> Result<MlxTensor> {
        self.0.scale_rows(x, factors)
    }
    fn scale_cols(&self, x: MlxTensor, factors: &MlxWeight) -> Result<MlxTensor> {
        self.0.scale_cols(x, factors)
    }
    fn activate(&self, act: Activation, x: MlxTensor) -> Result<MlxTensor> {
        self.0.activate(act, x)
    }
    fn gate(&self, act: Activation, gate: MlxTensor, up: &MlxTensor) -> Result<MlxTensor> {
        self.0.gate(act, gate, up)
    }
    fn add(&self, x: MlxTensor, y: &MlxTensor) -> Result<MlxTensor> {
        self.0.add(x, y)
    }
    fn scale(&self, x: MlxTensor, factor: f32) -> Result<MlxTensor> {
        self.0.scale(x, factor)
    }
    fn softcap(&self, x: MlxTensor, cap: f32) -> Result<MlxTensor> {
        self.0.softcap(x, cap)
    }
    fn split_cols<const N: usize>(&self, x: MlxTensor, widths: [usize; N]) -> Result<[MlxTensor; N]> {
        self.0.split_cols(x, widths)
    }
    fn take_rows(&self, x: &MlxTensor, rows: &[usize]) -> Result<MlxTensor> {
        self.0.take_rows(x, rows)
    }
    fn write_rows(&self, to: &mut MlxTensor, at: usize, x: &MlxTensor, rows: Range<usize>) -> Result<()> {
        self.0.write_rows(to, at, x, rows)
    }
    fn read(&self, x: &MlxTensor, out: &mut Vec<f32>) -> Result<()> {
        self.0.read(x, out)
    }
    fn project(
        &self,
        input: Input<'_, Self>,
        w: &MlxWeight,
        bias: Option<&MlxWeight>,
        residual: Option<MlxTensor>,
    ) -> Result<MlxTensor> {
        self.done(self.0.project(plain(input), w, bias, residual)?)
    }
    fn write_keys(
        &self,
        to: &mut MlxTensor,
        at: usize,
        k: Keys<'_, MlxTensor>,
        rows: Range<usize>,
    ) -> Result<()> {
        self.0.write_keys(to, at, k, rows)
    }
    fn argmax(&self, logits: &MlxTensor) -> Result<Option<MlxTensor>> {
        self.0.argmax(logits)
    }
    fn sample(&self, logits: &MlxTensor, how: &Sampling, points: &[f32]) -> Result<Option<MlxTensor>> {
        self.0.sample(logits, how, points)
    }
    fn read_ids(&self, ids: &MlxTensor, out: &mut Vec<u32>) -> Result<()> {
        self.0.read_ids(ids, out)
    }
    fn submit(&self, xs: &[&MlxTensor]) -> Result<()> {
        if self.1 == Pace::WhenRead { Ok(()) } else { self.0.submit(xs) }
    }
    fn evaluate(&self, xs: &[&MlxTensor]) -> Result<()> {
        if self.1 == Pace::WhenRead { Ok(()) } else { self.0.evaluate(xs) }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let text = |name: &str, default: &str| std::env::var(name).unwrap_or(default.to_owned());
    let gpu = text("MLX_DEVICE", "") == "mlx-gpu";
    let (prompt, tokens) = if gpu { (4096, 128) } else { (128, 16) };
    for pace in [Pace::EachOperation, Pace::WhenRead, Pace::AsItIs] {
        let shape = text("PACE_MODEL", "smollm2-135m").parse::<RandomShape>()?;
        let shape = shape.quantized(&text("PACE_QUANTIZE", "4:64"))?;
        let make = move || {
            let device = if gpu { MlxDevice::Gpu } else { MlxDevice::Best };
            Ok(Paced(Mlx::builder().device(device).build()?, pace))
        };
        let lm = Loader::random(shape).context(8192).load_on_thread(make, Registry::default())?;
        let mut s = lm.session();
        // The first time compiles kernels.
        let (mut rates, mut peak) = ([0.0; 2], 0.0);
        for _ in 0..2 {
            let sequence = s.open();
            let (mut ahead, mut picked) = (prompt, Vec::new());
            let started = Instant::now();
            for chunk in vec![7; prompt].chunks(prompt.min(512)) {
                ahead -= chunk.len();
                let want = if ahead == 0 { Want::Last } else { Want::Nothing };
                let work = [Work { sequence, tokens: chunk, ahead, want }];
                match ahead {
                    0 => s.step_picking(&work, &mut picked)?,
                    _ => s.step(&work, &mut Vec::new())?,
                }
            }
            let first = started.elapsed().as_secs_f64();
            for _ in 0..tokens {
                let last = picked.clone();
                s.step_picking(&[Work { sequence, tokens: &last, ahead: 0, want: Want::Last }], &mut picked)?;
            }
            let rest = started.elapsed().as_secs_f64() - first;
            rates = [prompt as f64 / first, tokens as f64 / rest];
            peak = Mlx::memory()?.peak as f64 / 1e6;
            s.close(sequence);
        }
        let [prefill, decode] = rates;
        println!("{pace:?}: prefill {prefill:.0}, decode {decode:.1} tokens/s, peak {peak:.0} MB");
    }
    Ok(())
}
