//! From a name to a running model: finds the files, reads the configuration, packs the weights.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use rillm_generate::{
    EngineSession, EosTokenId, LocalSession, Session, SharedSession, StopTokens, Tokenizer,
};
use rillm_models::{Config, Registry, TextPart, text_config};
use rillm_nn::{Quantization, Safetensors, WeightSource};
use rillm_tensor_core::Backend;
use rillm_tensor_core::cpu::{Cpu, Precision};
#[cfg(feature = "mlx")]
use rillm_tensor_core::mlx::MlxDevice;
use serde_json::Value;

use crate::model::{Parts, Text};
use crate::{Error, LanguageModel, ModelInfo, RandomShape, Result};

/// What computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Device {
    /// The CPU backend, with the fastest kernels this processor has.
    #[default]
    Cpu,
    /// MLX, on a graphics card or on the processor.
    #[cfg(feature = "mlx")]
    Mlx(MlxDevice),
}

/// Devices by the names that they are written with.
const DEVICES: &[(&str, Device)] = &[
    ("cpu", Device::Cpu),
    #[cfg(feature = "mlx")]
    ("mlx", Device::Mlx(MlxDevice::Best)),
    #[cfg(feature = "mlx")]
    ("mlx-gpu", Device::Mlx(MlxDevice::Gpu)),
    #[cfg(feature = "mlx")]
    ("mlx-cpu", Device::Mlx(MlxDevice::Cpu)),
];

impl Device {
    /// The fastest device of this build on this machine: a graphics card, or else the CPU backend.
    pub fn best() -> Self {
        #[cfg(feature = "mlx")]
        if rillm_tensor_core::mlx::Mlx::has_card() {
            return Self::Mlx(MlxDevice::Gpu);
        }
        Self::Cpu
    }
}

impl FromStr for Device {
    type Err = String;

    /// `cpu`, `best`, and with the feature `mlx` also `mlx`, `mlx-gpu`, `mlx-cpu`.
    fn from_str(name: &str) -> Result<Self, String> {
        if name == "best" {
            return Ok(Self::best());
        }
        let known = DEVICES.iter().find(|(known, _)| *known == name);
        known.map(|(_, device)| *device).ok_or_else(|| {
            let names = DEVICES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
            format!("no device {name:?} in this build; there are best, {names}")
        })
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = DEVICES.iter().find(|(_, device)| device == self).map_or("", |(name, _)| *name);
        f.write_str(name)
    }
}

/// Loads `name` with default choices: a folder, a `.gguf` file, or a repository of the Hugging Face hub.
///
/// # Errors
/// A model that can't be found, read or understood.
pub fn load(name: impl Into<String>) -> Result<LanguageModel> {
    Loader::new(name).load()
}

/// Loads a model with choices.
#[derive(Debug)]
pub struct Loader {
    source: Source,
    device: Device,
    threads: Option<usize>,
    precision: Precision,
    kernels: Option<String>,
    context: Option<usize>,
    registry: Registry<Cpu>,
    #[cfg(feature = "hub")]
    hub: Option<crate::hub::HubOptions>,
}

#[derive(Debug)]
enum Source {
    Named(String),
    Random(RandomShape),
}

impl Loader {
    /// Will load `name`: a folder, a `.gguf` file, or a repository of the Hugging Face hub.
    pub fn new(name: impl Into<String>) -> Self {
        Self::of(Source::Named(name.into()))
    }

    /// Will make a model of random weights, for measuring.
    pub fn random(shape: RandomShape) -> Self {
        Self::of(Source::Random(shape))
    }

    fn of(source: Source) -> Self {
        Self {
            source,
            device: Device::default(),
            threads: None,
            precision: Precision::default(),
            kernels: None,
            context: None,
            registry: Registry::default(),
            #[cfg(feature = "hub")]
            hub: None,
        }
    }

    /// Computes on `device`.
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// Computes with `n` threads; by default one for each physical performance core.
    pub fn threads(mut self, n: usize) -> Self {
        self.threads = Some(n);
        self
    }

    /// Computes with `f32` activations and caches, bit for bit the same whatever the batch, chunk and threads.
    pub fn exact(mut self) -> Self {
        self.precision = Precision::Exact;
        self
    }

    /// Pins the CPU's kernels; see [`Cpu::kernel_names`].
    pub fn kernels(mut self, name: impl Into<String>) -> Self {
        self.kernels = Some(name.into());
        self
    }

    /// Allows sequences of `tokens`; by default as many as the model was made for.
    pub fn context(mut self, tokens: usize) -> Self {
        self.context = Some(tokens);
        self
    }

    /// Adds a family of models from outside this workspace, for [`Device::Cpu`]; on other devices a registry of
    /// [`load_on_thread`](Self::load_on_thread) has it.
    pub fn family(mut self, family: impl rillm_models::Family<Cpu> + 'static) -> Self {
        self.registry.add(family);
        self
    }

    /// Where and how to download, instead of what the environment says.
    #[cfg(feature = "hub")]
    pub fn hub(mut self, options: crate::hub::HubOptions) -> Self {
        self.hub = Some(options);
        self
    }

    /// Loads the model.
    ///
    /// # Errors
    /// A model that can't be found, read or understood, or a backend that can't start.
    pub fn load(mut self) -> Result<LanguageModel> {
        let registry = std::mem::take(&mut self.registry);
        let mut cpu = Cpu::builder().precision(self.precision);
        if let Some(n) = self.threads {
            cpu = cpu.threads(n);
        }
        if let Some(name) = self.kernels.take() {
            cpu = cpu.kernels(name);
        }
        match self.device {
            Device::Cpu => {
                let cpu = cpu.build()?;
                let parts = self.parts(cpu.clone(), &registry)?;
                Ok(LanguageModel(Arc::new(Parts { cpu: Some(cpu), ..parts })))
            }
            #[cfg(feature = "mlx")]
            Device::Mlx(device) => {
                let mlx = rillm_tensor_core::mlx::Mlx::builder().device(device).precision(self.precision);
                let made = Arc::new(OnceLock::new());
                let keep = Arc::clone(&made);
                let make = move || mlx.build().inspect(|mlx| drop(keep.set(mlx.clone())));
                let parts = self.parts_on_thread(make, Registry::default())?;
                Ok(LanguageModel(Arc::new(Parts { mlx: made.get().cloned(), ..parts })))
            }
        }
    }

    /// Loads the model on a backend of yours, with the families of `registry`. Choices of device, threads, kernels
    /// and precision are the backend's then.
    ///
    /// # Errors
    /// A model that can't be found, read or understood.
    pub fn load_on<B: Backend>(self, backend: B, registry: &Registry<B>) -> Result<LanguageModel> {
        Ok(LanguageModel(Arc::new(self.parts(backend, registry)?)))
    }

    /// As [`load_on`](Self::load_on), for a backend whose tensors belong to the thread that made them: it is made, and
    /// everything of it runs, on a thread of the model's own.
    ///
    /// # Errors
    /// A model that can't be found, read or understood, or a backend that can't start.
    pub fn load_on_thread<B: Backend>(
        self,
        make_backend: impl FnOnce() -> rillm_tensor_core::Result<B> + Send + 'static,
        registry: Registry<B>,
    ) -> Result<LanguageModel> {
        Ok(LanguageModel(Arc::new(self.parts_on_thread(make_backend, registry)?)))
    }

    fn parts_on_thread<B: Backend>(
        self,
        make_backend: impl FnOnce() -> rillm_tensor_core::Result<B> + Send + 'static,
        registry: Registry<B>,
    ) -> Result<Parts> {
        let context = self.context;
        self.parts_of(|checkpoint| {
            let device = Arc::new(OnceLock::new());
            let name = Arc::clone(&device);
            let engine = EngineSession::start(move || -> Result<_> {
                let backend = make_backend()?;
                name.get_or_init(|| backend.name());
                checkpoint.session(backend, &registry, context)
            })?;
            Ok((SharedSession::new(engine), device.get().cloned().unwrap_or_default()))
        })
    }

    fn parts<B: Backend>(self, backend: B, registry: &Registry<B>) -> Result<Parts> {
        let context = self.context;
        self.parts_of(|checkpoint| {
            let device = backend.name();
            Ok((SharedSession::new(checkpoint.session(backend, registry, context)?), device))
        })
    }

    /// Opens the checkpoint, reads its text, and has `start` make a session and name its backend meanwhile.
    fn parts_of(self, start: impl FnOnce(Weights) -> Result<(SharedSession, String)>) -> Result<Parts> {
        let started = Instant::now();
        let (path, checkpoint) = match &self.source {
            Source::Random(shape) => (PathBuf::from("random weights"), shape.checkpoint()),
            Source::Named(name) => {
                let path = self.find(name)?;
                let checkpoint = Checkpoint::open(&path)?;
                (path, checkpoint)
            }
        };
        let Checkpoint { config, generation_config, weights, left_out, text } = checkpoint;
        let config = Arc::new(config);
        let weights = Weights { path, config: Arc::clone(&config), source: weights };
        let model_type = weights.config()?.model_type().map_err(of(&weights.path))?.to_owned();
        let (session, text) = std::thread::scope(|scope| {
            // Reading a vocabulary is work for one thread; packing leaves gaps for it.
            let text = scope.spawn(text);
            let session = start(weights);
            (session, text.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        let (session, device) = session?;
        let stop_tokens = text.stop_tokens(generation_config.as_ref(), &config);
        let info = ModelInfo {
            model_type,
            device,
            vocab: session.vocab(),
            context: session.context(),
            weight_bytes: session.weight_bytes(),
            load_time: started.elapsed(),
            left_out,
        };
        Ok(Parts {
            session,
            text,
            stop_tokens,
            generation_config,
            info,
            cpu: None,
            #[cfg(feature = "mlx")]
            mlx: None,
            bandwidth: OnceLock::new(),
        })
    }

    /// The folder or file that `name` means; what is on this machine wins over the hub.
    fn find(&self, name: &str) -> Result<PathBuf> {
        let path = Path::new(name);
        if path.exists() {
            return Ok(path.to_owned());
        }
        #[cfg(feature = "hub")]
        {
            let local = path.is_absolute() || name.starts_with('.') || name.matches('/').count() > 2;
            if !local {
                let options = self.hub.clone().unwrap_or_else(crate::hub::HubOptions::from_env);
                return Ok(crate::hub::snapshot(name, &options)?);
            }
        }
        Err(Error::NotFound { name: name.to_owned() })
    }
}

/// What a session is made of, on whatever thread.
struct Weights {
    path: PathBuf,
    config: Arc<Value>,
    source: Box<dyn WeightSource>,
}

impl Weights {
    fn config(&self) -> Result<Config<'_>> {
        Config::new(&self.config).map_err(of(&self.path))
    }

    fn session<B: Backend>(
        self,
        backend: B,
        registry: &Registry<B>,
        context: Option<usize>,
    ) -> Result<LocalSession<B>> {
        let model = registry.load(&self.config()?, &*self.source, &backend).map_err(of(&self.path))?;
        Ok(LocalSession::new(backend, model, context))
    }
}

/// What lies in a folder or file, opened.
pub(crate) struct Checkpoint {
    pub(crate) config: Value,
    pub(crate) generation_config: Option<Value>,
    pub(crate) weights: Box<dyn WeightSource>,
    /// Modules of the checkpoint that are not loaded.
    pub(crate) left_out: Vec<String>,
    /// Reads the tokenizer.
    pub(crate) text: Box<dyn FnOnce() -> Text + Send>,
}

impl Checkpoint {
    fn open(path: &Path) -> Result<Self> {
        let is_gguf = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
        match is_gguf {
            #[cfg(feature = "gguf")]
            true => Self::gguf(path),
            _ => Self::folder(path),
        }
    }

    fn folder(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let config = read_json(&path)?.ok_or_else(|| {
            let source = std::io::Error::from(std::io::ErrorKind::NotFound);
            Error::Io { path, source }
        })?;
        let quantization = Quantization::from_config(&config).map_err(of(dir))?;
        let weights = Safetensors::open(dir)?.with_quantization(quantization);
        let folder = dir.to_owned();
        let part = TextPart::new(&weights);
        let left_out = part.left_out();
        let (config, weights, left_out): (_, Box<dyn WeightSource>, _) = match text_config(&config, &part) {
            Some(config) => (config, Box::new(TextPart::new(weights)), left_out),
            None => (config, Box::new(weights), Vec::new()),
        };
        Ok(Self {
            generation_config: read_json(&dir.join("generation_config.json"))?,
            text: Box::new(move || Text::new(Tokenizer::from_folder(&folder))),
            weights,
            config,
            left_out,
        })
    }

    #[cfg(feature = "gguf")]
    fn gguf(path: &Path) -> Result<Self> {
        use rillm_models::gguf;
        let file = rillm_nn::Gguf::open(path)?;
        let (config, layout) =
            (gguf::config(&file).map_err(of(path))?, gguf::layout(&file).map_err(of(path))?);
        let vocab = rillm_generate::GgufVocab::read(&file);
        let text = Box::new(|| Text::new(vocab.and_then(|vocab| Tokenizer::from_gguf_vocab(&vocab))));
        let weights = Box::new(rillm_nn::Adapted::new(file, layout));
        Ok(Self { config, generation_config: None, weights, left_out: Vec::new(), text })
    }
}

impl Text {
    pub(crate) fn new(tokenizer: rillm_generate::Result<Tokenizer>) -> Self {
        let tokenizer = tokenizer.map_err(Arc::new);
        let template = match &tokenizer {
            Ok(tokenizer) => tokenizer.chat_template().map_err(Arc::new),
            Err(error) => Err(Arc::clone(error)),
        };
        Self { tokenizer, template }
    }

    /// The tokens that end an answer: of generation_config.json, or else of config.json, and the tokenizer's.
    fn stop_tokens(&self, generation_config: Option<&Value>, config: &Value) -> StopTokens {
        let eos = |config: &Value| -> Option<EosTokenId> {
            serde_json::from_value(config.get("eos_token_id")?.clone()).ok()
        };
        let generation = generation_config.and_then(eos);
        let mut tokens = StopTokens::of_checkpoint(generation.as_ref(), eos(config).as_ref(), None);
        if let Ok(tokenizer) = &self.tokenizer {
            tokens.extend(tokenizer.eos().iter().copied());
        }
        tokens
    }
}

/// Says which checkpoint an error is about.
fn of<E: Into<rillm_models::Error>>(path: &Path) -> impl Fn(E) -> Error {
    |source| Error::Model { path: path.to_owned(), source: Box::new(source.into()) }
}

/// The JSON of a file, `None` if there is no such file.
fn read_json(path: &Path) -> Result<Option<Value>> {
    match std::fs::read(path) {
        Ok(bytes) => match crate::json::parse(&bytes) {
            Ok(value) => Ok(Some(value)),
            Err(source) => Err(Error::Json { path: path.to_owned(), source }),
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io { path: path.to_owned(), source }),
    }
}
