//! Geometry that operations take besides tensors: spans of a batch, rope, attention. No data but frequencies.

use std::ops::Range;

/// Nonlinearity of a feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// `x`: a gate that multiplies.
    Identity,
    /// `x * sigmoid(x)`.
    Silu,
    /// `x * Φ(x)` with the error function.
    Gelu,
    /// `0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)²`.
    Relu2,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
    /// `min(max(x, -limit), limit)`.
    Clip {
        /// The largest magnitude.
        limit: f32,
    },
    /// `positive x² + slope x` above zero, `negative (exp(x) - 1 - x) + slope x` below (Huang and Schlag 2024).
    XIelu {
        /// Curvature above zero.
        positive: f32,
        /// Factor of what is below zero.
        negative: f32,
        /// Slope at zero.
        slope: f32,
    },
    /// `g sigmoid(alpha g)` with `g = min(x, limit)`. In a gate, what it opens is cut off at `limit` and gets 1 added:
    /// `act(gate) * (min(max(up, -limit), limit) + 1)` (gpt_oss).
    ClippedSwish {
        /// Factor on the argument of the sigmoid.
        alpha: f32,
        /// Where both operands are cut off.
        limit: f32,
    },
}

/// Rows of one sequence in a [`Batch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Rows of the batch that belong to the sequence.
    pub rows: Range<usize>,
    /// Position of the first of them: tokens of the sequence that came before.
    pub start: usize,
    /// Which sequence: an index into the caches that a forward pass is given.
    pub sequence: usize,
}

/// Token rows of one or several sequences laid end to end, never padded.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    spans: Vec<Span>,
    positions: Vec<u32>,
    rope_len: usize,
}

impl Batch {
    /// Empties the batch, keeping its memory.
    ///
    /// `rope_len` is the length from which length-dependent rope frequencies are chosen, in tokens: that of the
    /// whole prompt while it is prefilled in chunks, the current length when decoding. There is one for the batch:
    /// sequences whose frequencies differ run in batches of their own.
    pub fn reset(&mut self, rope_len: usize) {
        self.spans.clear();
        self.positions.clear();
        self.rope_len = rope_len;
    }

    /// Appends `t` rows of `sequence`, the first at position `start`.
    pub fn push(&mut self, sequence: usize, start: usize, t: usize) {
        let at = self.rows();
        self.spans.push(Span { rows: at..at + t, start, sequence });
        self.positions.extend((start..start + t).map(|p| p as u32));
    }

    /// One span a sequence, in row order, covering all rows.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// The position of each row.
    pub fn positions(&self) -> &[u32] {
        &self.positions
    }

    /// See [`reset`](Self::reset).
    pub fn rope_len(&self) -> usize {
        self.rope_len
    }

    /// All rows of all spans.
    pub fn rows(&self) -> usize {
        self.positions.len()
    }
}

/// Which values of a head make a rotated pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// `(x[i], x[i + dims/2])`: Hugging Face's layout; MLX's `traditional=False`.
    Halves,
    /// `(x[2i], x[2i + 1])`: the paper's layout; MLX's `traditional=True`.
    Interleaved,
}

/// Rotary position embedding (Su et al. 2021) with explicit frequencies.
///
/// Pair `i` of a head at position `p` is turned by `p * inv_freq[i]` and multiplied by `scale`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Values of a head. The first `2 * inv_freq.len()` are rotated, the others pass.
    pub head_dim: usize,
    /// Radians for each position, for each pair.
    pub inv_freq: Vec<f32>,
    /// Factor on the rotated values (yarn's and longrope's attention factor), usually 1.
    pub scale: f32,
    /// How pairs lie in a head.
    pub pairing: Pairing,
}

/// Geometry of one attention layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttnParams {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Values of a query or key head.
    pub head_dim: usize,
    /// Values of a value head, usually `head_dim`.
    pub v_head_dim: usize,
    /// Factor on scores, usually `head_dim^-0.5`.
    pub scale: f32,
    /// A query sees at most this many latest positions, itself included.
    pub window: Option<usize>,
    /// A query sees only positions of its own chunk of this many: none before `p / chunk * chunk` (llama4).
    pub chunk: Option<usize>,
    /// Scores become `cap * tanh(score / cap)` (gemma2).
    pub softcap: Option<f32>,
}

impl AttnParams {
    /// Keys and values of one width, scores times `head_dim^-0.5`, and every query sees all before it.
    pub fn new(heads: usize, kv_heads: usize, head_dim: usize) -> Self {
        Self {
            heads,
            kv_heads,
            head_dim,
            v_head_dim: head_dim,
            scale: (head_dim as f32).powf(-0.5),
            window: None,
            chunk: None,
            softcap: None,
        }
    }
    /// Width of a query row, `heads * head_dim`.
    pub fn q_dim(&self) -> usize {
        self.heads * self.head_dim
    }
    /// Width of a key row, `kv_heads * head_dim`.
    pub fn k_dim(&self) -> usize {
        self.kv_heads * self.head_dim
    }
    /// Width of a value row, `kv_heads * v_head_dim`.
    pub fn v_dim(&self) -> usize {
        self.kv_heads * self.v_head_dim
    }
    /// Width of a row of the result, `heads * v_head_dim`.
    pub fn out_dim(&self) -> usize {
        self.heads * self.v_head_dim
    }
    /// The first position that a query at position `p` may see, as far as `window` (the narrower of the cache's and the
    /// layer's) and the chunks say.
    pub(crate) fn first_seen(&self, p: usize, window: Option<usize>) -> usize {
        let first = window.map_or(0, |window| (p + 1).saturating_sub(window));
        first.max(self.chunk.map_or(0, |chunk| p - p % chunk.max(1)))
    }
    /// The narrower of `window`, that of a cache, and the layer's own.
    pub(crate) fn narrower(&self, window: Option<usize>) -> Option<usize> {
        window.into_iter().chain(self.window).min()
    }
}

/// Which slot of a key buffer holds which position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// Positions stored so far, those of the current rows included: the last query row is at `len - 1`.
    pub len: usize,
    /// Positions `< keep` stay in the slots of their number for ever (attention sinks).
    pub keep: usize,
    /// Slots of the ring that the other positions share: position `p >= keep` is in slot
    /// `keep + (p - keep) % ring`. At least `len - keep` where nothing was overwritten (a plain cache).
    pub ring: usize,
}

impl KvLayout {
    /// The slot of position `p`.
    pub fn slot(&self, p: usize) -> usize {
        if p < self.keep { p } else { self.keep + (p - self.keep) % self.ring }
    }
    /// The oldest position past `keep` that is still stored.
    pub fn oldest(&self) -> usize {
        self.keep.max(self.len.saturating_sub(self.ring)).min(self.len)
    }
}

/// Keys on their way into a buffer.
#[derive(Debug)]
pub struct Keys<'a, T> {
    /// `[t, kv_heads * head_dim]`.
    pub x: &'a T,
    /// How each is rotated, by its row's position in the batch; `None` leaves them as they are.
    pub rope: Option<(&'a Rope, &'a Batch)>,
}

impl<T> Clone for Keys<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Keys<'_, T> {}

/// What the queries of one span meet: the keys and values of their sequence.
#[derive(Debug)]
pub struct AttnSpan<'a, T> {
    /// Rows of the queries.
    pub rows: Range<usize>,
    /// Keys, `[slots, kv_heads * head_dim]`, from [`Backend::kv_buffer`](crate::Backend::kv_buffer).
    pub k: &'a T,
    /// Values, `[slots, kv_heads * v_head_dim]`.
    pub v: &'a T,
    /// Which slot holds which position.
    pub layout: KvLayout,
    /// Besides its window, a query sees positions `< sink` (a rotating cache's `keep`).
    pub sink: usize,
    /// Latest positions that a query sees as far as the cache is concerned; the layer's own window
    /// ([`AttnParams::window`]) and chunks hold as well, the narrowest counts.
    pub window: Option<usize>,
}
