//! Whether operands fit each other, before anything is recorded.

use std::ops::Range;

use super::{MlxTensor, shape};
use crate::{AttnParams, AttnSpan, Batch, KvLayout, Result, Rope};

pub(super) fn same_shape(op: &'static str, got: &MlxTensor, want: &MlxTensor) -> Result<()> {
    let (got, want) = (got.shape(), want.shape());
    if got == want { Ok(()) } else { Err(shape(op, got, want)) }
}

/// Rows `rows` of `src` that go to `dst` from `at` on, which has room for them.
pub(super) fn check_write(dst: &MlxTensor, at: usize, src: &MlxTensor, rows: &Range<usize>) -> Result<()> {
    let ([slots, cols], [t, d]) = (dst.shape(), src.shape());
    let there = rows.start <= rows.end && rows.end <= t && d == cols;
    if !there || at.checked_add(rows.len()).is_none_or(|end| end > slots) {
        return Err(shape("write_rows", [t, d], [slots, cols]));
    }
    Ok(())
}

pub(super) fn check_rope(x: &MlxTensor, rope: &Rope, batch: &Batch) -> Result<()> {
    let [t, d] = x.shape();
    let fits =
        rope.head_dim > 0 && d.is_multiple_of(rope.head_dim) && rope.inv_freq.len() <= rope.head_dim / 2;
    if fits && batch.rows() == t { Ok(()) } else { Err(shape("rope", [t, d], [batch.rows(), rope.head_dim])) }
}

pub(super) fn check_span(q: &MlxTensor, s: &AttnSpan<'_, MlxTensor>, p: &AttnParams) -> Result<()> {
    let KvLayout { len, keep, ring } = s.layout;
    let slots = len.min(keep.saturating_add(ring));
    let fits = |x: &MlxTensor, dim| {
        let [rows, cols] = x.shape();
        cols == dim && rows >= slots && (ring > 0 || len <= keep)
    };
    if fits(s.k, p.k_dim()) && fits(s.v, p.v_dim()) && s.rows.end <= q.shape()[0] && s.rows.len() <= len {
        return Ok(());
    }
    Err(shape("attention", s.k.shape(), [slots, p.k_dim()]))
}
