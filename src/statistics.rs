//! Figures of one generation.

use rillm_generate::Timing;
use serde::Serialize;

/// Figures of one generation. Rates are tokens a second, times seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Statistics {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that a cache had already.
    pub cached_tokens: usize,
    /// Tokens generated.
    pub generated_tokens: usize,
    /// Time to the first token: prefill and one pick.
    pub ttft_s: f64,
    /// Tokens of the prompt that were run, over the time to the first token.
    pub prompt_tps: f64,
    /// Tokens after the first, over the time they took.
    pub generation_tps: f64,
    /// The largest memory the process has had, where the system tells.
    pub peak_memory_bytes: Option<u64>,
    /// What the device has used, if it is one of MLX's.
    pub device: Option<DeviceUsage>,
    /// Time that loading took, packing of weights included.
    pub load_s: f64,
    /// Bytes of weights that decoding a token reads.
    pub weight_bytes_per_token: usize,
    /// Bytes a second that this machine reads, if it was measured.
    pub read_bandwidth_bytes_per_s: Option<f64>,
    /// The share of that bandwidth which reading the weights took: 1 is the floor of the time for a token.
    pub floor_share: Option<f64>,
}

/// What MLX has used since the model was loaded. Memory is that of all models in the process, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct DeviceUsage {
    /// In use.
    pub active_bytes: usize,
    /// Free, kept for reuse.
    pub cached_bytes: usize,
    /// The most that was in use at a time.
    pub peak_bytes: usize,
    /// Time of the host in handing work to the device.
    pub submitting_s: f64,
    /// Time of the host in waiting for it.
    pub waiting_s: f64,
}

impl Statistics {
    /// The figures of `timing`; `bandwidth` in bytes a second if it was measured.
    pub(crate) fn new(timing: Timing, load_s: f64, weight_bytes: usize, bandwidth: Option<f64>) -> Self {
        let rate = |n: usize, seconds: f64| if seconds > 0.0 { n as f64 / seconds } else { 0.0 };
        let ttft_s = timing.first_token.as_secs_f64();
        let generation_tps =
            rate(timing.generated_tokens.saturating_sub(1), timing.after_first.as_secs_f64());
        Self {
            prompt_tokens: timing.prompt_tokens,
            cached_tokens: timing.cached_tokens,
            generated_tokens: timing.generated_tokens,
            ttft_s,
            prompt_tps: rate(timing.prompt_tokens - timing.cached_tokens.min(timing.prompt_tokens), ttft_s),
            generation_tps,
            peak_memory_bytes: peak_memory_bytes(),
            device: None,
            load_s,
            weight_bytes_per_token: weight_bytes,
            read_bandwidth_bytes_per_s: bandwidth,
            floor_share: bandwidth.map(|b| generation_tps * weight_bytes as f64 / b),
        }
    }
}

/// The largest resident memory this process has had, in bytes; `None` where the system does not tell without
/// unsafe code (it does on Linux).
pub fn peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
