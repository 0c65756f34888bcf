//! Angles of rotary embeddings: computed once for all layers of a forward pass that share them.

use std::sync::{Mutex, PoisonError};

use super::kernels::elementwise::RopeTurn;
use crate::Rope;

/// Tables kept: families have at most two sets of frequencies (gemma3), and queries and keys share one.
const TABLES: usize = 2;

/// Cosines and sines of the latest forward passes.
#[derive(Debug, Default)]
pub(super) struct Angles {
    tables: Mutex<Vec<Table>>,
}

/// Cosines and sines for one rope at some positions.
#[derive(Debug)]
pub(super) struct Table {
    rope: Rope,
    positions: Vec<u32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Table {
    /// How the heads of row `i` are turned.
    pub(super) fn turn(&self, i: usize) -> RopeTurn<'_> {
        let n = self.rope.inv_freq.len();
        let Rope { head_dim, pairing, .. } = self.rope;
        RopeTurn { cos: &self.cos[i * n..][..n], sin: &self.sin[i * n..][..n], head_dim, pairing }
    }

    fn fill(&mut self, rope: &Rope, positions: &[u32]) {
        // Field by field: a derived `clone_from` allocates anew.
        let Rope { head_dim, inv_freq, scale, pairing } = rope;
        self.rope.inv_freq.clone_from(inv_freq);
        (self.rope.head_dim, self.rope.scale, self.rope.pairing) = (*head_dim, *scale, *pairing);
        self.positions.clear();
        self.positions.extend_from_slice(positions);
        self.cos.clear();
        self.sin.clear();
        for &p in positions {
            for f in &rope.inv_freq {
                let (sin, cos) = f64::from(p as f32 * f).sin_cos();
                self.cos.push(cos as f32 * rope.scale);
                self.sin.push(sin as f32 * rope.scale);
            }
        }
    }
}

impl Angles {
    /// Calls `f` with the table of `rope` at `positions`.
    pub(super) fn with<T>(&self, rope: &Rope, positions: &[u32], f: impl FnOnce(&Table) -> T) -> T {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        match tables.iter().position(|t| t.positions == positions && t.rope == *rope) {
            Some(i) => f(&tables[i]),
            None => {
                let mut table = if tables.len() < TABLES {
                    let rope = rope.clone();
                    Table { rope, positions: Vec::new(), cos: Vec::new(), sin: Vec::new() }
                } else {
                    tables.remove(0)
                };
                table.fill(rope, positions);
                tables.push(table);
                f(&tables[tables.len() - 1])
            }
        }
    }
}
