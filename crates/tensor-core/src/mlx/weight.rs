//! Parameters as MLX reads them: stored bytes become arrays, GGML blocks become affine groups. Not what is computed
//! with them.

use std::borrow::Cow;

use mlx_rs::{Array, Dtype};
use rillm_quant::{FloatType, Format, RawTensor, encode, pack_codes};

use super::builder::On;
use super::raw::{self, Quantized, Scheme};
use super::{dim, exception, shape};
use crate::Result;

/// Parameters as MLX reads them.
#[derive(Debug)]
pub struct MlxWeight(Stored);

#[derive(Debug)]
enum Stored {
    /// Norms and biases, `[n]`.
    Vector(Array),
    /// Matrices of equal width, rows stacked.
    Matrices(Vec<Matrix>),
    /// Vectors of so many experts, `[experts, n]`.
    Vectors(Array),
    /// Matrices of so many experts or heads, each array with that dimension first.
    Stack(usize, Vec<Matrix>),
}

/// A matrix `[rows, cols]`.
#[derive(Debug)]
pub(super) struct Matrix {
    pub rows: usize,
    pub cols: usize,
    values: Values,
}

#[derive(Debug)]
enum Values {
    Dense(Array),
    Quantized(Groups),
}

/// Codes in groups with scales.
#[derive(Debug)]
struct Groups {
    codes: Array,
    scales: Array,
    biases: Option<Array>,
    scheme: Scheme,
    /// Of all values; 1 but for some nvfp4 tensors.
    factor: f32,
}

impl Groups {
    fn view(&self) -> Quantized<'_> {
        let Self { codes, scales, biases, scheme, .. } = self;
        Quantized { codes, scales, biases: biases.as_ref(), scheme: *scheme }
    }

    /// Rows `ids`, or matrices of a stack, as plain values without the factor.
    fn chosen(&self, ids: &Array, dtype: Dtype) -> Result<Array> {
        let take = |x: &Array| x.take_axis(ids, 0).map_err(exception);
        let (codes, scales) = (take(&self.codes)?, take(&self.scales)?);
        let biases = self.biases.as_ref().map(take).transpose()?;
        let picked = Quantized { codes: &codes, scales: &scales, biases: biases.as_ref(), ..self.view() };
        raw::dequantize(picked, dtype)
    }
}

/// A matrix as the kernels of `cuda.rs` read it.
pub(super) struct KernelView<'a> {
    pub codes: &'a Array,
    pub scales: Option<&'a Array>,
    pub biases: Option<&'a Array>,
    /// 16 for plain values.
    pub bits: usize,
    pub group: usize,
}

impl MlxWeight {
    /// Uploads `parts`, floats as `dtype`. Parts of one format become one matrix.
    pub(super) fn new(parts: &[RawTensor<'_>], dtype: Dtype) -> Result<Self> {
        if let [vector] = parts
            && vector.shape.len() < 2
        {
            let values = vector.decode()?;
            let array = floats(&values, &[dim(values.len())?], dtype)?;
            return Ok(Self(Stored::Vector(array)));
        }
        let cols = parts.first().map_or(0, RawTensor::cols);
        if let Some(part) = parts.iter().find(|p| p.cols() != cols) {
            return Err(shape("prepare", [part.rows(), part.cols()], [part.rows(), cols]));
        }
        let mut matrices = Vec::new();
        for run in parts.chunk_by(|a, b| a.format == b.format && a.factor == b.factor) {
            matrices.push(Matrix::new(run, dtype)?);
        }
        Ok(Self(Stored::Matrices(matrices)))
    }

    pub(super) fn vector(&self, op: &'static str) -> Result<&Array> {
        match &self.0 {
            Stored::Vector(v) => Ok(v),
            _ => Err(shape(op, self.dims(), [1, self.dims()[1]])),
        }
    }

    /// `[experts, n]`.
    pub(super) fn vectors(&self, op: &'static str) -> Result<&Array> {
        match &self.0 {
            Stored::Vectors(v) => Ok(v),
            _ => Err(shape(op, self.dims(), [0, 0])),
        }
    }

    /// How many, and the matrices of all of them.
    pub(super) fn stacked(&self, op: &'static str) -> Result<(usize, &[Matrix])> {
        match &self.0 {
            Stored::Stack(n, m) => Ok((*n, m)),
            _ => Err(shape(op, self.dims(), [0, 0])),
        }
    }

    /// Rows and columns, of one of a stack.
    fn dims(&self) -> [usize; 2] {
        match &self.0 {
            Stored::Vector(v) => [1, v.size()],
            Stored::Vectors(v) => [1, v.dim(1) as usize],
            Stored::Matrices(m) | Stored::Stack(_, m) => dims(m),
        }
    }

    /// One weight of those of all experts or heads.
    pub(super) fn stack(all: &[Self]) -> Result<Self> {
        let want = all.first().map_or([0, 0], Self::dims);
        if let Some(other) = all.iter().find(|w| w.dims() != want) {
            return Err(shape("stack", other.dims(), want));
        }
        if let Some(vectors) = all.iter().map(|w| w.vector("stack").ok()).collect::<Option<Vec<_>>>()
            && !vectors.is_empty()
        {
            return joined(&vectors).map(|v| Self(Stored::Vectors(v)));
        }
        let matrices = all.iter().map(|w| w.matrices("stack")).collect::<Result<Vec<_>>>()?;
        let Some(first) = matrices.first() else { return Err(shape("stack", [0, 0], [1, 1])) };
        if let Some(other) = matrices.iter().find(|m| m.len() != first.len()) {
            return Err(shape("stack", [other.len(), want[1]], [first.len(), want[1]]));
        }
        let part = |i: usize| Matrix::stack(&matrices.iter().map(|m| &m[i]).collect::<Vec<_>>());
        let parts = (0..first.len()).map(part).collect::<Result<_>>()?;
        Ok(Self(Stored::Stack(all.len(), parts)))
    }

    pub(super) fn matrices(&self, op: &'static str) -> Result<&[Matrix]> {
        match &self.0 {
            Stored::Matrices(m) => Ok(m),
            _ => Err(shape(op, self.dims(), [self.dims()[1], 1])),
        }
    }

    /// Bytes of all arrays.
    pub(super) fn bytes(&self) -> usize {
        match &self.0 {
            Stored::Vector(v) | Stored::Vectors(v) => v.nbytes(),
            Stored::Matrices(m) | Stored::Stack(_, m) => m.iter().map(Matrix::bytes).sum(),
        }
    }
}

/// Rows and columns of stacked matrices.
pub(super) fn dims(matrices: &[Matrix]) -> [usize; 2] {
    [matrices.iter().map(|m| m.rows).sum(), matrices.first().map_or(0, |m| m.cols)]
}

/// `arrays` of one shape behind each other, computed now, so that they can go.
fn joined(arrays: &[&Array]) -> Result<Array> {
    let all = mlx_rs::ops::stack(arrays, 0).map_err(exception)?;
    all.eval().map_err(exception)?;
    Ok(all)
}

/// `values` of `shape` in `dtype`, rounded on the host.
fn floats(values: &[f32], shape: &[i32], dtype: Dtype) -> Result<Array> {
    let stored = match dtype {
        Dtype::Bfloat16 => FloatType::BF16,
        Dtype::Float16 => FloatType::F16,
        _ => FloatType::F32,
    };
    let raw = encode(values, vec![values.len()], Format::Float(stored))?;
    convert(&raw.codes, stored, shape, dtype)
}

/// Stored floats of type `t` as `dtype`.
fn convert(bytes: &[u8], t: FloatType, shape: &[i32], dtype: Dtype) -> Result<Array> {
    let stored = match t {
        FloatType::F32 => Dtype::Float32,
        FloatType::F16 => Dtype::Float16,
        FloatType::BF16 => Dtype::Bfloat16,
    };
    let array = raw::from_bytes(bytes, shape, stored)?;
    if stored == dtype {
        return Ok(array);
    }
    let array = array.as_dtype(dtype).map_err(exception)?;
    // Now, so that what it is made from can go.
    array.eval().map_err(exception)?;
    Ok(array)
}

/// The stored bytes of one field of all parts; those of a single part are not copied.
fn stacked<'a>(
    parts: &'a [RawTensor<'_>],
    field: for<'b> fn(&'b RawTensor<'_>) -> &'b [u8],
) -> Cow<'a, [u8]> {
    match parts {
        [part] => Cow::Borrowed(field(part)),
        _ => Cow::Owned(parts.iter().map(field).collect::<Vec<_>>().concat()),
    }
}

impl Matrix {
    /// `parts` of one format, rows stacked.
    fn new(parts: &[RawTensor<'_>], dtype: Dtype) -> Result<Self> {
        let (rows, cols) = (parts.iter().map(RawTensor::rows).sum(), parts[0].cols());
        let values = match parts[0].format {
            Format::MxFp4Blocks => {
                let apart = parts.iter().map(RawTensor::apart).collect::<rillm_quant::Result<Vec<_>>>()?;
                return Self::new(&apart, dtype);
            }
            Format::Float(t) => {
                let bytes = stacked(parts, |p| &p.codes);
                Values::Dense(convert(&bytes, t, &[dim(rows)?, dim(cols)?], dtype)?)
            }
            Format::Affine { bits, group, meta } => {
                let scheme = Scheme { mode: c"affine", group: dim(group)?, bits: bits as i32 };
                let groups = [dim(rows)?, dim(cols / group)?];
                let meta = |bytes: Cow<'_, [u8]>| convert(&bytes, meta, &groups, dtype);
                Values::Quantized(Groups {
                    codes: codes(&stacked(parts, |p| &p.codes), rows)?,
                    scales: meta(stacked(parts, |p| &p.scales))?,
                    biases: Some(meta(stacked(parts, |p| &p.biases))?),
                    scheme,
                    factor: 1.0,
                })
            }
            Format::MxFp4 => micro(parts, rows, Scheme { mode: c"mxfp4", group: 32, bits: 4 })?,
            Format::MxFp8 => micro(parts, rows, Scheme { mode: c"mxfp8", group: 32, bits: 8 })?,
            Format::NvFp4 => micro(parts, rows, Scheme { mode: c"nvfp4", group: 16, bits: 4 })?,
            // MLX has no affine groups of 16.
            Format::Q6K => {
                let mut values = Vec::with_capacity(rows * cols);
                for part in parts {
                    values.extend(part.decode()?);
                }
                Values::Dense(floats(&values, &[dim(rows)?, dim(cols)?], dtype)?)
            }
            _ => affine(parts, dtype)?,
        };
        Ok(Self { rows, cols, values })
    }

    /// `x @ selfᵀ`, `[t, rows]`.
    pub(super) fn multiply(&self, x: &Array, dtype: Dtype, on: On) -> Result<Array> {
        let plain = |w: &Array| x.matmul(w.transpose().map_err(exception)?).map_err(exception);
        match &self.values {
            Values::Dense(w) => plain(w),
            Values::Quantized(w) if is_written_out(x, on) && x.dim(0) > 1 => {
                scaled(plain(&raw::dequantize(w.view(), dtype)?)?, w.factor, dtype)
            }
            Values::Quantized(w) => scaled(raw::quantized_matmul(x, w.view())?, w.factor, dtype),
        }
    }

    fn dense(&self) -> Option<&Array> {
        match &self.values {
            Values::Dense(w) => Some(w),
            Values::Quantized(_) => None,
        }
    }

    fn groups(&self) -> Option<&Groups> {
        match &self.values {
            Values::Quantized(groups) => Some(groups),
            Values::Dense(_) => None,
        }
    }

    /// One of `all`, each array with their number first. Formats must not differ.
    fn stack(all: &[&Self]) -> Result<Self> {
        let first = all[0];
        let differ = || super::error("experts of different formats".to_owned());
        let same = |g: &Groups, other: &Groups| {
            g.scheme == other.scheme
                && g.factor == other.factor
                && g.biases.is_some() == other.biases.is_some()
        };
        let values = match &first.values {
            Values::Dense(_) => {
                let arrays: Vec<&Array> = all.iter().filter_map(|m| m.dense()).collect();
                if arrays.len() < all.len() {
                    return Err(differ());
                }
                Values::Dense(joined(&arrays)?)
            }
            Values::Quantized(g) => {
                let parts: Vec<&Groups> = all.iter().filter_map(|m| m.groups()).collect();
                if parts.len() < all.len() || !parts.iter().all(|other| same(g, other)) {
                    return Err(differ());
                }
                let field = |f: fn(&Groups) -> Option<&Array>| {
                    let arrays: Vec<&Array> = parts.iter().filter_map(|g| f(g)).collect();
                    if arrays.is_empty() { Ok(None) } else { joined(&arrays).map(Some) }
                };
                Values::Quantized(Groups {
                    codes: field(|g| Some(&g.codes))?.ok_or_else(differ)?,
                    scales: field(|g| Some(&g.scales))?.ok_or_else(differ)?,
                    biases: field(|g| g.biases.as_ref())?,
                    scheme: g.scheme,
                    factor: g.factor,
                })
            }
        };
        Ok(Self { rows: first.rows, cols: first.cols, values })
    }

    /// Of a stack: `x: [n, 1, cols]`, row `i` with matrix `ids[i]`. `[n, 1, rows]`. `sorted` says that ids ascend.
    pub(super) fn gather(
        &self,
        x: &Array,
        ids: &Array,
        sorted: raw::Order,
        dtype: Dtype,
        on: On,
    ) -> Result<Array> {
        let plain = |w: &Array| raw::gather_mm(x, &w.swap_axes(-1, -2).map_err(exception)?, ids, sorted);
        match &self.values {
            Values::Dense(w) => plain(w),
            Values::Quantized(w) if is_written_out(x, on) && x.dim(0) > 1 => {
                // All of them once, or those that were chosen as often as they were.
                let y = if x.dim(0) < w.codes.dim(0) {
                    let chosen = w.chosen(ids, dtype)?.swap_axes(-1, -2).map_err(exception)?;
                    x.matmul(chosen).map_err(exception)?
                } else {
                    plain(&raw::dequantize(w.view(), dtype)?)?
                };
                scaled(y, w.factor, dtype)
            }
            Values::Quantized(w) => scaled(raw::gather_qmm(x, w.view(), ids, sorted)?, w.factor, dtype),
        }
    }

    /// Of a stack: `x: [heads, t, cols]`, each with its matrix. `[heads, t, rows]`.
    pub(super) fn by_heads(&self, x: &Array, dtype: Dtype, on: On) -> Result<Array> {
        let plain = |w: &Array| x.matmul(w.swap_axes(-1, -2).map_err(exception)?).map_err(exception);
        match &self.values {
            Values::Dense(w) => plain(w),
            Values::Quantized(w) if is_written_out(x, on) && x.dim(1) > 1 => {
                scaled(plain(&raw::dequantize(w.view(), dtype)?)?, w.factor, dtype)
            }
            Values::Quantized(w) => scaled(raw::quantized_matmul(x, w.view())?, w.factor, dtype),
        }
    }

    /// Rows `ids`, `[ids, cols]`.
    pub(super) fn rows_of(&self, ids: &Array, dtype: Dtype) -> Result<Array> {
        match &self.values {
            Values::Dense(w) => w.take_axis(ids, 0).map_err(exception),
            Values::Quantized(w) => scaled(w.chosen(ids, dtype)?, w.factor, dtype),
        }
    }

    /// Its arrays for the kernels of `cuda.rs`, which read affine codes of 4 and 8 bits and plain values in `dtype`.
    pub(super) fn for_kernels(&self, dtype: Dtype) -> Option<KernelView<'_>> {
        match &self.values {
            Values::Dense(codes) if codes.dtype() == dtype => {
                Some(KernelView { codes, scales: None, biases: None, bits: 16, group: 64 })
            }
            Values::Quantized(Groups { codes, scales, biases: Some(biases), scheme, .. })
                if matches!(scheme.bits, 4 | 8) =>
            {
                let (bits, group) = (scheme.bits as usize, scheme.group as usize);
                Some(KernelView { codes, scales: Some(scales), biases: Some(biases), bits, group })
            }
            _ => None,
        }
    }

    fn bytes(&self) -> usize {
        match &self.values {
            Values::Dense(w) => w.nbytes(),
            Values::Quantized(Groups { codes, scales, biases, .. }) => {
                codes.nbytes() + scales.nbytes() + biases.as_ref().map_or(0, Array::nbytes)
            }
        }
    }
}

/// Whether several rows `x` meet plain values of quantized weights. MLX 0.32's kernels for several rows of f32 are compiled
/// for half a minute for each format, and ask for more shared memory than they were granted where groups have 128 values.
fn is_written_out(x: &Array, on: On) -> bool {
    on == On::Cuda && x.dtype() == Dtype::Float32
}

/// `x * factor` in `dtype`.
fn scaled(x: Array, factor: f32, dtype: Dtype) -> Result<Array> {
    if factor == 1.0 {
        return Ok(x);
    }
    let factor = Array::from_f32(factor).as_dtype(dtype).map_err(exception)?;
    x.multiply(factor).map_err(exception)
}

/// Bit streams as words, `[rows, words of a row]`.
fn codes(bytes: &[u8], rows: usize) -> Result<Array> {
    let words = bytes.len() / 4 / rows.max(1);
    raw::from_bytes(bytes, &[dim(rows)?, dim(words)?], Dtype::Uint32)
}

/// E2M1 and E4M3 codes with scales of a byte, which MLX reads as they are.
fn micro(parts: &[RawTensor<'_>], rows: usize, scheme: Scheme) -> Result<Values> {
    let scales = stacked(parts, |p| &p.scales);
    let groups = dim(scales.len() / rows.max(1))?;
    Ok(Values::Quantized(Groups {
        codes: codes(&stacked(parts, |p| &p.codes), rows)?,
        scales: raw::from_bytes(&scales, &[dim(rows)?, groups], Dtype::Uint8)?,
        biases: None,
        scheme,
        factor: parts[0].factor,
    }))
}

/// GGML blocks as affine groups: the same codes, `scale * code + bias` with the block's scale and offset.
fn affine(parts: &[RawTensor<'_>], dtype: Dtype) -> Result<Values> {
    let (format, cols) = (parts[0].format, parts[0].cols());
    let bits = match format {
        Format::Q8_0 => 8,
        Format::Q5_0 | Format::Q5_1 | Format::Q5K => 5,
        _ => 4,
    };
    let group = format.meta_group();
    let rows: usize = parts.iter().map(RawTensor::rows).sum();
    let (mut stream, mut scales, mut biases) = (Vec::new(), Vec::new(), Vec::new());
    let mut row = vec![0u8; cols];
    let (mut s, mut b) = (vec![0.0; cols / group], vec![0.0; cols / group]);
    for part in parts {
        for r in 0..part.rows() {
            part.codes_of_row(r, &mut row)?;
            part.scales_of_row(r, &mut s, &mut b)?;
            pack_codes(bits, &row, &mut stream);
            scales.extend_from_slice(&s);
            biases.extend_from_slice(&b);
        }
    }
    let groups = [dim(rows)?, dim(cols / group)?];
    Ok(Values::Quantized(Groups {
        codes: codes(&stream, rows)?,
        scales: floats(&scales, &groups, dtype)?,
        biases: Some(floats(&biases, &groups, dtype)?),
        scheme: Scheme { mode: c"affine", group: dim(group)?, bits: bits as i32 },
        factor: 1.0,
    }))
}
