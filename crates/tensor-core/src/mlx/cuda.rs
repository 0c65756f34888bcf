//! Kernels of our own, through MLX's interface for custom ones: what decoding on CUDA spends its time in. Their sources
//! are in `cuda/`; here is what they are called with.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{CStr, CString};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, PoisonError};

use mlx_rs::{Array, Dtype};
use smallvec::SmallVec;

use super::step_kernels::{Convolve, Recur};
use super::{dim, error, raw};
use crate::Result;

/// The cards that the kernels were written for, as MLX calls them: measured on an H100. Others get MLX's operations.
pub(super) const ARCHITECTURE: &str = "sm_90";
/// Multiprocessors of such a card.
const PROCESSORS: usize = 132;
/// Lengths of sequences that are kept on the device: twice as many as a call takes.
const LENGTHS: usize = 16;
/// Bytes of shared memory that a block can have there.
const SHARED_MEMORY: usize = 227 << 10;

/// A kernel with what is fixed about a call, compiled when it first runs.
#[derive(Debug)]
pub(super) struct Launch {
    kernel: mlx_sys::mlx_fast_cuda_kernel,
    config: mlx_sys::mlx_fast_cuda_kernel_config,
}

// SAFETY: both handles own values that calls only read.
unsafe impl Send for Launch {}

impl Drop for Launch {
    fn drop(&mut self) {
        // SAFETY: the handles are owned here and used no more.
        unsafe {
            mlx_sys::mlx_fast_cuda_kernel_config_free(self.config);
            mlx_sys::mlx_fast_cuda_kernel_free(self.kernel);
        }
    }
}

/// A constant of a kernel.
pub(super) enum Constant<'a> {
    Type(Dtype),
    Int(i32),
    Bool(bool),
    /// A pointer to nothing, of a type: an input that there is not.
    Null(&'static str),
    /// Inputs of a type, as an array of pointers.
    Inputs(&'static str, &'a [CString]),
}

/// Everything about a call but its inputs.
pub(super) struct Call<'a> {
    pub name: &'a CStr,
    pub inputs: &'a [&'a CStr],
    pub header: &'a CStr,
    pub body: &'a CStr,
    pub shared_memory: usize,
    /// Of a block.
    pub threads: usize,
    pub blocks: [usize; 2],
    /// Results.
    pub out: &'a [(&'a CStr, &'a [i32], Dtype)],
    pub constants: &'a [(&'a CStr, Constant<'a>)],
}

impl Launch {
    pub(super) fn new(call: &Call<'_>) -> Result<Self> {
        let shared = dim(call.shared_memory)?;
        let [threads, x, y] = [dim(call.threads)?, dim(call.threads * call.blocks[0])?, dim(call.blocks[1])?];
        let body = with_constants(call.constants, call.body);
        let strings = |names: &[&CStr]| {
            let mut names: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
            // SAFETY: the pointers are of live strings, which are copied.
            unsafe { mlx_sys::mlx_vector_string_new_data(names.as_mut_ptr(), names.len()) }
        };
        // SAFETY: strings are live and copied; both vectors are freed once they are.
        let launch = unsafe {
            let names: Vec<&CStr> = call.out.iter().map(|(name, ..)| *name).collect();
            let (inputs, outputs) = (strings(call.inputs), strings(&names));
            let (name, body, header) = (call.name.as_ptr(), body.as_ptr(), call.header.as_ptr());
            let kernel = mlx_sys::mlx_fast_cuda_kernel_new(name, inputs, outputs, body, header, true, shared);
            mlx_sys::mlx_vector_string_free(inputs);
            mlx_sys::mlx_vector_string_free(outputs);
            Self { kernel, config: mlx_sys::mlx_fast_cuda_kernel_config_new() }
        };
        // SAFETY: the configuration is live.
        let mut failed = unsafe {
            mlx_sys::mlx_fast_cuda_kernel_config_set_grid(launch.config, x, y, 1)
                | mlx_sys::mlx_fast_cuda_kernel_config_set_thread_group(launch.config, threads, 1, 1)
        };
        for (_, shape, dtype) in call.out {
            let (dtype, dims) = ((*dtype).into(), shape.len());
            // SAFETY: the configuration is live, the shape has so many dimensions.
            failed |= unsafe {
                mlx_sys::mlx_fast_cuda_kernel_config_add_output_arg(
                    launch.config,
                    shape.as_ptr(),
                    dims,
                    dtype,
                )
            };
        }
        if failed == 0 { Ok(launch) } else { Err(error(format!("{:?} can't be set up", call.name))) }
    }

    fn apply<'a, const N: usize>(&self, inputs: impl Iterator<Item = &'a Array>) -> Result<[Array; N]> {
        let handles: SmallVec<[_; 8]> = inputs.map(Array::as_ptr).collect();
        // SAFETY: all handles are live; vectors are freed; the results are owned by nobody else.
        unsafe {
            let inputs = mlx_sys::mlx_vector_array_new_data(handles.as_ptr(), handles.len());
            let mut outputs = mlx_sys::mlx_vector_array_new();
            let mut status = raw::with_stream(|stream| {
                mlx_sys::mlx_fast_cuda_kernel_apply(&mut outputs, self.kernel, inputs, self.config, stream)
            });
            let results = std::array::from_fn(|i| {
                let mut out = mlx_sys::mlx_array_new();
                if status == 0 {
                    status = mlx_sys::mlx_vector_array_get(&mut out, outputs, i);
                }
                Array::from_ptr(out)
            });
            mlx_sys::mlx_vector_array_free(inputs);
            mlx_sys::mlx_vector_array_free(outputs);
            if status == 0 { Ok(results) } else { Err(error("a custom kernel failed".to_owned())) }
        }
    }
}

/// `body` with declarations of `constants` before it. MLX's own template arguments would be formatted at every call.
fn with_constants(constants: &[(&CStr, Constant<'_>)], body: &CStr) -> CString {
    let mut text = String::new();
    for (name, constant) in constants {
        let name = name.to_string_lossy();
        text += &match constant {
            Constant::Type(Dtype::Bfloat16) => format!("using {name} = __nv_bfloat16;\n"),
            Constant::Type(Dtype::Float32) => format!("using {name} = float;\n"),
            Constant::Type(_) => format!("using {name} = __half;\n"),
            Constant::Int(n) => format!("constexpr int {name} = {n};\n"),
            Constant::Bool(b) => format!("constexpr bool {name} = {b};\n"),
            Constant::Null(t) => format!("constexpr const {t}* {name} = nullptr;\n"),
            Constant::Inputs(t, names) => {
                let names: Vec<_> = names.iter().map(|name| name.to_string_lossy()).collect();
                format!("const {t}* const {name}[] = {{{}}};\n", names.join(", "))
            }
        };
    }
    text += &body.to_string_lossy();
    CString::new(text).unwrap_or_default()
}

/// `n` names of inputs.
fn numbered(name: &str, n: usize) -> Vec<CString> {
    (0..n).map(|i| CString::new(format!("{name}{i}")).unwrap_or_default()).collect()
}

/// A source without comments and indentation.
fn terse(source: &str) -> CString {
    let lines = source.lines().map(|line| line.split("//").next().unwrap_or_default().trim());
    let text = lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n");
    CString::new(text + "\n").unwrap_or_default()
}

static MATVEC: LazyLock<[CString; 2]> =
    LazyLock::new(|| sources("matvec", include_str!("cuda/matvec.cu"), include_str!("cuda/matvec_body.cu")));
static ATTEND: LazyLock<[CString; 2]> =
    LazyLock::new(|| sources("attend", include_str!("cuda/attend.cu"), include_str!("cuda/attend_body.cu")));
static MERGE: LazyLock<[CString; 2]> =
    LazyLock::new(|| sources("attend", include_str!("cuda/attend.cu"), include_str!("cuda/merge_body.cu")));

static DRAW: LazyLock<[CString; 2]> =
    LazyLock::new(|| sources("draw", include_str!("cuda/draw.cu"), include_str!("cuda/draw_body.cu")));

/// What MLX is given as header and body. It copies and hashes both at every call: so a long header is a line that includes
/// a file, where one can be written.
pub(super) fn sources(name: &str, header: &str, body: &str) -> [CString; 2] {
    let header = terse(header);
    let include = stored(name, header.to_bytes()).and_then(|path| {
        let path = path.to_str().filter(|path| !path.contains(['"', '\\', '\n']))?;
        CString::new(format!("#include \"{path}\"\n")).ok()
    });
    [include.unwrap_or(header), terse(body)]
}

/// A file with `source` in the user's cache, named by its content.
fn stored(name: &str, source: &[u8]) -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let folder = cache.filter(|path| path.is_absolute()).or_else(home)?.join("rillm/cuda");
    let mut hash = DefaultHasher::new();
    source.hash(&mut hash);
    let path = folder.join(format!("{name}-{:016x}.cuh", hash.finish()));
    if std::fs::read(&path).is_ok_and(|there| there == source) {
        return Some(path);
    }
    std::fs::create_dir_all(&folder).ok()?;
    // Whole or not at all: other processes may read it.
    let part = path.with_extension(format!("{}.part", std::process::id()));
    std::fs::write(&part, source).ok()?;
    std::fs::rename(&part, &path).ok()?;
    Some(path)
}

/// What a product reads: the constants of `matvec` of that name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Prologue {
    Plain = 0,
    RmsNorm = 1,
    SiluGate = 2,
    GeluGate = 3,
}

/// One product of few rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Matvec {
    pub dtype: Dtype,
    /// Of a code; 16 for plain weights.
    pub bits: usize,
    pub group: usize,
    pub inp: usize,
    pub out: usize,
    pub rows: usize,
    /// Rows that each meet the matrix of an expert of theirs; 0 if there is but one matrix.
    pub pairs: usize,
    pub prologue: Prologue,
    /// Of the norm, the bits of an `f32`.
    pub eps: u32,
    pub bias: bool,
    pub residual: bool,
}

/// Attention of a token of each of a few sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Attend {
    pub dtype: Dtype,
    pub sequences: usize,
    pub head: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub pairs: usize,
    pub halves: bool,
    /// The bits of an `f32`.
    pub scale: u32,
    /// Among how many blocks the positions before a head's query are divided.
    pub splits: usize,
}

/// A token from each of a few rows of logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Draw {
    pub dtype: Dtype,
    pub rows: usize,
    pub vocab: usize,
}

/// How a product is spread over the card: see `matvec_body.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    steps: usize,
    /// Of a block, along a row.
    warps: usize,
    blocks: usize,
}

/// Kernels that were asked for so far.
#[derive(Debug, Default)]
pub(super) struct Kernels {
    matvec: Mutex<HashMap<Matvec, Launch>>,
    /// And what merges the parts of each.
    attend: Mutex<HashMap<Attend, (Launch, Launch)>>,
    draw: Mutex<HashMap<Draw, Launch>>,
    pub(super) recur: Mutex<HashMap<Recur, Launch>>,
    pub(super) convolve: Mutex<HashMap<Convolve, Launch>>,
    /// The latest lengths.
    lengths: Mutex<Vec<(usize, Array)>>,
}

/// Runs the kernel `what`, which `launch` sets up when it is asked for first.
pub(super) fn run<'a, K: Copy + Eq + Hash, const N: usize>(
    known: &Mutex<HashMap<K, Launch>>,
    what: K,
    launch: fn(K) -> Result<Launch>,
    inputs: impl Iterator<Item = &'a Array>,
) -> Result<[Array; N]> {
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    match known.entry(what) {
        Entry::Occupied(there) => there.get().apply(inputs),
        Entry::Vacant(new) => new.insert(launch(what)?).apply(inputs),
    }
}

impl Kernels {
    /// `n` on the device: all layers of a step ask for the same few.
    pub(super) fn length(&self, n: usize) -> Result<Array> {
        let mut known = self.lengths.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, array)) = known.iter().find(|(have, _)| *have == n) {
            return Ok(array.clone());
        }
        if known.len() == LENGTHS {
            known.remove(0);
        }
        let array = Array::from_slice(&[dim(n)?], &[1]);
        known.push((n, array.clone()));
        Ok(array)
    }

    /// `inputs` in the order of `matvec_body.cu`, those that `what` has.
    pub(super) fn matvec<'a>(&self, what: Matvec, inputs: impl Iterator<Item = &'a Array>) -> Result<Array> {
        let [out] = run(&self.matvec, what, Matvec::launch, inputs)?;
        Ok(out)
    }

    /// The ids drawn from `logits: [rows, vocab]`, `[rows]`; `numbers` are those of `draw_body.cu`.
    pub(super) fn draw(&self, what: Draw, logits: &Array, numbers: &[f32]) -> Result<Array> {
        let numbers: Vec<Array> = numbers.chunks(Draw::PAIR).map(Draw::pair).collect();
        let [ids] = run(&self.draw, what, Draw::launch, std::iter::once(logits).chain(&numbers))?;
        Ok(ids)
    }

    /// `inputs` in the order of `attend_body.cu`; what attention gives, and the keys and values that it wrote.
    pub(super) fn attend(&self, what: Attend, inputs: &[Array]) -> Result<[Array; 2]> {
        let mut known = self.attend.lock().unwrap_or_else(PoisonError::into_inner);
        let (attend, merge) = match known.entry(what) {
            Entry::Occupied(there) => there.into_mut(),
            Entry::Vacant(new) => new.insert((what.launch()?, what.merge()?)),
        };
        let [out, rows] = attend.apply(inputs.iter())?;
        if what.splits == 1 {
            return Ok([out, rows]);
        }
        let [out] = merge.apply([&out].into_iter())?;
        Ok([out, rows])
    }
}

impl Matvec {
    /// Whether the kernel takes such shapes.
    pub(super) fn is_possible(self) -> bool {
        let whole = if self.bits == 16 { 8 } else { self.group };
        let Plan { steps, warps, .. } = self.plan();
        let fits = self.inp > 0 && self.out > 0 && self.inp.is_multiple_of(whole);
        fits && self.shared_memory(steps, warps) <= SHARED_MEMORY
    }

    /// As measured over 2000 plans on an H100 and an H200: enough bytes in flight for all processors, few warps that wait
    /// for each other, as many windows for each of them, and blocks that are all there at once.
    fn plan(self) -> Plan {
        let Self { bits, group, inp, out, rows, pairs, .. } = self;
        // 16-byte loads of four lanes along a row, and tiles of outputs.
        let (loads, tiles) = ((inp * bits).div_ceil(512), out.div_ceil(16));
        let all = tiles * pairs.max(1);
        // Warps of a block at most, and those that a processor has at once. With more than 8 a thread has 168 registers, with
        // more than 12 it has 128, and a kernel that needs more can't be launched. Only kinds of product that need fewer have
        // them: 351 random shapes were compiled to see.
        let (mut steps, mut most, resident) = match bits {
            16 if rows > 1 => (4, 8, 8),
            16 => (4, 16, 16),
            _ if rows > 1 => (4, 8, 8),
            _ if inp > 4096 => (4, if loads > 64 && group > 32 && pairs == 0 { 12 } else { 8 }, 12),
            _ if tiles > 2 * PROCESSORS => (4, if loads > 24 { 4 } else { 6 }, 12),
            _ if all > 2 * PROCESSORS => (bits / 2, 4, 16),
            _ if all > PROCESSORS => (2, 8, 16),
            _ => (bits / 2, 12, 16),
        };
        if bits < 16 {
            // Columns of a window are whole groups, at most eight; with fewer in flight a warp needs company.
            let wanted = steps;
            steps = steps.min(8 * group * bits / 512).max(group * bits / 512).max(1);
            if steps < wanted && rows == 1 {
                most = if loads > 128 { 8 } else { (most * wanted / steps).min(12) };
            }
            if !loads.is_multiple_of(steps) || !(inp * bits).is_multiple_of(512) {
                most = most.min(8);
            }
        }
        let windows = loads.div_ceil(steps);
        let even = |most: usize| windows.div_ceil(windows.div_ceil(most).max(1));
        while most > 4 && self.shared_memory(steps, even(most)) > SHARED_MEMORY {
            most /= 2;
        }
        let warps = even(most).max(1);
        let blocks = PROCESSORS * (resident / warps).max(1) / pairs.max(1);
        Plan { steps, warps, blocks: tiles.min(blocks.max(1)) }
    }

    fn launch(self) -> Result<Launch> {
        let Plan { steps, warps, blocks } = self.plan();
        let int = |n: usize| dim(n).map(Constant::Int);
        let [header, body] = &*MATVEC;
        let (coded, normed) = (self.bits < 16, self.prologue == Prologue::RmsNorm);
        let mut constants = vec![
            (c"T", Constant::Type(self.dtype)),
            (c"BITS", int(self.bits)?),
            (c"GROUP", int(self.group)?),
            (c"IN", int(self.inp)?),
            (c"OUT", int(self.out)?),
            (c"ROWS", int(self.rows)?),
            (c"PROLOGUE", Constant::Int(self.prologue as i32)),
            (c"EPS", Constant::Int(self.eps as i32)),
            (c"BIAS", Constant::Bool(self.bias)),
            (c"RESIDUAL", Constant::Bool(self.residual)),
            // An input for each, or none.
            (c"EXPERTS", Constant::Int(if self.pairs > 0 { 2 } else { 0 })),
            (c"STEPS", int(steps)?),
            (c"WARPS", int(warps)?),
        ];
        let mut inputs = vec![c"x", c"w"];
        let optional = [
            (c"scales", coded),
            (c"biases", coded),
            (c"gain", normed),
            (c"bias", self.bias),
            (c"residual", self.residual),
        ];
        for (name, has) in optional {
            match has {
                true => inputs.push(name),
                false => constants.push((name, Constant::Null("T"))),
            }
        }
        match self.pairs {
            0 => constants.push((c"experts", Constant::Null("unsigned int"))),
            _ => inputs.push(c"experts"),
        }
        Launch::new(&Call {
            name: c"matvec",
            inputs: &inputs,
            header,
            body,
            shared_memory: self.shared_memory(steps, warps),
            threads: 32 * warps,
            blocks: [blocks, self.pairs.max(1)],
            out: &[(c"out", &[dim(self.rows * self.pairs.max(1))?, dim(self.out)?], self.dtype)],
            constants: &constants,
        })
    }

    /// Bytes of dynamic shared memory: the formula of `matvec_body.cu`.
    fn shared_memory(self, steps: usize, warps: usize) -> usize {
        let Self { bits, group, inp, rows, .. } = self;
        let window = steps * 512 / bits;
        let columns = window * inp.div_ceil(window);
        let padding = if columns.is_multiple_of(64) { 64 } else { 0 };
        let groups = if bits < 16 { 8 * rows * columns / group } else { 0 };
        let squares = if self.prologue == Prologue::RmsNorm { 4 * warps * rows } else { 0 };
        1024 / bits + rows * (2 * columns + padding) + groups + 128 * warps * rows + squares
    }
}

impl Draw {
    const THREADS: usize = 512;
    /// Numbers of settings before the points.
    pub(super) const SETTINGS: usize = 5;
    /// Floats in an array. MLX keeps 8 bytes where card and host both reach them; more are moved to and fro in every step,
    /// and may be allocated in it: 0.13 ms.
    const PAIR: usize = 2;

    fn pair(numbers: &[f32]) -> Array {
        Array::from_slice(&[numbers[0], numbers.get(1).copied().unwrap_or_default()], &[2])
    }

    fn launch(self) -> Result<Launch> {
        let int = |n: usize| dim(n).map(Constant::Int);
        let [header, body] = &*DRAW;
        let pairs = (Self::SETTINGS + self.rows).div_ceil(Self::PAIR);
        let pairs = numbered("pair", pairs);
        let inputs =
            std::iter::once(c"logits").chain(pairs.iter().map(CString::as_c_str)).collect::<Vec<_>>();
        Launch::new(&Call {
            name: c"draw",
            inputs: &inputs,
            header,
            body,
            shared_memory: 0,
            threads: Self::THREADS,
            blocks: [self.rows, 1],
            out: &[(c"ids", &[dim(self.rows)?], Dtype::Uint32)],
            constants: &[
                (c"T", Constant::Type(self.dtype)),
                (c"VOCAB", int(self.vocab)?),
                (c"THREADS", int(Self::THREADS)?),
                (c"pairs", Constant::Inputs("float", &pairs)),
            ],
        })
    }
}

impl Attend {
    const WARPS: usize = 16;
    /// Positions that a block of its own is worth, beside a second kernel.
    const SPLIT: usize = 512;

    /// Among how many blocks to divide `len` positions of each of `heads` heads: as many as the card has twice.
    pub(super) fn splits(heads: usize, len: usize) -> usize {
        match len / Self::SPLIT {
            0..=1 => 1,
            n => n.min(2 * PROCESSORS / heads.max(1)).max(1),
        }
    }

    /// What attention gives: a row for each sequence, or parts of it.
    fn out(self) -> Result<[(&'static CStr, [i32; 2], Dtype); 2]> {
        let (n, width, kv) = (self.sequences, self.heads * self.head, dim(self.kv_heads * self.head)?);
        let out = match self.splits {
            1 => (c"out", [dim(n)?, dim(width)?], self.dtype),
            splits => (c"out", [dim(splits)?, dim(n * (width + 2 * self.heads))?], Dtype::Float32),
        };
        Ok([out, (c"rows", [dim(2 * n)?, kv], self.dtype)])
    }

    fn launch(self) -> Result<Launch> {
        let int = |n: usize| dim(n).map(Constant::Int);
        let of_sequences = ["keys", "values", "length", "after"].map(|name| numbered(name, self.sequences));
        let [keys, values, lengths, _] = &of_sequences;
        let constants = [
            (c"T", Constant::Type(self.dtype)),
            (c"HEAD", int(self.head)?),
            (c"HEADS", int(self.heads)?),
            (c"KV_HEADS", int(self.kv_heads)?),
            (c"PAIRS", int(self.pairs)?),
            (c"HALVES", Constant::Bool(self.halves)),
            (c"WARPS", int(Self::WARPS)?),
            (c"SPLIT", Constant::Bool(self.splits > 1)),
            (c"SCALE", Constant::Int(self.scale as i32)),
            (c"keys", Constant::Inputs("T", keys)),
            (c"values", Constant::Inputs("T", values)),
            (c"lengths", Constant::Inputs("int", lengths)),
        ];
        let mut inputs = vec![c"qkv", c"inv_freq"];
        inputs.extend(
            (0..self.sequences).flat_map(|i| of_sequences.iter().map(move |names| names[i].as_c_str())),
        );
        let [header, body] = &*ATTEND;
        Launch::new(&Call {
            name: c"attend",
            inputs: &inputs,
            header,
            body,
            shared_memory: 0,
            threads: 32 * Self::WARPS,
            blocks: [self.sequences * self.heads, self.splits],
            out: &self.out()?.each_ref().map(|(name, shape, dtype)| (*name, &shape[..], *dtype)),
            constants: &constants,
        })
    }

    /// The kernel that merges the parts.
    fn merge(self) -> Result<Launch> {
        let int = |n: usize| dim(n).map(Constant::Int);
        let [header, body] = &*MERGE;
        Launch::new(&Call {
            name: c"attend_merge",
            inputs: &[c"parts"],
            header,
            body,
            shared_memory: 0,
            threads: self.head,
            blocks: [self.sequences * self.heads, 1],
            out: &[(c"out", &[dim(self.sequences)?, dim(self.heads * self.head)?], self.dtype)],
            constants: &[
                (c"T", Constant::Type(self.dtype)),
                (c"HEAD", int(self.head)?),
                (c"HEADS", int(self.sequences * self.heads)?),
                (c"SPLITS", int(self.splits)?),
            ],
        })
    }
}
