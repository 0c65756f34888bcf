//! How a MLX backend is started: which device, how exact, how much memory. Not what it computes.

use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, OnceLock};

use mlx_rs::{Device, Dtype, memory};

use super::cuda::{self, Kernels};
use super::rope::Ropes;
use super::{Inner, Mlx, error, exception, raw};
use crate::Result;
use crate::cpu::Precision;

/// What MLX computes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MlxDevice {
    /// The graphics card where this build of MLX has one, else the processor.
    #[default]
    Best,
    /// The processor.
    Cpu,
    /// The graphics card.
    Gpu,
}

/// Where MLX computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum On {
    Cpu,
    Metal,
    Cuda,
}

/// Choices for a [`Mlx`]. The default is the best device, and activations and caches in the type of the weights.
#[derive(Clone, Debug, Default)]
pub struct MlxBuilder {
    device: MlxDevice,
    precision: Precision,
    cache_limit: Option<usize>,
    wired_limit: Option<usize>,
}

impl MlxBuilder {
    /// Computes on `device`. MLX has one default device: the latest backend's choice holds for the process.
    pub fn device(mut self, device: MlxDevice) -> Self {
        self.device = device;
        self
    }

    /// Rounds activations and caches as `precision` says: to the type of the weights, or, exactly, not at all.
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// Lets MLX keep at most `bytes` of freed memory for reuse.
    pub fn cache_limit(mut self, bytes: usize) -> Self {
        self.cache_limit = Some(bytes);
        self
    }

    /// Keeps up to `bytes` resident on the device (Metal).
    pub fn wired_limit(mut self, bytes: usize) -> Self {
        self.wired_limit = Some(bytes);
        self
    }

    /// Starts the backend.
    ///
    /// # Errors
    /// A device that this build of MLX or this machine lacks, or limits that it refuses. Exact results on CUDA want
    /// `MLX_ENABLE_TF32=0` in the environment, which MLX reads before its first product.
    pub fn build(self) -> Result<Mlx> {
        // The first operation through mlx-rs makes failures errors instead of exits.
        memory::reset_peak_memory().map_err(exception)?;
        let on = choose(self.device)?;
        let has_kernels = on == On::Cuda && raw::architecture()? == cuda::ARCHITECTURE;
        if let Some(bytes) = self.cache_limit {
            memory::set_cache_limit(bytes).map_err(exception)?;
        }
        if let Some(bytes) = self.wired_limit {
            memory::set_wired_limit(bytes).map_err(exception)?;
        }
        let exact = self.precision == Precision::Exact;
        let tf32 = std::env::var("MLX_ENABLE_TF32").ok();
        if exact && on == On::Cuda && tf32.as_deref() != Some("0") {
            let message = "exact results on CUDA need MLX_ENABLE_TF32=0 in the environment of the process";
            return Err(error(message.to_owned()));
        }
        let dtype = OnceLock::new();
        // MLX's processor kernels are slow with halves.
        if exact || on == On::Cpu {
            dtype.get_or_init(|| Dtype::Float32);
        }
        Ok(Mlx(Arc::new(Inner {
            precision: self.precision,
            on,
            has_kernels,
            dtype,
            ropes: Ropes::default(),
            kernels: Kernels::default(),
            evals: AtomicUsize::new(0),
            submits: AtomicUsize::new(0),
            submitting: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
        })))
    }
}

/// Makes `device` MLX's default.
fn choose(device: MlxDevice) -> Result<On> {
    let has_card = Mlx::has_card();
    if device == MlxDevice::Gpu && !has_card {
        return Err(error("this build of MLX has no graphics card".to_owned()));
    }
    if device == MlxDevice::Cpu || !has_card {
        raw::set_device(&Device::cpu());
        return Ok(On::Cpu);
    }
    raw::set_device(&Device::gpu());
    Ok(if raw::has_cuda() { On::Cuda } else { On::Metal })
}
