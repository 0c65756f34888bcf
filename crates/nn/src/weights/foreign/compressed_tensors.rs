//! compressed-tensors, the format of LLM Compressor: integers of 1 to 8 bits packed into words (`pack-quantized`), int8
//! (`int-quantized`), fp8 (`float-quantized`), nvfp4, mxfp4 and mxfp8.
//!
//! A configuration maps groups of modules to schemes by names, classes and regular expressions. The tensors of a matrix
//! tell its scheme as well; it must be one of those.

use std::borrow::Cow;
use std::fmt;

use rillm_quant::{FloatType, RawTensor};

use super::super::safetensors::Dtype;
use super::fp8::Grid;
use super::grouped::{Grouped, Groups, Zeros, code_at, transposed_words};
use super::module::{Module, Part, WORDS};
use super::options::Options;
use super::{fp4, fp8, gptq};
use crate::{Error, Result};

/// What may lie beside the codes: scales of weights and of activations.
pub(super) const PARTS: &[&str] = &[
    "weight_scale",
    "weight_zero_point",
    "weight_global_scale",
    "weight_shape",
    "weight_g_idx",
    "input_scale",
    "input_zero_point",
    "input_global_scale",
    "output_scale",
    "output_zero_point",
];

/// Layouts of files that are read.
const FORMATS: [&str; 9] = [
    "dense",
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "mxfp8-quantized",
    "mixed-precision",
];
const FORMAT: &str =
    "dense, pack-, int-, float-, naive-quantized, nvfp4- or mxfp4-pack-quantized or mxfp8-quantized";

#[derive(Clone, Debug, PartialEq)]
pub(in crate::weights) struct CompressedTensors {
    schemes: Vec<Scheme>,
}

/// How weights of a group of modules are quantized.
#[derive(Clone, Debug, PartialEq)]
struct Scheme {
    bits: u32,
    kind: Kind,
    symmetric: bool,
    spread: Spread,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Int,
    Float,
}

/// What shares a scale.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Spread {
    Tensor,
    Row,
    Group(usize),
    Block([usize; 2]),
}

impl CompressedTensors {
    pub(super) fn from_config(options: &Options<'_>) -> Result<Self> {
        let inner = options.object("quantization_config")?;
        let options = inner.as_ref().unwrap_or(options);
        options.one_of("format", "dense", &FORMATS, FORMAT)?;
        options.texts("ignore")?;
        if let Some(transforms) = options.object("transform_config")? {
            transforms.refuse("config_groups")?;
        }
        if let Some(sparsity) = options.object("sparsity_config")? {
            sparsity.one_of("format", "dense", &["dense"], "dense")?;
        }
        let mut schemes = Vec::new();
        if let Some(groups) = options.object("config_groups")? {
            for name in groups.keys() {
                let Some(group) = groups.object(name)? else { continue };
                group.one_of("format", "dense", &FORMATS, FORMAT)?;
                if let Some(weights) = group.object("weights")? {
                    schemes.push(Scheme::from_config(&weights)?);
                }
            }
        }
        Ok(Self { schemes })
    }

    pub(super) fn matrix<'a>(&self, module: &Module<'a>) -> Result<Option<RawTensor<'a>>> {
        if let Some(codes) = module.get("weight_packed") {
            let codes = codes.typed(&[Dtype::I32, Dtype::U8])?;
            return match codes.dtype() {
                Dtype::U8 => self.fp4(module, &codes),
                _ => self.packed(module, &codes),
            }
            .map(Some);
        }
        let Some(weight) = module.get("weight") else { return Ok(None) };
        match (weight.dtype(), module.has("weight_scale")) {
            (Dtype::I8, _) => self.int8(module, &weight).map(Some),
            (Dtype::E4M3, _) => {
                let (scale, shape) = (module.need("weight_scale")?, weight.matrix()?);
                let fits = |s: &Scheme| s.kind == Kind::Float && s.bits == 8 && s.grid(&scale, shape).is_ok();
                let scheme = self.scheme(fits, &weight, &scale, None)?;
                fp8::matrix(&weight, &scale, Some(scheme.block(shape))).map(Some)
            }
            // Weights that were rounded to what codes can say, but not compressed.
            (_, true) => weight.typed(&[Dtype::I8, Dtype::E4M3]).map(|_| None),
            _ => Ok(None),
        }
    }

    /// The scheme that fits the tensors of a matrix.
    fn scheme(
        &self,
        fits: impl Fn(&Scheme) -> bool,
        codes: &Part<'_>,
        scale: &Part<'_>,
        zeros: Option<&Part<'_>>,
    ) -> Result<&Scheme> {
        self.schemes.iter().find(|s| fits(s)).ok_or_else(|| {
            let all: Vec<_> = self.schemes.iter().map(ToString::to_string).collect();
            Error::QuantizationShape {
                name: codes.name.clone(),
                codes: codes.shape().to_vec(),
                scales: scale.shape().to_vec(),
                biases: zeros.map(|z| z.shape().to_vec()),
                wanted: format!("matrix of config_groups ({})", all.join("; ")).into(),
            }
        })
    }

    fn fp4<'a>(&self, module: &Module<'a>, codes: &Part<'a>) -> Result<RawTensor<'a>> {
        let scale = module.need("weight_scale")?;
        let fits = |s: &Scheme| s.kind == Kind::Float && s.bits == 4 && s.symmetric;
        self.scheme(fits, codes, &scale, None)?;
        match (scale.dtype(), module.get("weight_global_scale")) {
            // The global scale divides.
            (Dtype::E4M3, global) => fp4::nvfp4(codes, scale, global.map_or(Ok(1.0), |g| g.divisor())?),
            _ => fp4::mxfp4(codes, scale),
        }
    }

    fn int8<'a>(&self, module: &Module<'a>, codes: &Part<'a>) -> Result<RawTensor<'a>> {
        let (shape, scale) = (codes.matrix()?, module.need("weight_scale")?);
        let zeros = zero_point(module);
        let fits =
            |s: &Scheme| s.kind == Kind::Int && s.agrees(zeros.as_ref()) && s.grid(&scale, shape).is_ok();
        let scheme = self.scheme(fits, codes, &scale, zeros.as_ref())?;
        let layout = Layout { shape, bits: 8, grid: scheme.grid(&scale, shape)? };
        // From -128..128 to 0..256.
        let shifted = codes.bytes().iter().map(|b| b ^ 0x80).collect();
        layout.tensor(module, &scale, Cow::Owned(shifted), zeros)
    }

    /// Codes of a row in a little-endian bit stream over its words.
    fn packed<'a>(&self, module: &Module<'a>, codes: &Part<'a>) -> Result<RawTensor<'a>> {
        let ([rows, words], scale) = (codes.matrix()?, module.need("weight_scale")?);
        let zeros = zero_point(module);
        let stored = stored_cols(module, rows)?;
        let cols = |s: &Scheme| {
            let cols = stored.or(words.checked_mul(32).map(|n| n / s.bits as usize))?;
            (cols.checked_mul(s.bits as usize)?.div_ceil(32) == words).then_some(cols).filter(|n| *n > 0)
        };
        let fits = |s: &Scheme| {
            let grid = cols(s).map(|cols| s.grid(&scale, [rows, cols]));
            s.kind == Kind::Int && s.agrees(zeros.as_ref()) && grid.is_some_and(|g| g.is_ok())
        };
        let scheme = self.scheme(fits, codes, &scale, zeros.as_ref())?;
        let shape = [rows, cols(scheme).unwrap_or(0)];
        let layout = Layout { shape, bits: scheme.bits, grid: scheme.grid(&scale, shape)? };
        layout.tensor(module, &scale, Cow::Borrowed(codes.bytes()), zeros)
    }
}

/// Zero points, unless there are none or all are 0.
fn zero_point<'a>(module: &Module<'a>) -> Option<Part<'a>> {
    let zeros = module.get("weight_zero_point")?;
    // Packed ones have an offset, so that none of them is 0 in all bits.
    (*zeros.dtype() != Dtype::I8 || zeros.bytes().iter().any(|b| *b != 0)).then_some(zeros)
}

/// The columns that `weight_shape` has, if it is there.
fn stored_cols(module: &Module<'_>, rows: usize) -> Result<Option<usize>> {
    let Some(part) = module.get("weight_shape") else { return Ok(None) };
    let shape = part.integers()?;
    match shape[..] {
        [r, cols] if usize::try_from(r) == Ok(rows) && cols > 0 => Ok(usize::try_from(cols).ok()),
        _ => Err(part.wrong_value(format!("{rows} rows and some columns"), format!("{shape:?}"))),
    }
}

/// Where scales and zero points of an integer matrix are.
struct Layout {
    shape: [usize; 2],
    bits: u32,
    grid: Grid,
}

impl Layout {
    fn tensor<'a>(
        &self,
        module: &Module<'a>,
        scale: &Part<'_>,
        codes: Cow<'a, [u8]>,
        zeros: Option<Part<'_>>,
    ) -> Result<RawTensor<'a>> {
        let [rows, cols] = self.shape;
        let scales = scale.scales()?;
        let offset = (1u32 << (self.bits - 1)) as f32;
        let listed = module.get("weight_g_idx");
        let grouped = Grouped {
            rows,
            cols,
            bits: self.bits,
            codes,
            groups: match listed {
                // -1 everywhere: never set.
                Some(list) if !list.integers()?.contains(&-1) => gptq::groups(&list, cols, self.grid.across)?,
                _ => Groups::Runs(self.grid.block[1]),
            },
            scales: (0..rows).flat_map(|row| self.grid.row(&scales, row)).copied().collect(),
            zeros: match zeros {
                None => Zeros::Same(offset),
                Some(zeros) if *zeros.dtype() == Dtype::I8 => {
                    let zeros = zeros.shaped(scale.shape())?;
                    let values: Vec<f32> =
                        zeros.bytes().iter().map(|b| f32::from(*b as i8) + offset).collect();
                    Zeros::Each((0..rows).flat_map(|row| self.grid.row(&values, row)).copied().collect())
                }
                Some(zeros) => Zeros::Each(self.packed_zeros(zeros)?),
            },
            meta: scale.float_type().unwrap_or(FloatType::F32),
        };
        grouped.tensor(&module.name("weight"))
    }

    /// Zero points packed like codes, but down the rows: `[rows * bits / 32, groups]`.
    fn packed_zeros(&self, zeros: Part<'_>) -> Result<Vec<f32>> {
        let (rows, groups) = (self.shape[0], self.grid.across);
        let words = (rows * self.bits as usize).div_ceil(32);
        let zeros = zeros.typed(&WORDS)?.shaped(&[words, groups])?;
        let turned = transposed_words(zeros.bytes(), [words, groups]);
        let zero =
            |row, group: usize| f32::from(code_at(&turned[group * words * 4..][..words * 4], self.bits, row));
        Ok((0..rows).flat_map(|row| (0..groups).map(move |group| zero(row, group))).collect())
    }
}

impl Scheme {
    fn from_config(weights: &Options<'_>) -> Result<Self> {
        let kind = match weights.one_of("type", "int", &["int", "float"], "int or float")? {
            "int" => Kind::Int,
            _ => Kind::Float,
        };
        let bits = match kind {
            Kind::Int => weights.bits("num_bits", &[1, 2, 3, 4, 5, 6, 7, 8], "1 to 8")?,
            Kind::Float => weights.bits("num_bits", &[4, 8], "4 or 8")?,
        };
        let group = match weights.get("group_size") {
            Some(_) => Some(weights.group("group_size", 1)?),
            None => None,
        };
        let inferred = match group {
            None => "tensor",
            Some(None) => "channel",
            Some(Some(_)) => "group",
        };
        let known = ["tensor", "channel", "group", "tensor_group", "block"];
        let want = "tensor, channel, group, tensor_group or block";
        let wrong = |key, want| Err(weights.wrong(key, want));
        let spread = match weights.one_of("strategy", inferred, &known, want)? {
            "tensor" => Spread::Tensor,
            "channel" => Spread::Row,
            "block" => match weights.block("block_structure")? {
                Some(block) => Spread::Block(block),
                None => return wrong("block_structure", "two sizes"),
            },
            _ => match group {
                Some(Some(group)) => Spread::Group(group),
                _ => return wrong("group_size", "a group size"),
            },
        };
        Ok(Self { bits: bits.unwrap_or(8), kind, symmetric: weights.flag("symmetric", true)?, spread })
    }

    /// Rows and columns that share a scale in a matrix of `shape`.
    const fn block(&self, [rows, cols]: [usize; 2]) -> [usize; 2] {
        match self.spread {
            Spread::Tensor => [rows, cols],
            Spread::Row => [1, cols],
            Spread::Group(group) => [1, group],
            Spread::Block(block) => block,
        }
    }

    /// The grid that `scale` is, if it is this scheme's.
    fn grid(&self, scale: &Part<'_>, shape: [usize; 2]) -> Result<Grid> {
        let block = self.block(shape);
        let grid = Grid::new(scale, shape, Some(block))?;
        if grid.block == block { Ok(grid) } else { Err(scale.wrong_shape(&block)) }
    }

    fn agrees(&self, zeros: Option<&Part<'_>>) -> bool {
        // Zero points that are all 0 may be left out.
        zeros.is_none() || !self.symmetric
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.kind == Kind::Int { "int" } else { "float" };
        let zeros = if self.symmetric { "symmetric" } else { "with zero points" };
        write!(f, "{kind}{} {zeros}, a scale for each ", self.bits)?;
        match self.spread {
            Spread::Tensor => write!(f, "tensor"),
            Spread::Row => write!(f, "row"),
            Spread::Group(n) => write!(f, "{n} columns"),
            Spread::Block([h, w]) => write!(f, "block of {h} x {w}"),
        }
    }
}
