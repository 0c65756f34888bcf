//! Matrices that other libraries quantized (AWQ, GPTQ, FP8, compressed-tensors, BitNet, ModelOpt), as this library's
//! formats, by the layouts that these libraries document. Knows tensors by their parts, not files.
//!
//! Integers become affine groups with the same codes. What has no such form (groups that are scattered over columns,
//! floats of 8 bits under arbitrary scales) becomes plain values: bf16 if that is exact, else f16 if they are in its range.

use std::borrow::Cow;
use std::ops::Range;

use half::{bf16, f16};
use rillm_quant::{FloatType, Format, RawTensor, e4m3_to_f32, e8m0_to_f32, pack_codes};
use serde_json::{Map, Value};

use crate::{Error, Result};

/// How another library quantized a checkpoint: its `quantization_config`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Foreign {
    /// 4 bits, nibbles of a word in the order of columns 0, 2, 4, 6, 1, 3, 5, 7.
    Awq,
    /// So many bits; zero points are stored less `offset`.
    Gptq { bits: u32, offset: u32 },
    /// What the parts of a matrix say: E4M3, packed integers, E2M1. Rows and columns that share a scale, if known.
    Parts { block: Option<[usize; 2]> },
    /// Ternary; results are divided by the scale, or multiplied.
    BitNet { divides: bool },
}

/// A stored tensor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part<'a> {
    /// As safetensors names it.
    pub dtype: &'a str,
    pub shape: &'a [usize],
    pub bytes: &'a [u8],
}

/// Parts of quantized matrices beside the one that has the codes.
const BESIDE: [&str; 16] = [
    "qzeros",
    "scales",
    "g_idx",
    "weight_scale",
    "weight_zero_point",
    "weight_shape",
    "weight_g_idx",
    "weight_global_scale",
    "weight_scale_inv",
    "weight_scale_2",
    "input_scale",
    "input_global_scale",
    "input_zero_point",
    "activation_scale",
    "k_scale",
    "v_scale",
];
/// Parts with the codes, where that is not `weight`.
const CODES: [&str; 2] = ["qweight", "weight_packed"];

impl Foreign {
    /// What `quant_method` and its companions say.
    ///
    /// # Errors
    /// [`Error::QuantizationMethod`] for what is not known.
    pub(super) fn of(method: &str, map: &Map<String, Value>) -> Result<Self> {
        let text = |key: &str| map.get(key).and_then(Value::as_str);
        let unknown = |what: String| Err(Error::QuantizationMethod { method: what });
        let bits = map.get("bits").or_else(|| map.get("w_bit")).and_then(Value::as_u64);
        match method {
            "awq" if bits.is_none_or(|b| b == 4) => match text("version").map(str::to_lowercase).as_deref() {
                None | Some("gemm") => Ok(Self::Awq),
                Some(version) => unknown(format!("awq {version}")),
            },
            "gptq" => match (bits.unwrap_or(4), text("checkpoint_format").unwrap_or("gptq")) {
                (bits @ (2 | 3 | 4 | 8), "gptq") => Ok(Self::Gptq { bits: bits as u32, offset: 1 }),
                (bits @ (2 | 3 | 4 | 8), "gptq_v2") => Ok(Self::Gptq { bits: bits as u32, offset: 0 }),
                (bits, format) => unknown(format!("{format} of {bits} bits")),
            },
            "fp8" | "fbgemm_fp8" | "modelopt" => {
                Ok(Self::Parts { block: block(map.get("weight_block_size")) })
            }
            "compressed-tensors" => {
                let sparsity =
                    map.get("sparsity_config").and_then(|s| s.get("format")).and_then(Value::as_str);
                match (text("format"), sparsity) {
                    (_, Some(sparse)) if sparse != "dense" => unknown(format!("{method}: {sparse}")),
                    (
                        None
                        | Some(
                            "pack-quantized"
                            | "int-quantized"
                            | "float-quantized"
                            | "naive-quantized"
                            | "dense"
                            | "nvfp4-pack-quantized"
                            | "mxfp4-pack-quantized"
                            | "mixed-precision",
                        ),
                        _,
                    ) => {
                        let groups = map.get("config_groups").and_then(Value::as_object);
                        let weights = groups.and_then(|g| g.values().next()).and_then(|g| g.get("weights"));
                        let size = block(weights.and_then(|w| w.get("block_structure")));
                        Ok(Self::Parts { block: size })
                    }
                    (Some(format), _) => unknown(format!("{method}: {format}")),
                }
            }
            "bitnet" => {
                let norm = map.get("use_rms_norm").and_then(Value::as_bool).unwrap_or(false);
                match (text("quantization_mode").unwrap_or("offline"), norm) {
                    ("offline", false) => {
                        Ok(Self::BitNet { divides: text("linear_class") != Some("autobitlinear") })
                    }
                    (mode, norm) => unknown(format!("{method}: {mode}, use_rms_norm {norm}")),
                }
            }
            _ => unknown(if bits.is_some() {
                format!("{method} of {} bits", bits.unwrap_or(0))
            } else {
                method.to_owned()
            }),
        }
    }

    /// The parameter that stored name `name` counts as; `None` if it is only a part of one.
    pub(super) fn whole(name: &str) -> Option<String> {
        let Some((path, part)) = name.rsplit_once('.') else { return Some(name.to_owned()) };
        if CODES.contains(&part) {
            return Some(format!("{path}.weight"));
        }
        (!BESIDE.contains(&part)).then(|| name.to_owned())
    }

    /// The matrix of module `path`, `[out, in]`, from its parts; `None` if it is not quantized.
    ///
    /// # Errors
    /// [`Error::ForeignQuantization`] for parts that do not fit each other.
    pub(super) fn read<'a>(
        self,
        path: &str,
        part: &dyn Fn(&str) -> Option<Part<'a>>,
    ) -> Result<Option<RawTensor<'a>>> {
        let parts = Parts { path, part };
        match self {
            Self::Awq => parts.awq(),
            Self::Gptq { bits, offset } => parts.gptq(bits, offset),
            Self::Parts { block } => parts.by_type(block),
            Self::BitNet { divides } => parts.ternary(divides),
        }
    }
}

/// The parts of one matrix.
struct Parts<'p, 'a> {
    path: &'p str,
    part: &'p dyn Fn(&str) -> Option<Part<'a>>,
}

impl<'a> Part<'a> {
    fn dims(&self) -> Option<[usize; 2]> {
        <[usize; 2]>::try_from(self.shape).ok()
    }

    /// Word `i`, which is there.
    fn word(&self, i: usize) -> u32 {
        let at = &self.bytes[4 * i..];
        u32::from_le_bytes([at[0], at[1], at[2], at[3]])
    }

    /// Value `i` of `bits` bits in a stream of words that are `stride` apart from word `first` on.
    fn bits(&self, [first, stride]: [usize; 2], bits: u32, i: usize) -> u8 {
        let at = i * bits as usize;
        let (word, shift) = (at / 32, (at % 32) as u32);
        let mut value = self.word(first + word * stride) >> shift;
        if shift + bits > 32 {
            value |= self.word(first + (word + 1) * stride) << (32 - shift);
        }
        (value & ((1 << bits) - 1)) as u8
    }

    /// All values, if they are numbers.
    fn numbers(&self) -> Option<Vec<f32>> {
        let pairs = || self.bytes.as_chunks::<2>().0.iter();
        Some(match self.dtype {
            "F32" => self.bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            "F16" => pairs().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            "BF16" => pairs().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
            "F8_E4M3" => self.bytes.iter().map(|b| e4m3_to_f32(*b)).collect(),
            "F8_E8M0" | "U8" => self.bytes.iter().map(|b| e8m0_to_f32(*b)).collect(),
            _ => return None,
        })
    }
}

/// A matrix of integers: `scale * (code - zero)`.
struct Integers<'c> {
    dims: [usize; 2],
    bits: u32,
    /// Columns of a group.
    group: usize,
    /// `[out, groups]`.
    scales: Vec<f32>,
    zeros: Vec<f32>,
    /// Writes the codes of some rows, `[rows, in]`.
    codes: &'c dyn Fn(Range<usize>, &mut [u8]),
}

/// Rows that are taken at a time: those of a line of cache.
const ROWS: usize = 16;

impl<'a> Parts<'_, 'a> {
    fn get(&self, name: &str) -> Option<Part<'a>> {
        (self.part)(name)
    }

    fn wrong(&self, what: impl Into<String>) -> Error {
        Error::ForeignQuantization { name: self.path.to_owned(), what: what.into() }
    }

    fn need(&self, name: &str) -> Result<Part<'a>> {
        self.get(name).ok_or_else(|| Error::MissingWeight { name: format!("{}.{name}", self.path) })
    }

    /// Part `name` of shape `want` and type `dtype`.
    fn shaped(&self, name: &str, dtype: &str, want: &[usize]) -> Result<Part<'a>> {
        let part = self.need(name)?;
        if part.dtype != dtype || part.shape != want {
            return Err(
                self.wrong(format!("{name} is {} {:?}, wanted {dtype} {want:?}", part.dtype, part.shape))
            );
        }
        Ok(part)
    }

    fn numbers(&self, name: &str) -> Result<(Part<'a>, Vec<f32>)> {
        let part = self.need(name)?;
        let values = part.numbers().ok_or_else(|| self.wrong(format!("{name} is {}", part.dtype)))?;
        Ok((part, values))
    }

    fn awq(&self) -> Result<Option<RawTensor<'a>>> {
        let Some(words) = self.get("qweight") else { return Ok(None) };
        let Some([inp, packed]) = words.dims().filter(|_| words.dtype == "I32") else {
            return Err(self.wrong("qweight is no matrix of words"));
        };
        let out = packed.saturating_mul(8);
        let (scales, values) = self.numbers("scales")?;
        let groups = scales.shape.first().copied().unwrap_or(0);
        let group = self.group(inp, groups)?;
        if scales.shape != [groups, out] {
            return Err(self.wrong(format!("scales of shape {:?}, wanted [{groups}, {out}]", scales.shape)));
        }
        let zeros =
            self.get("qzeros").map(|_| self.shaped("qzeros", "I32", &[groups, packed])).transpose()?;
        // Column `j` of 8 is the nibble at `ORDER[j]`.
        const ORDER: [u32; 8] = [0, 4, 1, 5, 2, 6, 3, 7];
        let nibble = |part: &Part<'_>, row: usize, o: usize| {
            (part.word(row * packed + o / 8) >> (4 * ORDER[o % 8]) & 15) as u8
        };
        let codes = |rows: Range<usize>, to: &mut [u8]| {
            for i in 0..inp {
                for (r, o) in rows.clone().enumerate() {
                    to[r * inp + i] = nibble(&words, i, o);
                }
            }
        };
        let each = |f: &dyn Fn(usize, usize) -> f32| -> Vec<f32> {
            (0..out * groups).map(|n| f(n / groups, n % groups)).collect()
        };
        let zero = |o: usize, g: usize| zeros.as_ref().map_or(8.0, |z| f32::from(nibble(z, g, o)));
        let scales = each(&|o, g| values[g * out + o]);
        self.integers(Integers {
            dims: [out, inp],
            bits: 4,
            group,
            scales,
            zeros: each(&zero),
            codes: &codes,
        })
    }

    fn gptq(&self, bits: u32, offset: u32) -> Result<Option<RawTensor<'a>>> {
        let Some(words) = self.get("qweight") else { return Ok(None) };
        let Some([packed, out]) = words.dims().filter(|_| words.dtype == "I32") else {
            return Err(self.wrong("qweight is no matrix of words"));
        };
        let inp = packed.saturating_mul(32) / bits as usize;
        let (scales, values) = self.numbers("scales")?;
        let groups = scales.shape.first().copied().unwrap_or(0);
        if scales.shape != [groups, out]
            || !inp.is_multiple_of(32)
            || !(out * bits as usize).is_multiple_of(32)
        {
            return Err(self.wrong(format!("scales of shape {:?}, wanted [groups, {out}]", scales.shape)));
        }
        let row = out * bits as usize / 32;
        let zeros = self.shaped("qzeros", "I32", &[groups, row])?;
        let codes = |rows: Range<usize>, to: &mut [u8]| {
            for i in 0..inp {
                for (r, o) in rows.clone().enumerate() {
                    to[r * inp + i] = words.bits([o, out], bits, i);
                }
            }
        };
        let each = |f: &dyn Fn(usize, usize) -> f32| -> Vec<f32> {
            (0..out * groups).map(|n| f(n / groups, n % groups)).collect()
        };
        let zero = |o: usize, g: usize| f32::from(zeros.bits([g * row, 1], bits, o)) + offset as f32;
        let (scales, zeros) = (each(&|o, g| values[g * out + o]), each(&zero));
        let group = self.group(inp, groups)?;
        let integers = Integers { dims: [out, inp], bits, group, scales, zeros, codes: &codes };
        match self.scattered("g_idx", inp, groups, group)? {
            Some(of) => self.scattered_integers(&integers, &of),
            None => self.integers(integers),
        }
    }

    /// Columns of a group, if `groups` of them make `inp`.
    fn group(&self, inp: usize, groups: usize) -> Result<usize> {
        match inp.checked_div(groups) {
            Some(group) if group * groups == inp && group > 0 => Ok(group),
            _ => Err(self.wrong(format!("{groups} groups of {inp} columns"))),
        }
    }

    /// The group of each column, unless groups are consecutive columns.
    fn scattered(&self, name: &str, inp: usize, groups: usize, group: usize) -> Result<Option<Vec<usize>>> {
        let Some(part) = self.get(name) else { return Ok(None) };
        if part.dtype != "I32" || part.shape != [inp] {
            return Err(self.wrong(format!("{name} is {} {:?}, wanted I32 [{inp}]", part.dtype, part.shape)));
        }
        let of: Vec<usize> = (0..inp).map(|i| part.word(i) as usize).collect();
        // compressed-tensors writes -1 where there is no order.
        if of.iter().all(|g| *g == u32::MAX as usize) || of.iter().enumerate().all(|(i, g)| *g == i / group) {
            return Ok(None);
        }
        match of.iter().find(|g| **g >= groups) {
            Some(g) => Err(self.wrong(format!("{name} has group {g} of {groups}"))),
            None => Ok(Some(of)),
        }
    }

    /// As affine groups, cut into those that these can have; as plain values where they can't.
    fn integers(&self, m: Integers<'_>) -> Result<Option<RawTensor<'a>>> {
        let ([out, inp], groups) = (m.dims, m.scales.len() / m.dims[0].max(1));
        let Some(size) = [128, 64, 32].into_iter().find(|size| m.group.is_multiple_of(*size)) else {
            let of: Vec<usize> = (0..inp).map(|i| i / m.group).collect();
            return self.scattered_integers(&m, &of);
        };
        let mut stream = Vec::with_capacity(out * inp / 8 * m.bits as usize);
        let mut codes = vec![0; ROWS * inp];
        for first in (0..out).step_by(ROWS) {
            let rows = first..out.min(first + ROWS);
            let codes = &mut codes[..rows.len() * inp];
            (m.codes)(rows, codes);
            codes.chunks_exact(inp).for_each(|row| pack_codes(m.bits, row, &mut stream));
        }
        let biases: Vec<f32> = m.scales.iter().zip(&m.zeros).map(|(s, z)| -(s * z)).collect();
        let meta = narrowest([&m.scales, &biases]);
        let repeated = |values: &[f32]| {
            let times = m.group / size;
            let all = values.chunks(groups.max(1)).flat_map(|row| row.iter());
            stored(all.flat_map(|x| std::iter::repeat_n(*x, times)), meta)
        };
        let format = Format::Affine { bits: m.bits, group: size, meta };
        let parts = [stream, repeated(&m.scales), repeated(&biases)].map(Cow::Owned);
        self.tensor(format, vec![out, inp], parts)
    }

    /// As plain values, column `i` of group `of[i]`.
    fn scattered_integers(&self, m: &Integers<'_>, of: &[usize]) -> Result<Option<RawTensor<'a>>> {
        let ([out, inp], groups) = (m.dims, m.scales.len() / m.dims[0].max(1));
        let (mut values, mut codes) = (Vec::with_capacity(out * inp), vec![0; ROWS * inp]);
        for first in (0..out).step_by(ROWS) {
            let rows = first..out.min(first + ROWS);
            let codes = &mut codes[..rows.len() * inp];
            (m.codes)(rows.clone(), codes);
            for (o, row) in rows.zip(codes.chunks_exact(inp)) {
                let group = |i: usize| o * groups + of[i];
                values.extend((0..inp).map(|i| m.scales[group(i)] * (f32::from(row[i]) - m.zeros[group(i)])));
            }
        }
        self.plain(vec![out, inp], &values)
    }

    /// What types and names say: packed words, E2M1 in bytes, E4M3, signed bytes.
    fn by_type(&self, block: Option<[usize; 2]>) -> Result<Option<RawTensor<'a>>> {
        if let Some(packed) = self.get("weight_packed") {
            return match packed.dtype {
                "I32" => self.packed(packed),
                "U8" => self.nibbles(packed, "weight_global_scale"),
                other => Err(self.wrong(format!("weight_packed is {other}"))),
            };
        }
        let Some(weight) = self.get("weight") else { return Ok(None) };
        match weight.dtype {
            "U8" if self.get("weight_scale").is_some() => self.nibbles(weight, "weight_scale_2"),
            "F8_E4M3" => self.floats(weight, block),
            "I8" => self.bytes(weight),
            _ => Ok(None),
        }
    }

    /// Words along the columns, codes with half their range added (compressed-tensors).
    fn packed(&self, packed: Part<'a>) -> Result<Option<RawTensor<'a>>> {
        let shape = self.need("weight_shape")?;
        let sizes: Vec<usize> = match shape.dtype {
            "I64" => shape
                .bytes
                .as_chunks::<8>()
                .0
                .iter()
                .map(|b| i64::from_le_bytes(*b).max(0) as usize)
                .collect(),
            _ => (0..shape.bytes.len() / 4).map(|i| shape.word(i) as usize).collect(),
        };
        let (Some([out, words]), &[rows, inp]) = (packed.dims(), &sizes[..]) else {
            return Err(self.wrong("weight_packed is no matrix"));
        };
        let bits = [4usize, 8, 2].into_iter().find(|bits| inp.checked_mul(*bits) == words.checked_mul(32));
        let Some(bits) = bits.filter(|_| rows == out && inp > 0) else {
            return Err(self.wrong(format!("{words} words for rows of {inp}")));
        };
        let (scale, scales) = self.numbers("weight_scale")?;
        let groups = scale.shape.get(1).copied().unwrap_or(1);
        let group = self.group(inp, groups)?;
        if scales.len() != out * groups {
            return Err(self.wrong(format!("scales of shape {:?}, wanted [{out}, {groups}]", scale.shape)));
        }
        let per_word = 32 / bits;
        let zeros = match self.get("weight_zero_point") {
            None => vec![(1 << (bits - 1)) as f32; out * groups],
            Some(_) => {
                let part = self.shaped("weight_zero_point", "I32", &[out.div_ceil(per_word), groups])?;
                let zero = |n: usize| {
                    let (o, g) = (n / groups, n % groups);
                    part.word(o / per_word * groups + g) >> (bits * (o % per_word)) & ((1 << bits) - 1)
                };
                (0..out * groups).map(|n| zero(n) as f32).collect()
            }
        };
        let codes = |rows: Range<usize>, to: &mut [u8]| {
            for (to, o) in to.chunks_exact_mut(inp).zip(rows) {
                to.iter_mut()
                    .enumerate()
                    .for_each(|(i, to)| *to = packed.bits([o * words, 1], bits as u32, i));
            }
        };
        let integers = Integers { dims: [out, inp], bits: bits as u32, group, scales, zeros, codes: &codes };
        match self.scattered("weight_g_idx", inp, groups, group)? {
            Some(of) => self.scattered_integers(&integers, &of),
            None => self.integers(integers),
        }
    }

    /// E2M1, two to a byte, under scales of E4M3 for each 16 and one of all, or of E8M0 for each 32. `global` divides
    /// as `weight_global_scale` (compressed-tensors) and multiplies as `weight_scale_2` (ModelOpt).
    fn nibbles(&self, codes: Part<'a>, global: &str) -> Result<Option<RawTensor<'a>>> {
        let (scale, Some([out, half])) = (self.need("weight_scale")?, codes.dims()) else {
            return Err(self.wrong("E2M1 codes are no matrix"));
        };
        let inp = half.saturating_mul(2);
        let (format, group) = match scale.dtype {
            "F8_E4M3" => (Format::NvFp4, 16),
            "U8" | "F8_E8M0" => (Format::MxFp4, 32),
            other => return Err(self.wrong(format!("weight_scale is {other}"))),
        };
        if scale.shape != [out, inp / group] {
            return Err(self.wrong(format!("weight_scale of shape {:?} for {out} x {inp}", scale.shape)));
        }
        let parts = [Cow::Borrowed(codes.bytes), Cow::Borrowed(scale.bytes), Cow::Borrowed(&[][..])];
        let mut tensor = self.tensor(format, vec![out, inp], parts)?;
        if let (Some(tensor), Format::NvFp4) = (&mut tensor, format) {
            let (_, values) = self.numbers(global)?;
            let [of_all] = values[..] else { return Err(self.wrong(format!("{global} is not one number"))) };
            tensor.factor = if global == "weight_scale_2" { of_all } else { 1.0 / of_all };
        }
        Ok(tensor)
    }

    /// E4M3 under one scale, one for each row, or one for each block.
    fn floats(&self, codes: Part<'a>, block: Option<[usize; 2]>) -> Result<Option<RawTensor<'a>>> {
        let name = if self.get("weight_scale_inv").is_some() { "weight_scale_inv" } else { "weight_scale" };
        let (scale, scales) = self.numbers(name)?;
        let Some([out, inp]) = codes.dims() else { return Err(self.wrong("E4M3 codes are no matrix")) };
        let [rows, cols] = match *scale.shape {
            [] | [1] => [1, 1],
            [rows] if rows == out => [rows, 1],
            [rows, cols] => [rows, cols],
            _ => return Err(self.wrong(format!("{name} of shape {:?} for {out} x {inp}", scale.shape))),
        };
        let [high, wide] = block.map_or([None; 2], |b| b.map(Some));
        let blocks = sizes(out, rows, high).zip(sizes(inp, cols, wide));
        let Some((height, width)) = blocks else {
            return Err(self.wrong(format!("{name} of shape {:?} for {out} x {inp}", scale.shape)));
        };
        let value =
            |n: usize| e4m3_to_f32(codes.bytes[n]) * scales[n / inp / height * cols + n % inp / width];
        self.plain(vec![out, inp], &(0..out * inp).map(value).collect::<Vec<_>>())
    }

    /// Signed bytes under a scale for each row, or one.
    fn bytes(&self, codes: Part<'a>) -> Result<Option<RawTensor<'a>>> {
        let (scale, scales) = self.numbers("weight_scale")?;
        let Some([out, inp]) = codes.dims() else { return Err(self.wrong("codes are no matrix")) };
        let groups = scale.shape.get(1).copied().unwrap_or(1);
        let scales = if scales.len() == 1 { vec![scales[0]; out] } else { scales };
        if scales.len() != out * groups || self.get("weight_zero_point").is_some() {
            return Err(self.wrong(format!("weight_scale of shape {:?} for {out} x {inp}", scale.shape)));
        }
        let zeros = vec![128.0; scales.len()];
        let of = |rows: Range<usize>, to: &mut [u8]| {
            let from = &codes.bytes[rows.start * inp..];
            to.iter_mut().zip(from).for_each(|(to, code)| *to = code ^ 0x80);
        };
        let group = self.group(inp, groups)?;
        self.integers(Integers { dims: [out, inp], bits: 8, group, scales, zeros, codes: &of })
    }

    /// Four rows to a byte, a quarter of the rows apart; codes are the value plus 1 (BitNet).
    fn ternary(&self, divides: bool) -> Result<Option<RawTensor<'a>>> {
        let (Some(codes), true) = (self.get("weight"), self.get("weight_scale").is_some()) else {
            return Ok(None);
        };
        let (_, scales) = self.numbers("weight_scale")?;
        let dims = codes.dims().filter(|[_, inp]| *inp > 0);
        let (Some([packed, inp]), "U8", [scale]) = (dims, codes.dtype, &scales[..]) else {
            return Err(self.wrong("ternary codes are no matrix of bytes with one scale"));
        };
        let scale = if divides { 1.0 / scale } else { *scale };
        let out = packed.saturating_mul(4);
        let of = |rows: Range<usize>, to: &mut [u8]| {
            for (to, o) in to.chunks_exact_mut(inp).zip(rows) {
                let from = &codes.bytes[o % packed * inp..][..inp];
                to.iter_mut().zip(from).for_each(|(to, b)| *to = b >> (2 * (o / packed)) & 3);
            }
        };
        let integers = Integers {
            dims: [out, inp],
            bits: 2,
            group: inp,
            scales: vec![scale; out],
            zeros: vec![1.0; out],
            codes: &of,
        };
        self.integers(integers)
    }

    fn plain(&self, shape: Vec<usize>, values: &[f32]) -> Result<Option<RawTensor<'a>>> {
        let t = match narrowest([values, &[]]) {
            // Its error is a sixteenth of that of bf16.
            FloatType::F32 if values.iter().all(|x| x.abs() <= f16::MAX.to_f32()) => FloatType::F16,
            t => t,
        };
        let parts =
            [stored(values.iter().copied(), t).into(), Cow::Borrowed(&[][..]), Cow::Borrowed(&[][..])];
        self.tensor(Format::Float(t), shape, parts)
    }

    fn tensor(
        &self,
        format: Format,
        shape: Vec<usize>,
        parts: [Cow<'a, [u8]>; 3],
    ) -> Result<Option<RawTensor<'a>>> {
        let quant = |source| Error::Quant { name: format!("{}.weight", self.path), source };
        RawTensor::new(format, shape, parts).map(Some).map_err(quant)
    }
}

/// Rows or columns of a block, `known` perhaps, if `count` blocks cover `n` and only the last may be cut off: a power of
/// two where they do not divide it.
fn sizes(n: usize, count: usize, known: Option<usize>) -> Option<usize> {
    if count == 0 || n == 0 {
        return None;
    }
    if let Some(size) = known.filter(|size| n.div_ceil(*size) == count) {
        return Some(size);
    }
    if n.is_multiple_of(count) && (count == 1 || count == n || (n / count).is_power_of_two()) {
        return Some(n / count);
    }
    let size = n.div_ceil(count).next_power_of_two();
    (n.div_ceil(size) == count).then_some(size)
}

/// `[rows, columns]` of a block.
fn block(value: Option<&Value>) -> Option<[usize; 2]> {
    let sizes: Vec<usize> = value?.as_array()?.iter().filter_map(|v| Some(v.as_u64()? as usize)).collect();
    <[usize; 2]>::try_from(sizes).ok().filter(|sizes| !sizes.contains(&0))
}

/// The narrowest type that holds all of `values` exactly.
fn narrowest(values: [&[f32]; 2]) -> FloatType {
    let all = |exact: fn(f32) -> f32| values.iter().all(|v| v.iter().all(|x| exact(*x) == *x));
    if all(|x| bf16::from_f32(x).to_f32()) {
        FloatType::BF16
    } else if all(|x| f16::from_f32(x).to_f32()) {
        FloatType::F16
    } else {
        FloatType::F32
    }
}

/// `values` as bytes of type `t`.
fn stored(values: impl Iterator<Item = f32>, t: FloatType) -> Vec<u8> {
    match t {
        FloatType::F32 => values.flat_map(f32::to_le_bytes).collect(),
        FloatType::F16 => values.flat_map(|x| f16::from_f32(x).to_le_bytes()).collect(),
        FloatType::BF16 => values.flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect(),
    }
}
