//! Path scopes over a checkpoint: the names a layer asks for, checked, prepared and accounted for.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Display;

use rillm_quant::RawTensor;
use rillm_tensor_core::Backend;

use crate::{Error, Linear, Norm, NormKind, Result, WeightSource};

/// A view of a [`WeightSource`] under a dotted path, preparing weights for a backend.
///
/// `w.at("self_attn").linear("q_proj", out, in)?` names, checks and loads in one expression.
pub struct Weights<'a, B: Backend> {
    backend: &'a B,
    shared: &'a Shared<'a>,
    path: String,
}

/// What all scopes of one load have in common.
struct Shared<'a> {
    source: &'a dyn WeightSource,
    used: RefCell<BTreeSet<String>>,
}

impl<'a, B: Backend> Weights<'a, B> {
    /// Loads with `build` and then checks that every parameter of `source` was asked for, but for those whose
    /// name `ignored` accepts.
    ///
    /// # Errors
    /// Those of `build`, and [`Error::UnexpectedWeights`].
    pub fn load<T, E: From<Error>>(
        source: &dyn WeightSource,
        backend: &B,
        ignored: impl Fn(&str) -> bool,
        build: impl FnOnce(&Weights<'_, B>) -> Result<T, E>,
    ) -> Result<T, E> {
        let shared = Shared { source, used: RefCell::default() };
        let model = build(&Weights { backend, shared: &shared, path: String::new() })?;
        let used = shared.used.borrow();
        let names: Vec<_> = source.names().into_iter().filter(|n| !used.contains(n) && !ignored(n)).collect();
        if names.is_empty() { Ok(model) } else { Err(Error::UnexpectedWeights { names }.into()) }
    }

    /// The child scope `name`, e.g. `w.at("layers").at(0)`.
    pub fn at(&self, name: impl Display) -> Weights<'a, B> {
        Weights { backend: self.backend, shared: self.shared, path: self.name(name) }
    }

    /// The full name of `leaf` in this scope.
    pub fn name(&self, leaf: impl Display) -> String {
        if self.path.is_empty() { leaf.to_string() } else { format!("{}.{leaf}", self.path) }
    }

    /// The backend that weights are prepared for.
    pub fn backend(&self) -> &'a B {
        self.backend
    }

    /// Whether there is a parameter `leaf`.
    pub fn has(&self, leaf: &str) -> bool {
        matches!(self.shared.source.get(&self.name(leaf)), Ok(Some(_)) | Err(_))
    }

    /// Parameter `leaf` as stored, of shape `want`.
    ///
    /// # Errors
    /// [`Error::MissingWeight`], [`Error::WeightShape`], and whatever makes the file unreadable.
    pub fn raw(&self, leaf: &str, want: &[usize]) -> Result<RawTensor<'a>> {
        let name = self.name(leaf);
        let Some(raw) = self.shared.source.get_shaped(&name, want)? else {
            return Err(Error::MissingWeight { name: self.shared.source.stored_name(&name) });
        };
        if raw.shape != want {
            return Err(Error::WeightShape { name, got: raw.shape, want: want.to_vec() });
        }
        self.shared.used.borrow_mut().insert(name);
        Ok(raw)
    }

    /// Parameter `leaf`, of shape `want`, prepared.
    ///
    /// # Errors
    /// Those of [`raw`](Self::raw), or the backend's refusal.
    pub fn weight(&self, leaf: &str, want: &[usize]) -> Result<B::Weight> {
        self.prepare(&[self.raw(leaf, want)?])
    }

    /// The values of parameter `leaf`, of shape `want`, as `f32`.
    ///
    /// # Errors
    /// Those of [`raw`](Self::raw).
    pub fn values(&self, leaf: &str, want: &[usize]) -> Result<Vec<f32>> {
        let raw = self.raw(leaf, want)?;
        raw.decode().map_err(|source| Error::Quant { name: self.name(leaf), source })
    }

    /// The `n` values of parameter `leaf`, whatever its shape; `None` if there is no such parameter.
    ///
    /// # Errors
    /// [`Error::WeightShape`] for another number of values, and whatever makes the file unreadable.
    pub fn opt_values(&self, leaf: &str, n: usize) -> Result<Option<Vec<f32>>> {
        let name = self.name(leaf);
        let Some(raw) = self.shared.source.get_shaped(&name, &[])? else { return Ok(None) };
        if raw.shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)) != Some(n) {
            return Err(Error::WeightShape { name, got: raw.shape, want: vec![n] });
        }
        self.shared.used.borrow_mut().insert(name);
        raw.decode().map(Some).map_err(|source| Error::Quant { name: self.name(leaf), source })
    }

    /// Prepares `values`, computed from parameter `leaf`, as a vector.
    ///
    /// # Errors
    /// The backend's refusal.
    pub fn vector(&self, leaf: &str, values: &[f32]) -> Result<B::Weight> {
        let raw = RawTensor::from_f32(vec![values.len()], values)
            .map_err(|source| Error::Quant { name: self.name(leaf), source })?;
        self.prepare(&[raw])
    }

    /// Whether parameter `leaf` is stored in shape `want`.
    pub(crate) fn has_shape(&self, leaf: &str, want: &[usize]) -> bool {
        matches!(self.shared.source.get_shaped(&self.name(leaf), want), Ok(Some(raw)) if raw.shape == want)
    }

    /// Packs stored tensors; see [`Backend::prepare`]. The checkpoint's pages go as soon as they are packed.
    pub(crate) fn prepare(&self, parts: &[RawTensor<'_>]) -> Result<B::Weight> {
        let weight = self.backend.prepare(parts)?;
        for part in parts.iter().flat_map(|p| [&p.codes, &p.scales, &p.biases]) {
            if let Cow::Borrowed(bytes) = part {
                self.shared.source.release(bytes);
            }
        }
        Ok(weight)
    }

    /// `{leaf}.weight: [out, in]`, dense or quantized as stored.
    ///
    /// # Errors
    /// Those of [`raw`](Self::raw), or the backend's refusal.
    pub fn linear(&self, leaf: &str, out: usize, inp: usize) -> Result<Linear<B>> {
        Linear::load(self, &[(leaf, out)], inp, crate::linear::Bias::None)
    }

    /// `{leaf}.weight: [dim]`, and `{leaf}.bias` where `kind` has one.
    ///
    /// # Errors
    /// Those of [`raw`](Self::raw), or the backend's refusal.
    pub fn norm(&self, leaf: &str, dim: usize, kind: NormKind) -> Result<Norm<B>> {
        Norm::load(&self.at(leaf), dim, kind)
    }
}
