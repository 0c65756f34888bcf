//! All layers' caches of one sequence, taken back together or not at all.

use std::ops::Range;

use rillm_tensor_core::{AttnSpan, Backend};

use crate::{DenseKvCache, Error, KvCache, Result, RotatingKvCache};

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
    /// Nothing: the layer does not mix positions.
    None,
}

/// One cache a layer, and how many positions all of them hold.
#[derive(Debug)]
pub struct SequenceCache<B: Backend> {
    layers: Vec<Option<Box<dyn KvCache<B>>>>,
}

impl<B: Backend> SequenceCache<B> {
    /// Empty caches of these kinds.
    pub fn new(kinds: &[CacheKind]) -> Self {
        let layer = |kind: &CacheKind| -> Option<Box<dyn KvCache<B>>> {
            match *kind {
                CacheKind::Dense => Some(Box::new(DenseKvCache::new())),
                CacheKind::Rotating { window } => Some(Box::new(RotatingKvCache::new(window))),
                CacheKind::None => None,
            }
        };
        Self { layers: kinds.iter().map(layer).collect() }
    }

    /// Caches made elsewhere, one a layer.
    pub fn from_layers(layers: Vec<Option<Box<dyn KvCache<B>>>>) -> Self {
        Self { layers }
    }

    /// The cache of `layer`.
    ///
    /// # Errors
    /// [`Error::NoSuchLayer`] if there is none.
    pub fn layer(&mut self, layer: usize) -> Result<&mut (dyn KvCache<B> + 'static)> {
        self.layers.get_mut(layer).and_then(|l| l.as_deref_mut()).ok_or(Error::NoSuchLayer { layer })
    }

    /// What queries at rows `rows` of a batch meet in `layer`.
    ///
    /// # Errors
    /// [`Error::NoSuchLayer`] if there is no such cache, or nothing in it.
    pub fn view(&self, layer: usize, rows: Range<usize>) -> Result<AttnSpan<'_, B::Tensor>> {
        self.layers
            .get(layer)
            .and_then(|l| l.as_deref())
            .and_then(|l| l.view(rows))
            .ok_or(Error::NoSuchLayer { layer })
    }

    /// The buffers of all layers: what a lazy backend has to compute before an append is over.
    pub fn buffers(&self) -> impl Iterator<Item = &B::Tensor> {
        self.layers.iter().flatten().filter_map(|l| l.view(0..0)).flat_map(|view| [view.k, view.v])
    }

    /// Positions that every layer holds.
    pub fn len(&self) -> usize {
        self.layers.iter().flatten().map(|l| l.len()).min().unwrap_or(0)
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets positions from `len` on, in every layer. Layers that ran ahead of others (a forward pass that
    /// failed half-way) are brought back to the same length.
    ///
    /// # Errors
    /// If any layer can't; none has changed then.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        self.layers.iter().flatten().try_for_each(|l| l.check_truncate(len))?;
        self.layers.iter_mut().flatten().try_for_each(|l| l.truncate(len))
    }

    /// Bytes of all buffers.
    pub fn bytes(&self, be: &B) -> usize {
        self.layers.iter().flatten().map(|l| l.bytes(be)).sum()
    }
}
