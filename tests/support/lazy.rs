//! A backend that picks on the "device": the CPU's arithmetic, ids that only tensors hold, and a list of what was asked
//! for in which order. Not lazy in fact: what matters is when a session starts, computes and reads.
#![allow(clippy::unwrap_used, dead_code, missing_docs)]

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rillm::generate::argmax;
use rillm::models::Registry;
use rillm::quant::RawTensor;
use rillm::tensor::cpu::{Cpu, Precision};
use rillm::tensor::{
    Activation, AttnParams, AttnSpan, Backend, Batch, Error, Experts, Ids, Input, Keys, LinearAttention,
    Recurrent, Result, RgLru, Rope, Routing, Rule, Sampling, SelectiveScan, ShortConv, StateSpan, States,
};
use rillm::{LanguageModel, Loader};

type CpuTensor = <Cpu as Backend>::Tensor;
type CpuWeight = <Cpu as Backend>::Weight;

/// What a session asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// A forward pass over tokens of the host.
    Host,
    /// A forward pass over tokens that the device picked.
    Device,
    Submit,
    /// Of so many tensors.
    Evaluate(usize),
    Read,
    ReadIds,
}

#[derive(Debug, Default)]
struct State {
    calls: Vec<Call>,
    /// The call that fails, and how often it still does.
    fault: Option<(Call, usize)>,
}

#[derive(Clone, Debug)]
pub struct Lazy {
    cpu: Cpu,
    state: Arc<Mutex<State>>,
}

#[derive(Clone, Debug)]
pub enum Value {
    Rows(CpuTensor),
    Ids(Arc<[u32]>),
}

impl Value {
    fn rows(&self) -> &CpuTensor {
        match self {
            Self::Rows(x) => x,
            Self::Ids(_) => panic!("ids are no rows"),
        }
    }

    fn ids(&self) -> &[u32] {
        match self {
            Self::Ids(ids) => ids,
            Self::Rows(_) => panic!("rows are no ids"),
        }
    }

    fn into_rows(self) -> CpuTensor {
        match self {
            Self::Rows(x) => x,
            Self::Ids(_) => panic!("ids are no rows"),
        }
    }
}

impl Lazy {
    pub fn new(threads: usize) -> Self {
        let cpu = Cpu::builder().threads(threads).precision(Precision::Exact).build().unwrap();
        Self { cpu, state: Arc::default() }
    }

    /// The model of a golden checkpoint on this backend.
    pub fn load(&self, folder: &Path) -> LanguageModel {
        Loader::new(super::support::source(folder)).load_on(self.clone(), &Registry::default()).unwrap()
    }

    /// What was asked for since the last time.
    pub fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.state.lock().unwrap().calls)
    }

    /// Lets the next `times` of `call` fail.
    pub fn fail(&self, call: Call, times: usize) {
        self.state.lock().unwrap().fault = Some((call, times));
    }

    fn note(&self, call: Call) -> Result<()> {
        let mut state = self.state.lock().unwrap();
        state.calls.push(call);
        match &mut state.fault {
            Some((faulty, times)) if *faulty == call && *times > 0 => {
                *times -= 1;
                Err(Error::OutOfMemory { what: "this test", bytes: 1 })
            }
            _ => Ok(()),
        }
    }
}

fn input<'a>(input: Input<'a, Lazy>) -> Input<'a, Cpu> {
    match input {
        Input::Rows(x) => Input::Rows(x.rows()),
        Input::RmsNorm { x, w, eps } => Input::RmsNorm { x: x.rows(), w, eps },
        Input::LayerNorm { x, w, bias, eps } => Input::LayerNorm { x: x.rows(), w, bias, eps },
        Input::Gated { act, gate_up } => Input::Gated { act, gate_up: gate_up.rows() },
    }
}

impl Backend for Lazy {
    type Tensor = Value;
    type Weight = CpuWeight;

    fn name(&self) -> String {
        "lazy".to_owned()
    }
    fn shape(&self, x: &Value) -> [usize; 2] {
        self.cpu.shape(x.rows())
    }
    fn prepare(&self, parts: &[RawTensor<'_>]) -> Result<CpuWeight> {
        self.cpu.prepare(parts)
    }
    fn weight_bytes(&self, w: &CpuWeight) -> usize {
        self.cpu.weight_bytes(w)
    }
    fn kv_buffer(&self, rows: usize, cols: usize) -> Result<Value> {
        self.cpu.kv_buffer(rows, cols).map(Value::Rows)
    }
    fn tensor_bytes(&self, x: &Value) -> usize {
        self.cpu.tensor_bytes(x.rows())
    }
    fn embed(&self, table: &CpuWeight, ids: Ids<'_, Self>) -> Result<Value> {
        let ids = match ids {
            Ids::Host(ids) => {
                self.note(Call::Host)?;
                ids
            }
            Ids::Device(ids) => {
                self.note(Call::Device)?;
                ids.ids()
            }
        };
        self.cpu.embed(table, Ids::Host(ids)).map(Value::Rows)
    }
    fn linear(&self, x: &Value, w: &CpuWeight, bias: Option<&CpuWeight>) -> Result<Value> {
        self.cpu.linear(x.rows(), w, bias).map(Value::Rows)
    }
    fn rms_norm(&self, x: &Value, w: &CpuWeight, eps: f32) -> Result<Value> {
        self.cpu.rms_norm(x.rows(), w, eps).map(Value::Rows)
    }
    fn layer_norm(&self, x: &Value, w: &CpuWeight, bias: Option<&CpuWeight>, eps: f32) -> Result<Value> {
        self.cpu.layer_norm(x.rows(), w, bias, eps).map(Value::Rows)
    }
    fn rope(&self, x: Value, rope: &Rope, batch: &Batch) -> Result<Value> {
        self.cpu.rope(x.into_rows(), rope, batch).map(Value::Rows)
    }
    fn attention(
        &self,
        q: &Value,
        spans: &[AttnSpan<'_, Value>],
        p: &AttnParams,
        sinks: Option<&CpuWeight>,
    ) -> Result<Value> {
        fn of_cpu<'a>(s: &AttnSpan<'a, Value>) -> AttnSpan<'a, CpuTensor> {
            AttnSpan {
                rows: s.rows.clone(),
                k: s.k.rows(),
                v: s.v.rows(),
                layout: s.layout,
                sink: s.sink,
                window: s.window,
            }
        }
        let spans: Vec<_> = spans.iter().map(of_cpu).collect();
        self.cpu.attention(q.rows(), &spans, p, sinks).map(Value::Rows)
    }
    fn activate(&self, act: Activation, x: Value) -> Result<Value> {
        self.cpu.activate(act, x.into_rows()).map(Value::Rows)
    }
    fn gate(&self, act: Activation, gate: Value, up: &Value) -> Result<Value> {
        self.cpu.gate(act, gate.into_rows(), up.rows()).map(Value::Rows)
    }
    fn add(&self, x: Value, y: &Value) -> Result<Value> {
        self.cpu.add(x.into_rows(), y.rows()).map(Value::Rows)
    }
    fn scale(&self, x: Value, factor: f32) -> Result<Value> {
        self.cpu.scale(x.into_rows(), factor).map(Value::Rows)
    }
    fn scale_rows(&self, x: Value, factors: &[f32]) -> Result<Value> {
        self.cpu.scale_rows(x.into_rows(), factors).map(Value::Rows)
    }
    fn scale_cols(&self, x: Value, factors: &CpuWeight) -> Result<Value> {
        self.cpu.scale_cols(x.into_rows(), factors).map(Value::Rows)
    }
    fn softcap(&self, x: Value, cap: f32) -> Result<Value> {
        self.cpu.softcap(x.into_rows(), cap).map(Value::Rows)
    }
    fn split_cols<const N: usize>(&self, x: Value, widths: [usize; N]) -> Result<[Value; N]> {
        Ok(self.cpu.split_cols(x.into_rows(), widths)?.map(Value::Rows))
    }
    fn take_rows(&self, x: &Value, rows: &[usize]) -> Result<Value> {
        self.cpu.take_rows(x.rows(), rows).map(Value::Rows)
    }
    fn write_rows(&self, dst: &mut Value, at: usize, src: &Value, rows: Range<usize>) -> Result<()> {
        let Value::Rows(dst) = dst else { panic!("ids are no rows") };
        self.cpu.write_rows(dst, at, src.rows(), rows)
    }
    fn upload(&self, rows: usize, cols: usize, values: &[f32]) -> Result<Value> {
        self.cpu.upload(rows, cols, values).map(Value::Rows)
    }
    fn read(&self, x: &Value, out: &mut Vec<f32>) -> Result<()> {
        self.note(Call::Read)?;
        self.cpu.read(x.rows(), out)
    }
    fn project(
        &self,
        x: Input<'_, Self>,
        w: &CpuWeight,
        bias: Option<&CpuWeight>,
        residual: Option<Value>,
    ) -> Result<Value> {
        self.cpu.project(input(x), w, bias, residual.map(Value::into_rows)).map(Value::Rows)
    }
    fn write_keys(
        &self,
        dst: &mut Value,
        at: usize,
        keys: Keys<'_, Value>,
        rows: Range<usize>,
    ) -> Result<()> {
        let Value::Rows(dst) = dst else { panic!("ids are no rows") };
        self.cpu.write_keys(dst, at, Keys { x: keys.x.rows(), rope: keys.rope }, rows)
    }
    fn argmax(&self, logits: &Value) -> Result<Option<Value>> {
        let (mut values, [_, vocab]) = (Vec::new(), self.shape(logits));
        self.cpu.read(logits.rows(), &mut values)?;
        let ids = values.chunks_exact(vocab).map(|row| argmax(row).unwrap().0).collect();
        Ok(Some(Value::Ids(ids)))
    }
    fn sample(&self, logits: &Value, how: &Sampling, points: &[f32]) -> Result<Option<Value>> {
        let (mut values, [_, vocab]) = (Vec::new(), self.shape(logits));
        self.cpu.read(logits.rows(), &mut values)?;
        let draw = |(row, point): (&[f32], &f32)| {
            let masses = how.masses(row);
            let mut left = f64::from(*point) * masses.iter().map(|m| m.1).sum::<f64>();
            let reached = masses.iter().find(|m| {
                left -= m.1;
                left < 0.0
            });
            reached.unwrap().0 as u32
        };
        assert_eq!(points.len() * vocab, values.len());
        Ok(Some(Value::Ids(values.chunks_exact(vocab).zip(points).map(draw).collect())))
    }
    fn read_ids(&self, ids: &Value, out: &mut Vec<u32>) -> Result<()> {
        self.note(Call::ReadIds)?;
        out.extend_from_slice(ids.ids());
        Ok(())
    }
    fn submit(&self, _: &[&Value]) -> Result<()> {
        self.note(Call::Submit)
    }
    fn evaluate(&self, xs: &[&Value]) -> Result<()> {
        assert!(xs.iter().all(|x| matches!(x, Value::Rows(_))));
        self.note(Call::Evaluate(xs.len()))
    }
}

impl Experts for Lazy {
    type Routes = <Cpu as Experts>::Routes;

    fn stack(&self, matrices: Vec<CpuWeight>) -> Result<CpuWeight> {
        self.cpu.stack(matrices)
    }
    fn route(
        &self,
        logits: &Value,
        bias: Option<&CpuWeight>,
        factors: Option<&CpuWeight>,
        how: &Routing,
    ) -> Result<Self::Routes> {
        self.cpu.route(logits.rows(), bias, factors, how)
    }
    fn spread(&self, x: &Value, routes: &Self::Routes) -> Result<Value> {
        self.cpu.spread(x.rows(), routes).map(Value::Rows)
    }
    fn linear_experts(
        &self,
        x: Input<'_, Self>,
        w: &CpuWeight,
        bias: Option<&CpuWeight>,
        routes: &Self::Routes,
    ) -> Result<Value> {
        self.cpu.linear_experts(input(x), w, bias, routes).map(Value::Rows)
    }
    fn combine(&self, y: Value, routes: &Self::Routes, residual: Option<Value>) -> Result<Value> {
        self.cpu.combine(y.into_rows(), routes, residual.map(Value::into_rows)).map(Value::Rows)
    }
    fn join_heads(&self, a: &Value, b: &Value, heads: usize) -> Result<Value> {
        self.cpu.join_heads(a.rows(), b.rows(), heads).map(Value::Rows)
    }
    fn linear_heads(&self, x: &Value, w: &CpuWeight) -> Result<Value> {
        self.cpu.linear_heads(x.rows(), w).map(Value::Rows)
    }
}

/// Spans over the CPU's states.
fn states<'a>(spans: &[StateSpan<'a, Value>]) -> Vec<StateSpan<'a, CpuTensor>> {
    spans.iter().map(|s| StateSpan { rows: s.rows.clone(), state: s.state.map(Value::rows) }).collect()
}

fn values((y, states): (CpuTensor, States<CpuTensor>)) -> (Value, States<Value>) {
    (Value::Rows(y), states.into_iter().map(Value::Rows).collect())
}

fn rule<'a>(rule: &Rule<'a, Value>) -> Rule<'a, CpuTensor> {
    match *rule {
        Rule::Constant { decay } => Rule::Constant { decay: decay.rows() },
        Rule::Ssd { dt, dt_bias, a, d, limits } => {
            Rule::Ssd { dt: dt.rows(), dt_bias: dt_bias.rows(), a: a.rows(), d: d.rows(), limits }
        }
        Rule::Delta { gate, dt_bias, a, beta } => {
            Rule::Delta { gate: gate.rows(), dt_bias: dt_bias.rows(), a: a.rows(), beta: beta.rows() }
        }
        Rule::Wkv7 { decay, a, b } => Rule::Wkv7 { decay: decay.rows(), a: a.rows(), b: b.rows() },
    }
}

impl Recurrent for Lazy {
    fn short_conv(
        &self,
        x: &Value,
        p: &ShortConv<'_, Value>,
        spans: &[StateSpan<'_, Value>],
    ) -> Result<(Value, States<Value>)> {
        let p = ShortConv { kernel: p.kernel.rows(), bias: p.bias.map(Value::rows), act: p.act };
        self.cpu.short_conv(x.rows(), &p, &states(spans)).map(values)
    }
    fn selective_scan(
        &self,
        x: &Value,
        p: &SelectiveScan<'_, Value>,
        spans: &[StateSpan<'_, Value>],
    ) -> Result<(Value, States<Value>)> {
        let SelectiveScan { dt, b, c, a, d } = *p;
        let p = SelectiveScan { dt: dt.rows(), b: b.rows(), c: c.rows(), a: a.rows(), d: d.rows() };
        self.cpu.selective_scan(x.rows(), &p, &states(spans)).map(values)
    }
    fn linear_attention(
        &self,
        p: &LinearAttention<'_, Value>,
        spans: &[StateSpan<'_, Value>],
    ) -> Result<(Value, States<Value>)> {
        let (q, k, v, rule) = (p.q.rows(), p.k.rows(), p.v.rows(), rule(&p.rule));
        let p = LinearAttention { q, k, v, heads: p.heads, key_heads: p.key_heads, rule };
        self.cpu.linear_attention(&p, &states(spans)).map(values)
    }
    fn head_linear(&self, x: &Value, w: &Value, bias: &Value) -> Result<Value> {
        self.cpu.head_linear(x.rows(), w.rows(), bias.rows()).map(Value::Rows)
    }
    fn rg_lru(
        &self,
        x: &Value,
        p: &RgLru<'_, Value>,
        spans: &[StateSpan<'_, Value>],
    ) -> Result<(Value, States<Value>)> {
        let p = RgLru { input: p.input.rows(), recurrent: p.recurrent.rows(), param: p.param.rows() };
        self.cpu.rg_lru(x.rows(), &p, &states(spans)).map(values)
    }
}
