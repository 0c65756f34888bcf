//! A backend without fusions: the operations of another one, and the default bodies. Not a test.

use std::ops::Range;

use rillm_quant::RawTensor;
use rillm_tensor_core::{
    Activation, AttnParams, AttnSpan, Backend, Batch, Experts, Ids, Input, Recurrent, Result, Rope, Routing,
};

/// `B` without what it overrides.
#[derive(Clone, Debug)]
pub struct Plain<B>(pub B);

impl<B: Backend> Backend for Plain<B> {
    type Tensor = B::Tensor;
    type Weight = B::Weight;

    fn name(&self) -> String {
        format!("{} without fusions", self.0.name())
    }
    fn shape(&self, x: &B::Tensor) -> [usize; 2] {
        self.0.shape(x)
    }
    fn prepare(&self, parts: &[RawTensor<'_>]) -> Result<B::Weight> {
        self.0.prepare(parts)
    }
    fn weight_bytes(&self, w: &B::Weight) -> usize {
        self.0.weight_bytes(w)
    }
    fn kv_buffer(&self, rows: usize, cols: usize) -> Result<B::Tensor> {
        self.0.kv_buffer(rows, cols)
    }
    fn tensor_bytes(&self, x: &B::Tensor) -> usize {
        self.0.tensor_bytes(x)
    }
    fn embed(&self, table: &B::Weight, ids: Ids<'_, Self>) -> Result<B::Tensor> {
        match ids {
            Ids::Host(ids) => self.0.embed(table, Ids::Host(ids)),
            Ids::Device(ids) => self.0.embed(table, Ids::Device(ids)),
        }
    }
    fn linear(&self, x: &B::Tensor, w: &B::Weight, bias: Option<&B::Weight>) -> Result<B::Tensor> {
        self.0.linear(x, w, bias)
    }
    fn rms_norm(&self, x: &B::Tensor, w: &B::Weight, eps: f32) -> Result<B::Tensor> {
        self.0.rms_norm(x, w, eps)
    }
    fn layer_norm(
        &self,
        x: &B::Tensor,
        w: &B::Weight,
        bias: Option<&B::Weight>,
        eps: f32,
    ) -> Result<B::Tensor> {
        self.0.layer_norm(x, w, bias, eps)
    }
    fn rope(&self, x: B::Tensor, rope: &Rope, batch: &Batch) -> Result<B::Tensor> {
        self.0.rope(x, rope, batch)
    }
    fn attention(
        &self,
        q: &B::Tensor,
        spans: &[AttnSpan<'_, B::Tensor>],
        p: &AttnParams,
        sinks: Option<&B::Weight>,
    ) -> Result<B::Tensor> {
        self.0.attention(q, spans, p, sinks)
    }
    fn activate(&self, act: Activation, x: B::Tensor) -> Result<B::Tensor> {
        self.0.activate(act, x)
    }
    fn gate(&self, act: Activation, gate: B::Tensor, up: &B::Tensor) -> Result<B::Tensor> {
        self.0.gate(act, gate, up)
    }
    fn add(&self, x: B::Tensor, y: &B::Tensor) -> Result<B::Tensor> {
        self.0.add(x, y)
    }
    fn scale(&self, x: B::Tensor, factor: f32) -> Result<B::Tensor> {
        self.0.scale(x, factor)
    }
    fn scale_rows(&self, x: B::Tensor, factors: &[f32]) -> Result<B::Tensor> {
        self.0.scale_rows(x, factors)
    }
    fn scale_cols(&self, x: B::Tensor, factors: &B::Weight) -> Result<B::Tensor> {
        self.0.scale_cols(x, factors)
    }
    fn softcap(&self, x: B::Tensor, cap: f32) -> Result<B::Tensor> {
        self.0.softcap(x, cap)
    }
    fn split_cols<const N: usize>(&self, x: B::Tensor, widths: [usize; N]) -> Result<[B::Tensor; N]> {
        self.0.split_cols(x, widths)
    }
    fn take_rows(&self, x: &B::Tensor, rows: &[usize]) -> Result<B::Tensor> {
        self.0.take_rows(x, rows)
    }
    fn write_rows(&self, dst: &mut B::Tensor, at: usize, src: &B::Tensor, rows: Range<usize>) -> Result<()> {
        self.0.write_rows(dst, at, src, rows)
    }
    fn upload(&self, rows: usize, cols: usize, values: &[f32]) -> Result<B::Tensor> {
        self.0.upload(rows, cols, values)
    }
    fn read(&self, x: &B::Tensor, out: &mut Vec<f32>) -> Result<()> {
        self.0.read(x, out)
    }
}

/// Experts have no fusions, but for what a product reads.
impl<B: Experts> Experts for Plain<B> {
    type Routes = B::Routes;

    fn stack(&self, matrices: Vec<B::Weight>) -> Result<B::Weight> {
        self.0.stack(matrices)
    }
    fn route(
        &self,
        logits: &B::Tensor,
        bias: Option<&B::Weight>,
        factors: Option<&B::Weight>,
        how: &Routing,
    ) -> Result<B::Routes> {
        self.0.route(logits, bias, factors, how)
    }
    fn spread(&self, x: &B::Tensor, routes: &B::Routes) -> Result<B::Tensor> {
        self.0.spread(x, routes)
    }
    fn linear_experts(
        &self,
        x: Input<'_, Self>,
        w: &B::Weight,
        bias: Option<&B::Weight>,
        routes: &B::Routes,
    ) -> Result<B::Tensor> {
        self.0.linear_experts(Input::Rows(&x.rows(self)?), w, bias, routes)
    }
    fn combine(&self, y: B::Tensor, routes: &B::Routes, residual: Option<B::Tensor>) -> Result<B::Tensor> {
        self.0.combine(y, routes, residual)
    }
    fn join_heads(&self, a: &B::Tensor, b: &B::Tensor, heads: usize) -> Result<B::Tensor> {
        self.0.join_heads(a, b, heads)
    }
    fn linear_heads(&self, x: &B::Tensor, w: &B::Weight) -> Result<B::Tensor> {
        self.0.linear_heads(x, w)
    }
}

impl<B: Backend> Recurrent for Plain<B> {}
