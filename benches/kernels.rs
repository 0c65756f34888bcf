//! Every hot kernel of the CPU backend: how fast it is, and how much of what this machine allows.
//!
//! Matrix-vector products and decoding attention against the bandwidth of reading as much memory, matrix-matrix
//! products and prefill against multiply-adds in registers, what stays in caches against reading them. `KERNELS=avx2
//! cargo bench --bench kernels` pins a table of kernels.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::borrow::Cow;
use std::cell::OnceCell;
use std::hint::black_box;

use criterion::{Criterion, Throughput};
use rillm::quant::{FloatType, Format, RawTensor, encode};
use rillm::tensor::cpu::{Bandwidth, Cpu, CpuTensor, CpuWeight};
use rillm::tensor::{Activation, AttnParams, AttnSpan, Backend, Batch, Ids, KvLayout, Pairing, Rope};

use support::ceiling::{Operand, Peak};
use support::table::{Kernel, Table};

/// Rows and columns of the matrices.
const SIDE: usize = 4096;
/// Rows that are encoded; the others repeat them.
const ENCODED: usize = 64;
/// 2^-10 in half precision.
const F16_SMALL: u16 = 0x1400;
const MEMORY: &str = "reading memory";
const CACHE: &str = "reading a cache";

/// What the kernels run on.
struct Machine {
    /// Called by 1 thread, and by all that the backend takes by default.
    cpus: Vec<Cpu>,
    kernels: String,
    /// Bytes of weights or keys that take turns, more than fits caches.
    bytes: usize,
    /// Not with `--test`, which runs everything once.
    measures: bool,
}

impl Machine {
    fn new() -> Self {
        let kernels =
            std::env::var("KERNELS").unwrap_or_else(|_| (*Cpu::kernel_names().last().unwrap()).into());
        let build = |threads| Cpu::builder().kernels(&kernels).threads(threads).build().unwrap();
        let most = Cpu::new().unwrap().threads();
        let cpus = if most == 1 { vec![build(1)] } else { vec![build(1), build(most)] };
        let measures = !std::env::args().any(|arg| arg == "--test");
        let bytes = if measures { 128 << 20 } else { 1 << 20 };
        Self { cpus, kernels, bytes, measures }
    }

    fn peak(&self, operand: Operand) -> Peak {
        Peak::of(&self.kernels, operand)
    }
}

fn threads(cpu: &Cpu) -> &'static str {
    if cpu.threads() == 1 { "1 thread" } else { "all threads" }
}

/// Numbers from -0.5 to 0.5 without a pattern that kernels could see.
fn values(n: usize) -> Vec<f32> {
    (0..n as u64).map(|i| ((i * 7919) % 4093) as f32 / 4093.0 - 0.5).collect()
}

/// A matrix whose first rows are encoded and repeated, which is quicker than encoding them all.
fn matrix(format: Format, rows: usize, cols: usize) -> RawTensor<'static> {
    let few = match format {
        Format::Q4K | Format::Q5K | Format::Q6K => super_blocks(format, cols),
        _ => encode(&values(ENCODED * cols), vec![ENCODED, cols], format).unwrap(),
    };
    let all = |part: &[u8]| Cow::Owned(part.repeat(rows.div_ceil(ENCODED)));
    let parts = [all(&few.codes), all(&few.scales), all(&few.biases)];
    RawTensor::new(format, vec![rows.next_multiple_of(ENCODED), cols], parts).unwrap()
}

/// Formats that nothing here encodes: any bytes, but for the super-blocks' f16 factors, which are small.
fn super_blocks(format: Format, cols: usize) -> RawTensor<'static> {
    let bytes = format.row_bytes(format.group()).unwrap()[0];
    let factors = if format == Format::Q6K { vec![bytes - 2] } else { vec![0, 2] };
    let mut codes: Vec<u8> =
        (0..ENCODED * cols / format.group() * bytes).map(|i| ((i * 7919) >> 3) as u8).collect();
    for block in codes.chunks_exact_mut(bytes) {
        factors.iter().for_each(|at| block[*at..][..2].copy_from_slice(&F16_SMALL.to_le_bytes()));
    }
    RawTensor::new(format, vec![ENCODED, cols], [codes.into(), Cow::default(), Cow::default()]).unwrap()
}

fn weights(cpu: &Cpu, raw: &RawTensor<'_>) -> CpuWeight {
    cpu.prepare(std::slice::from_ref(raw)).unwrap()
}

/// Activations `[t, cols]`.
fn activations(cpu: &Cpu, t: usize, cols: usize) -> CpuTensor {
    let table = RawTensor::from_f32(vec![8, cols], &values(8 * cols)).unwrap();
    let ids: Vec<u32> = (0..t as u32).map(|i| i % 8).collect();
    cpu.embed(&weights(cpu, &table), Ids::Host(&ids)).unwrap()
}

fn factors(cpu: &Cpu, n: usize) -> CpuWeight {
    weights(cpu, &RawTensor::from_f32(vec![n], &vec![1.0; n]).unwrap())
}

fn formats() -> Vec<(String, Format)> {
    let meta = FloatType::BF16;
    let affine = |bits, group| (format!("affine {bits}:{group}"), Format::Affine { bits, group, meta });
    let named = |format: Format| (format.to_string(), format);
    let mut all: Vec<_> = [2, 3, 4, 5, 6, 8]
        .into_iter()
        .flat_map(|bits| [32, 64, 128].map(|group| affine(bits, group)))
        .collect();
    all.extend([Format::MxFp4, Format::MxFp8, Format::NvFp4].map(named));
    all.extend([Format::Q4_0, Format::Q4_1, Format::Q8_0, Format::Q4K, Format::Q5K, Format::Q6K].map(named));
    all.extend([FloatType::BF16, FloatType::F16, FloatType::F32].map(|t| named(Format::Float(t))));
    all
}

/// Projections of one token: matrices in turn, from memory.
fn matvec(c: &mut Criterion, table: &mut Table, machine: &Machine) {
    struct State {
        matrices: Vec<CpuWeight>,
        x: CpuTensor,
        memory: Bandwidth,
        turn: usize,
    }
    for (name, format) in formats() {
        for cpu in &machine.cpus {
            let few = weights(cpu, &matrix(format, ENCODED, SIDE));
            let bytes = cpu.weight_bytes(&few) * (SIDE / ENCODED);
            let kernel = Kernel {
                group: "matvec",
                name: format!("{name}, {}", threads(cpu)),
                amount: Throughput::Bytes(bytes as u64),
                ceiling: MEMORY,
            };
            let setup = || {
                let raw = matrix(format, SIDE, SIDE);
                let matrices = (0..machine.bytes.div_ceil(bytes)).map(|_| weights(cpu, &raw)).collect();
                let memory = cpu.bandwidth(machine.bytes).unwrap();
                State { matrices, x: activations(cpu, 1, SIDE), memory, turn: 0 }
            };
            table.measure(
                c,
                kernel,
                setup,
                |s| s.memory.pass(),
                |s| {
                    s.turn = (s.turn + 1) % s.matrices.len();
                    black_box(cpu.linear(&s.x, &s.matrices[s.turn], None).unwrap());
                },
            );
        }
    }
}

/// Projections of several tokens.
fn matmul(c: &mut Criterion, table: &mut Table, machine: &Machine) {
    let meta = FloatType::BF16;
    let affine = |bits| Format::Affine { bits, group: 64, meta };
    for (name, format, operand) in [
        ("affine 4:64", affine(4), Operand::Int8),
        ("affine 8:64", affine(8), Operand::Int8),
        ("Q4_0", Format::Q4_0, Operand::Int8),
        ("Q6K", Format::Q6K, Operand::Int8),
        ("mxfp4", Format::MxFp4, Operand::Int8),
        ("bf16", Format::Float(FloatType::BF16), Operand::Bf16),
        ("f32", Format::Float(FloatType::F32), Operand::F32),
    ] {
        let peak = machine.peak(operand);
        for cpu in &machine.cpus {
            let w = OnceCell::new();
            for t in [2, 4, 8, 16, 32, 128, 512] {
                let kernel = Kernel {
                    group: "matmul",
                    name: format!("{name}, t = {t}, {}", threads(cpu)),
                    amount: Throughput::Elements((t * SIDE * SIDE / 2) as u64),
                    ceiling: peak.name,
                };
                let x = activations(cpu, t, SIDE);
                let setup = || w.get_or_init(|| weights(cpu, &matrix(format, SIDE / 2, SIDE)));
                table.measure(
                    c,
                    kernel,
                    setup,
                    |_| peak.measure(cpu.threads()),
                    |w| {
                        black_box(cpu.linear(&x, w, None).unwrap());
                    },
                );
            }
        }
    }
}

/// Heads of Llama-3.2-1B.
const HEADS: AttnParams = AttnParams {
    heads: 32,
    kv_heads: 8,
    head_dim: 64,
    v_head_dim: 64,
    scale: 0.125,
    window: None,
    chunk: None,
    softcap: None,
};

/// Keys or values of `len` tokens.
fn kv(cpu: &Cpu, len: usize) -> CpuTensor {
    let mut buffer = cpu.kv_buffer(len, HEADS.k_dim()).unwrap();
    let x = activations(cpu, len, HEADS.k_dim());
    cpu.write_rows(&mut buffer, 0, &x, 0..len).unwrap();
    buffer
}

fn attend(cpu: &Cpu, q: &CpuTensor, [k, v]: &[CpuTensor; 2], len: usize) {
    let layout = KvLayout { len, keep: 0, ring: len };
    let span = AttnSpan { rows: 0..cpu.shape(q)[0], k, v, layout, sink: 0, window: None };
    black_box(cpu.attention(q, &[span], &HEADS, None).unwrap());
}

/// One query against the keys of layers in turn, from memory; and a prompt against itself.
fn attention(c: &mut Criterion, table: &mut Table, machine: &Machine) {
    struct State {
        layers: Vec<[CpuTensor; 2]>,
        memory: Bandwidth,
        turn: usize,
    }
    for cpu in &machine.cpus {
        for len in [1024, 8192] {
            let bytes = 2 * cpu.tensor_bytes(&cpu.kv_buffer(len, HEADS.k_dim()).unwrap());
            let kernel = Kernel {
                group: "attention",
                name: format!("decode, {len} keys, {}", threads(cpu)),
                amount: Throughput::Bytes(bytes as u64),
                ceiling: MEMORY,
            };
            let q = activations(cpu, 1, HEADS.q_dim());
            let setup = || {
                let layers =
                    (0..machine.bytes.div_ceil(bytes)).map(|_| [kv(cpu, len), kv(cpu, len)]).collect();
                State { layers, memory: cpu.bandwidth(machine.bytes).unwrap(), turn: 0 }
            };
            table.measure(
                c,
                kernel,
                setup,
                |s| s.memory.pass(),
                |s| {
                    s.turn = (s.turn + 1) % s.layers.len();
                    attend(cpu, &q, &s.layers[s.turn], len);
                },
            );
        }
        let (len, peak) = (512, machine.peak(Operand::F32));
        // A score and a value for each pair of a query and a key that it sees.
        let macs = 2 * HEADS.q_dim() * len * (len + 1) / 2;
        let kernel = Kernel {
            group: "attention",
            name: format!("prefill {len}, {}", threads(cpu)),
            amount: Throughput::Elements(macs as u64),
            ceiling: peak.name,
        };
        let setup = || (activations(cpu, len, HEADS.q_dim()), [kv(cpu, len), kv(cpu, len)]);
        table.measure(c, kernel, setup, |_| peak.measure(cpu.threads()), |(q, kv)| attend(cpu, q, kv, len));
    }
}

/// What touches each value once: bytes read and written, in a second-level cache.
fn elementwise(c: &mut Criterion, table: &mut Table, machine: &Machine) {
    let Some(cpu) = machine.cpus.first() else { return };
    let (d, memory) = (2048, cpu.bandwidth(256 << 10).unwrap());
    let rope = Rope {
        head_dim: 64,
        inv_freq: (0..32).map(|i| 5e5_f32.powf(-i as f32 / 32.0)).collect(),
        scale: 1.0,
        pairing: Pairing::Halves,
    };
    let (w, vocabulary) = (factors(cpu, d), weights(cpu, &matrix(Format::Q4_0, 1024, d)));
    for t in [1, 16] {
        let mut measure = |name: &str, tensors: usize, call: &mut dyn FnMut(&CpuTensor)| {
            let kernel = Kernel {
                group: "elementwise",
                name: format!("{name}, [{t}, {d}], 1 thread"),
                amount: Throughput::Bytes((tensors * 4 * t * d) as u64),
                ceiling: CACHE,
            };
            table.measure(c, kernel, || activations(cpu, t, d), |_| memory.pass(), |x| call(x));
        };
        measure("rms_norm", 2, &mut |x| drop(black_box(cpu.rms_norm(x, &w, 1e-5).unwrap())));
        measure("layer_norm", 2, &mut |x| drop(black_box(cpu.layer_norm(x, &w, None, 1e-5).unwrap())));
        // In place, on a copy that the call before has left: turning it again changes no magnitude.
        let mut batch = Batch::default();
        batch.reset(t);
        batch.push(0, 0, t);
        let mut turned = None;
        measure("rope", 2, &mut |x| {
            let x = turned.take().unwrap_or_else(|| x.clone());
            turned = Some(cpu.rope(x, &rope, &batch).unwrap());
        });
        // Onto a copy, which is made first: the gate is shared.
        measure("silu gate, with a copy", 5, &mut |x| {
            black_box(cpu.gate(Activation::Silu, x.clone(), x).unwrap());
        });
        let ids: Vec<u32> = (0..t as u32).map(|i| i * 61 % 1024).collect();
        measure("embed Q4_0", 1, &mut |_| drop(black_box(cpu.embed(&vocabulary, Ids::Host(&ids)).unwrap())));
    }
}

/// Putting stored matrices in the order of the kernels: bytes as stored.
fn pack(c: &mut Criterion, table: &mut Table, machine: &Machine) {
    let rows = if machine.measures { SIDE } else { ENCODED };
    for (name, format) in formats() {
        if name.starts_with("affine") && !name.ends_with(":64") {
            continue;
        }
        for cpu in &machine.cpus {
            let bytes: usize = format.row_bytes(SIDE).unwrap().iter().sum();
            let kernel = Kernel {
                group: "pack",
                name: format!("{name}, {}", threads(cpu)),
                amount: Throughput::Bytes((bytes * rows) as u64),
                ceiling: MEMORY,
            };
            let setup = || (matrix(format, rows, SIDE), cpu.bandwidth(bytes * rows).unwrap());
            table.measure(
                c,
                kernel,
                setup,
                |(_, memory)| memory.pass(),
                |(raw, _)| {
                    black_box(weights(cpu, raw));
                },
            );
        }
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let (mut table, machine) = (Table::default(), Machine::new());
    for measure in [matvec, matmul, attention, elementwise, pack] {
        measure(&mut criterion, &mut table, &machine);
    }
    criterion.final_summary();
    if machine.measures {
        let all = machine.cpus.last().map_or(1, Cpu::threads);
        println!("\nkernels {}, all threads = {all}, rates at the median", machine.kernels);
        table.print();
    }
}
