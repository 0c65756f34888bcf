//! Options that examples share: which model, and what computes.

use std::error::Error;
use std::process::ExitCode;

use clap::Args;
use rillm::{Device, Loader, RandomShape};

/// A model and what computes it.
#[derive(Args)]
pub struct ModelArgs {
    /// A folder, a .gguf file, or a repository of the Hugging Face hub
    #[arg(long)]
    pub model: Option<String>,
    #[command(flatten)]
    pub compute: ComputeArgs,
}

/// What computes.
#[derive(Args)]
pub struct ComputeArgs {
    /// What computes
    #[arg(long, default_value_t = Device::best())]
    device: Device,
    /// Threads [default: physical performance cores]
    #[arg(long)]
    threads: Option<usize>,
    /// Compute with f32 activations and caches
    #[arg(long)]
    exact: bool,
    /// Pin the CPU's kernels, e.g. avx2 [default: the fastest]
    #[arg(long)]
    kernels: Option<String>,
}

/// A model, or one of random weights, and what computes it.
#[derive(Args)]
pub struct BenchModelArgs {
    /// Random weights instead of a model: llama-1b, llama-8b, smollm2-135m, mamba2-1.3b, qwen3.5-0.8b, olmoe-1b-7b or
    /// qwen3-30b-a3b
    #[arg(long, conflicts_with = "model")]
    random_weights: Option<String>,
    /// Quantize random weights, which are bf16 else: BITS:GROUP, mxfp4, mxfp8, nvfp4, q4_0, q4_1, q8_0
    #[arg(long, requires = "random_weights")]
    quantize: Option<String>,
    #[command(flatten)]
    model: ModelArgs,
}

impl ComputeArgs {
    fn apply(&self, loader: Loader) -> Loader {
        let mut loader = loader.device(self.device);
        if let Some(n) = self.threads {
            loader = loader.threads(n);
        }
        if let Some(name) = &self.kernels {
            loader = loader.kernels(name);
        }
        if self.exact { loader.exact() } else { loader }
    }
}

impl ModelArgs {
    /// A loader of the model that was asked for, or of the default one.
    pub fn loader(&self) -> Result<Loader, Box<dyn Error>> {
        let path = super::resolve_model(self.model.as_deref())?;
        Ok(self.compute.apply(Loader::new(path.to_string_lossy())))
    }
}

impl BenchModelArgs {
    /// A loader of the model that was asked for, or of the default one.
    pub fn loader(&self) -> Result<Loader, Box<dyn Error>> {
        let Some(shape) = &self.random_weights else { return self.model.loader() };
        let shape: RandomShape = shape.parse()?;
        let shape = match &self.quantize {
            Some(text) => shape.quantized(text)?,
            None => shape,
        };
        Ok(self.model.compute.apply(Loader::random(shape)))
    }
}

/// The end of an example: an error is one line on stderr and a non-zero exit.
pub fn exit(result: Result<(), Box<dyn Error>>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
