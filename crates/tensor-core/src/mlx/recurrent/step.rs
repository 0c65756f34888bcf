//! Linear attention of one token of each sequence: what decoding does, in few operations.

use mlx_rs::Array;

use super::Made;
use super::operands::{Erase, Operands};

/// `y` and the new states, both `[t, key heads, heads for each, .., value_dim]`, for `state` of that shape.
pub(super) fn step(x: &Operands, state: &Array) -> Made<[Array; 2]> {
    let column = |x: &Array| x.expand_dims(-1);
    let row = |x: &Array| x.expand_dims(-2);
    let state = state.multiply(column(&x.decay)?)?;
    let (k, v) = (column(&x.k)?, row(&x.v)?);
    let state = match &x.erase {
        None => k.multiply(v)?.add(state)?,
        Some(Erase { lookup, at: None }) => {
            let news = v.subtract(row(lookup)?.matmul(&state)?)?;
            k.multiply(news)?.add(state)?
        }
        Some(Erase { lookup, at: Some(at) }) => {
            let erased = column(at)?.multiply(row(lookup)?.matmul(&state)?)?;
            k.multiply(v)?.subtract(erased)?.add(state)?
        }
    };
    Ok([row(&x.q)?.matmul(&state)?, state])
}
