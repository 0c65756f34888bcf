//! The caches of all layers of one sequence, taken back together or not at all.

use std::ops::Range;

use rillm_tensor_core::{AttnSpan, Backend};

use crate::{ArraysCache, DenseKvCache, Error, KvCache, Result, RotatingKvCache};

/// What a layer keeps of a sequence; stated by the model for each layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CacheKind {
    /// Keys and values of all positions.
    Dense,
    /// Keys and values of the latest `window` positions.
    Rotating {
        /// Positions that a row sees, itself included.
        window: usize,
    },
    /// A state that changes with each token.
    State {
        /// Earlier states to keep; see [`ArraysCache::new`].
        checkpoints: usize,
    },
    /// Nothing: the layer does not mix positions.
    None,
}

/// The cache of one layer.
#[derive(Debug)]
enum Slot<B: Backend> {
    Kv(Box<dyn KvCache<B>>),
    State(ArraysCache<B>),
    None,
}

impl<B: Backend> Slot<B> {
    /// Positions held, if it holds any.
    fn len(&self) -> Option<usize> {
        match self {
            Self::Kv(cache) => Some(cache.len()),
            Self::State(cache) => Some(cache.len()),
            Self::None => None,
        }
    }

    fn check_truncate(&self, len: usize) -> Result<()> {
        match self {
            Self::Kv(cache) => cache.check_truncate(len),
            Self::State(cache) => cache.check_truncate(len),
            Self::None => Ok(()),
        }
    }

    fn truncate(&mut self, len: usize) -> Result<()> {
        match self {
            Self::Kv(cache) => cache.truncate(len),
            Self::State(cache) => cache.truncate(len),
            Self::None => Ok(()),
        }
    }
}

/// One cache a layer, and how many positions all of them hold.
#[derive(Debug)]
pub struct SequenceCache<B: Backend> {
    layers: Vec<Slot<B>>,
}

impl<B: Backend> SequenceCache<B> {
    /// Empty caches of these kinds.
    pub fn new(kinds: &[CacheKind]) -> Self {
        let layer = |kind: &CacheKind| match *kind {
            CacheKind::Dense => Slot::Kv(Box::new(DenseKvCache::new())),
            CacheKind::Rotating { window } => Slot::Kv(Box::new(RotatingKvCache::new(window))),
            CacheKind::State { checkpoints } => Slot::State(ArraysCache::new(checkpoints)),
            CacheKind::None => Slot::None,
        };
        Self { layers: kinds.iter().map(layer).collect() }
    }

    /// Caches of keys and values made elsewhere, one a layer.
    pub fn from_layers(layers: Vec<Option<Box<dyn KvCache<B>>>>) -> Self {
        Self { layers: layers.into_iter().map(|l| l.map_or(Slot::None, Slot::Kv)).collect() }
    }

    /// The keys and values of `layer`.
    ///
    /// # Errors
    /// [`Error::NoSuchLayer`] if there are none.
    pub fn layer(&mut self, layer: usize) -> Result<&mut (dyn KvCache<B> + 'static)> {
        match self.layers.get_mut(layer) {
            Some(Slot::Kv(cache)) => Ok(&mut **cache),
            _ => Err(Error::NoSuchLayer { layer }),
        }
    }

    /// The state of `layer`.
    ///
    /// # Errors
    /// [`Error::NoSuchLayer`] if there is none.
    pub fn state(&self, layer: usize) -> Result<&ArraysCache<B>> {
        match self.layers.get(layer) {
            Some(Slot::State(cache)) => Ok(cache),
            _ => Err(Error::NoSuchLayer { layer }),
        }
    }

    /// The state of `layer`, to be changed.
    ///
    /// # Errors
    /// [`Error::NoSuchLayer`] if there is none.
    pub fn state_mut(&mut self, layer: usize) -> Result<&mut ArraysCache<B>> {
        match self.layers.get_mut(layer) {
            Some(Slot::State(cache)) => Ok(cache),
            _ => Err(Error::NoSuchLayer { layer }),
        }
    }

    /// What queries at rows `rows` of a batch meet in `layer`.
    ///
    /// # Errors
    /// [`Error::NoSuchLayer`] if there is no such cache, or nothing in it.
    pub fn view(&self, layer: usize, rows: Range<usize>) -> Result<AttnSpan<'_, B::Tensor>> {
        match self.layers.get(layer) {
            Some(Slot::Kv(cache)) => cache.view(rows).ok_or(Error::NoSuchLayer { layer }),
            _ => Err(Error::NoSuchLayer { layer }),
        }
    }

    /// The buffers of all layers: what a lazy backend has to compute before an append is over.
    pub fn buffers(&self) -> impl Iterator<Item = &B::Tensor> {
        let kv = self.layers.iter().filter_map(|l| if let Slot::Kv(l) = l { l.view(0..0) } else { None });
        let states = self.layers.iter().filter_map(|l| if let Slot::State(l) = l { Some(l) } else { None });
        kv.flat_map(|view| [view.k, view.v]).chain(states.flat_map(ArraysCache::arrays))
    }

    /// Positions that every layer holds.
    pub fn len(&self) -> usize {
        self.layers.iter().filter_map(Slot::len).min().unwrap_or(0)
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether [`truncate`](Self::truncate) to `len` would work.
    ///
    /// # Errors
    /// If any layer can't.
    pub fn check_truncate(&self, len: usize) -> Result<()> {
        self.layers.iter().try_for_each(|l| l.check_truncate(len))
    }

    /// Forgets positions from `len` on, in every layer. Layers that ran ahead of others (a forward pass that
    /// failed half-way) are brought back to the same length.
    ///
    /// # Errors
    /// If any layer can't; none has changed then.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        self.check_truncate(len)?;
        self.layers.iter_mut().try_for_each(|l| l.truncate(len))
    }

    /// The longest length up to `len` that [`truncate`](Self::truncate) can go to: `len` itself or, where a layer has
    /// a state, a length at which all states were kept; 0 if there is none.
    pub fn nearest(&self, len: usize) -> usize {
        let mut len = len.min(self.len());
        while len > 0 && self.check_truncate(len).is_err() {
            // Any length is the same to keys and values, but one that was overwritten stays so for shorter ones.
            let states =
                self.layers.iter().filter_map(|l| if let Slot::State(l) = l { Some(l) } else { None });
            match states.map(|l| l.nearest(len)).min() {
                Some(shorter) if shorter < len => len = shorter,
                _ => return 0,
            }
        }
        len
    }

    /// Bytes of all buffers.
    pub fn bytes(&self, be: &B) -> usize {
        let of = |l: &Slot<B>| match l {
            Slot::Kv(cache) => cache.bytes(be),
            Slot::State(cache) => cache.bytes(be),
            Slot::None => 0,
        };
        self.layers.iter().map(of).sum()
    }
}
