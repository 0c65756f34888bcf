//! Which families there are. A family is found by the `model_type` of its config.json; applications add theirs.

use std::fmt::Debug;

use rillm_nn::{Adapted, CausalLm, WeightSource, Weights};
use rillm_tensor_core::{Backend, FullBackend};

use crate::{Config, Decoder, DecoderSpec, Error, Layout, Result, names};

/// Builds models of one or several `model_type`s.
pub trait Family<B: Backend>: Debug + Send + Sync {
    /// The `model_type`s it builds.
    fn model_types(&self) -> &[&'static str];

    /// The model that `config` describes, with weights of `source` prepared by `be`.
    ///
    /// # Errors
    /// A configuration that is incomplete or not understood, parameters that are missing, misshapen or left over.
    fn load(&self, config: &Config<'_>, source: &dyn WeightSource, be: &B) -> Result<Box<dyn CausalLm<B>>>;
}

/// A family that the [`Decoder`] runs: a translation of its configuration and of its parameters' names.
#[derive(Clone, Copy, Debug)]
pub struct DecoderFamily {
    /// The `model_type`s it builds.
    pub model_types: &'static [&'static str],
    /// The decoder that a configuration describes.
    pub spec: fn(&Config<'_>) -> Result<DecoderSpec>,
    /// Where its checkpoints keep what the decoder asks for.
    pub layout: fn(&DecoderSpec, &dyn WeightSource) -> Layout,
    /// Parameters, by stored name, that it leaves unused.
    pub ignored: fn(&DecoderSpec, &str) -> bool,
}

impl DecoderFamily {
    /// A family whose checkpoints have Llama's names.
    pub const fn new(
        model_types: &'static [&'static str],
        spec: fn(&Config<'_>) -> Result<DecoderSpec>,
    ) -> Self {
        Self { model_types, spec, layout: names::plain, ignored: names::ignored }
    }
}

impl<B: FullBackend> Family<B> for DecoderFamily {
    fn model_types(&self) -> &[&'static str] {
        self.model_types
    }

    fn load(&self, config: &Config<'_>, source: &dyn WeightSource, be: &B) -> Result<Box<dyn CausalLm<B>>> {
        let spec = (self.spec)(config)?;
        let adapted = Adapted::new(source, (self.layout)(&spec, source));
        let ignored = |name: &str| (self.ignored)(&spec, name);
        let decoder = Weights::load(&adapted, be, ignored, |w| Decoder::load(w, spec.clone()))?;
        Ok(Box::new(decoder))
    }
}

/// A family by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FamilyInfo {
    /// `model_type` of config.json.
    pub model_type: &'static str,
    /// The models that are known under it.
    pub models: &'static str,
}

/// The families of this crate, in alphabetical order of their `model_type`.
pub fn families() -> &'static [FamilyInfo] {
    crate::families::MODELS
}

/// The decoder that `config` describes, without its weights, if its family is one that the [`Decoder`] runs.
///
/// # Errors
/// [`Error::UnknownFamily`], or a configuration that is incomplete or not understood.
pub fn decoder_spec(config: &Config<'_>) -> Result<DecoderSpec> {
    let model_type = config.model_type()?;
    match crate::families::ALL.iter().find(|f| f.model_types.contains(&model_type)) {
        Some(family) => (family.spec)(config),
        None => Err(Error::UnknownFamily {
            model_type: model_type.to_owned(),
            known: crate::families::ALL.iter().flat_map(|f| f.model_types).map(|&n| n.to_owned()).collect(),
        }),
    }
}

/// The families that a loader knows; later additions win over earlier ones of the same name.
#[derive(Debug)]
pub struct Registry<B: Backend> {
    families: Vec<Box<dyn Family<B>>>,
}

impl<B: FullBackend> Default for Registry<B> {
    fn default() -> Self {
        let decoders = crate::families::ALL.iter().map(|f| Box::new(*f) as Box<dyn Family<B>>);
        Self { families: decoders.chain(crate::families::others()).collect() }
    }
}

impl<B: Backend> Registry<B> {
    /// Adds a family.
    pub fn add(&mut self, family: impl Family<B> + 'static) {
        self.families.push(Box::new(family));
    }

    /// Every known `model_type`, in alphabetical order.
    pub fn model_types(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = self.families.iter().flat_map(|f| f.model_types().iter().copied()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The model that `config` describes.
    ///
    /// # Errors
    /// [`Error::UnknownFamily`], or those of the family.
    pub fn load(
        &self,
        config: &Config<'_>,
        source: &dyn WeightSource,
        be: &B,
    ) -> Result<Box<dyn CausalLm<B>>> {
        let model_type = config.model_type()?;
        let family = self.families.iter().rev().find(|f| f.model_types().contains(&model_type));
        let family = family.ok_or_else(|| Error::UnknownFamily {
            model_type: model_type.to_owned(),
            known: self.model_types().into_iter().map(str::to_owned).collect(),
        })?;
        family.load(config, source, be)
    }
}
