//! Attention over key buffers: MLX's fused operation, or its parts where scores are capped. What a query sees of a
//! buffer is told by the buffer's layout, as a mask where "everything up to itself" does not say it.

use mlx_rs::fast::{ScaledDotProductAttentionMask as Mask, scaled_dot_product_attention};
use mlx_rs::{Array, Dtype, ops};

use super::raw::slice;
use super::{Mlx, MlxTensor, dim, exception};
use crate::{AttnParams, AttnSpan, KvLayout, Result};

/// What hides slots from queries.
enum Hidden {
    /// Nothing.
    Nothing,
    /// Positions after the query.
    Future,
    /// What is false: `[t, slots]`.
    Some(Array),
}

/// `q: [t, heads * head_dim]`, rows of one span, over that span's keys. Operands have been checked.
pub(super) fn attention(
    be: &Mlx,
    q: &Array,
    span: &AttnSpan<'_, MlxTensor>,
    (p, sinks): (&AttnParams, Option<&Array>),
) -> Result<Array> {
    let KvLayout { len, keep, ring } = span.layout;
    let (t, slots) = (span.rows.len(), len.min(keep.saturating_add(ring)));
    let hidden = hidden(span, p, slots)?;
    let heads = |x: &Array, rows: usize, heads: usize, head: usize| -> Result<Array> {
        let shape = [1, dim(rows)?, dim(heads)?, dim(head)?];
        x.reshape(&shape).and_then(|x| x.transpose_axes(&[0, 2, 1, 3])).map_err(exception)
    };
    let stored = |x: &MlxTensor, head: usize| -> Result<Array> {
        let [_, cols] = x.shape();
        heads(&slice(&*x.rows(slots, be)?, [0, 0], [dim(slots)?, dim(cols)?])?, slots, p.kv_heads, head)
    };
    // One row needs no transposing, only another shape.
    let q = if t == 1 {
        q.reshape(&[1, dim(p.heads)?, 1, dim(p.head_dim)?]).map_err(exception)?
    } else {
        heads(q, t, p.heads, p.head_dim)?
    };
    let (k, v) = (stored(span.k, p.head_dim)?, stored(span.v, p.v_head_dim)?);
    let out = match p.softcap {
        Some(cap) => capped(&q, [&k, &v], (p, sinks), cap, &hidden)?,
        None => {
            // MLX wants the type of the queries.
            let sinks = sinks.map(|s| s.as_dtype(q.dtype())).transpose().map_err(exception)?;
            let sinks = sinks.as_ref();
            match &hidden {
                Hidden::Nothing => scaled_dot_product_attention(q, k, v, p.scale, None, sinks),
                Hidden::Future => scaled_dot_product_attention(q, k, v, p.scale, Mask::Causal, sinks),
                Hidden::Some(mask) => scaled_dot_product_attention(q, k, v, p.scale, mask, sinks),
            }
            .map_err(exception)?
        }
    };
    let rows = [dim(t)?, dim(p.out_dim())?];
    if t == 1 {
        return out.reshape(&rows).map_err(exception);
    }
    out.transpose_axes(&[0, 2, 1, 3]).and_then(|x| x.reshape(&rows)).map_err(exception)
}

/// What slots each query of `span` does not see.
fn hidden(span: &AttnSpan<'_, MlxTensor>, p: &AttnParams, slots: usize) -> Result<Hidden> {
    let KvLayout { len, keep, .. } = span.layout;
    let t = span.rows.len();
    let window = p.narrower(span.window);
    // What the last query sees, all see that is before them.
    if slots == len && len > 0 && p.first_seen(len - 1, window) == 0 {
        return Ok(if t == 1 { Hidden::Nothing } else { Hidden::Future });
    }
    // The latest position in each slot.
    let mut positions = vec![usize::MAX; slots];
    for p in (0..keep.min(len)).chain(span.layout.oldest()..len) {
        positions[span.layout.slot(p)] = p;
    }
    let mut mask = Vec::with_capacity(t * slots);
    for query in len - t..len {
        let first = p.first_seen(query, window);
        mask.extend(positions.iter().map(|key| *key <= query && (*key >= first || *key < span.sink)));
    }
    if mask.iter().all(|seen| *seen) {
        return Ok(Hidden::Nothing);
    }
    Ok(Hidden::Some(Array::from_slice(&mask, &[dim(t)?, dim(slots)?])))
}

/// Attention whose scores become `cap * tanh(score / cap)`, in `f32`.
fn capped(
    q: &Array,
    [k, v]: [&Array; 2],
    (p, sinks): (&AttnParams, Option<&Array>),
    cap: f32,
    hidden: &Hidden,
) -> Result<Array> {
    let (t, slots) = (q.dim(2), k.dim(2));
    let group = dim(p.heads / p.kv_heads)?;
    let (kv_heads, head, v_head) = (dim(p.kv_heads)?, dim(p.head_dim)?, dim(p.v_head_dim)?);
    let single = |x: &Array| x.as_dtype(Dtype::Float32).map_err(exception);
    let q5 = single(q)?.reshape(&[1, kv_heads, group, t, head]).map_err(exception)?;
    let k5 = single(k)?.reshape(&[1, kv_heads, 1, slots, head]).map_err(exception)?;
    let v5 = single(v)?.reshape(&[1, kv_heads, 1, slots, v_head]).map_err(exception)?;
    let k5 = k5.swap_axes(-1, -2).map_err(exception)?;
    let scores = q5.multiply(Array::from_f32(p.scale / cap)).and_then(|q| q.matmul(k5)).map_err(exception)?;
    let mut scores = ops::tanh(scores).and_then(|s| s.multiply(Array::from_f32(cap))).map_err(exception)?;
    let mask = match hidden {
        Hidden::Nothing => None,
        Hidden::Future => {
            let mask: Vec<bool> = (0..t).flat_map(|i| (0..slots).map(move |j| j <= slots - t + i)).collect();
            Some(Array::from_slice(&mask, &[t, slots]))
        }
        Hidden::Some(mask) => Some(mask.clone()),
    };
    if let Some(mask) = mask {
        let lowest = Array::from_f32(f32::NEG_INFINITY);
        scores = ops::select(mask, scores, lowest).map_err(exception)?;
    }
    let weights = match sinks {
        None => ops::softmax_axis(scores, -1, true).map_err(exception)?,
        Some(sinks) => {
            // A score without a value, behind the others.
            let sinks = single(sinks)?.reshape(&[1, kv_heads, group, 1, 1]).map_err(exception)?;
            let sinks = ops::broadcast_to(sinks, &[1, kv_heads, group, t, 1]).map_err(exception)?;
            let all = ops::concatenate(&[scores, sinks], -1).map_err(exception)?;
            let all = ops::softmax_axis(all, -1, true).map_err(exception)?;
            slice(&all, [0; 5], [1, kv_heads, group, t, slots])?
        }
    };
    let out = weights.matmul(v5).and_then(|x| x.reshape(&[1, dim(p.heads).unwrap_or(0), t, v_head]));
    out.and_then(|x| x.as_dtype(q.dtype())).map_err(exception)
}
