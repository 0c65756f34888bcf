//! The calls of mlx-c that mlx-rs has no function for, or only a detour. Nothing of inference here.

use std::cell::RefCell;
use std::ffi::CStr;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use mlx_rs::{Array, Device, Dtype, Stream};
use mlx_sys::{mlx_array, mlx_array_new, mlx_optional_dtype, mlx_optional_int};

use super::error;
use crate::Result;

/// A stored quantization, as MLX's functions name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scheme {
    /// `affine`, `mxfp4`, `mxfp8` or `nvfp4`.
    pub mode: &'static CStr,
    /// Values of a group.
    pub group: i32,
    /// Bits of a code.
    pub bits: i32,
}

/// What a quantized matrix is made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quantized<'a> {
    /// `[rows, cols * bits / 32]`, u32.
    pub codes: &'a Array,
    /// `[rows, cols / group]`.
    pub scales: &'a Array,
    /// The same, if the scheme has biases.
    pub biases: Option<&'a Array>,
    /// How to read them.
    pub scheme: Scheme,
}

fn some(value: i32) -> mlx_optional_int {
    mlx_optional_int { value, has_value: true }
}

/// The handle of an array, or that of none.
fn handle(array: Option<&Array>) -> mlx_array {
    // SAFETY: an empty handle owns nothing.
    array.map_or_else(|| unsafe { mlx_array_new() }, Array::as_ptr)
}

/// How often the process has chosen another default device.
static CHOICES: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// The default stream of this thread, and after how many choices it was looked up.
    static STREAM: RefCell<Option<(usize, Stream)>> = const { RefCell::new(None) };
}

/// Makes `device` the default.
pub(super) fn set_device(device: &Device) {
    Device::set_default(device);
    CHOICES.fetch_add(1, Ordering::Relaxed);
}

/// Calls `f` with the default stream, looked up once: that takes four calls.
pub(super) fn with_stream<T>(f: impl FnOnce(mlx_sys::mlx_stream) -> T) -> T {
    let choices = CHOICES.load(Ordering::Relaxed);
    STREAM.with_borrow_mut(|known| match known {
        Some((at, stream)) if *at == choices => f(stream.as_ptr()),
        _ => f(known.insert((choices, Stream::thread_local_or_default())).1.as_ptr()),
    })
}

/// What `f` stores. mlx-rs has had an operation by then, so failures come back as a status, not as an exit.
fn call(op: &'static str, f: impl FnOnce(*mut mlx_array, mlx_sys::mlx_stream) -> i32) -> Result<Array> {
    // SAFETY: an empty handle, which `f` fills or leaves.
    let mut out = unsafe { mlx_array_new() };
    let status = with_stream(|stream| f(&mut out, stream));
    // SAFETY: the handle is owned by nobody else.
    let array = unsafe { Array::from_ptr(out) };
    if status == 0 { Ok(array) } else { Err(error(format!("{op} failed"))) }
}

/// `x @ dequantized(w)ᵀ`.
pub(super) fn quantized_matmul(x: &Array, w: Quantized<'_>) -> Result<Array> {
    let Scheme { mode, group, bits } = w.scheme;
    call("quantized_matmul", |out, stream| {
        // SAFETY: all handles are of live arrays, or empty where that is allowed.
        unsafe {
            mlx_sys::mlx_quantized_matmul(
                out,
                x.as_ptr(),
                w.codes.as_ptr(),
                w.scales.as_ptr(),
                handle(w.biases),
                true,
                some(group),
                some(bits),
                mode.as_ptr(),
                stream,
            )
        }
    })
}

/// Whether indices ascend, which MLX makes use of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Ascending,
    Any,
}

/// `x[i] @ dequantized(w[ids[i]])ᵀ`.
pub(super) fn gather_qmm(x: &Array, w: Quantized<'_>, ids: &Array, order: Order) -> Result<Array> {
    let Scheme { mode, group, bits } = w.scheme;
    call("gather_qmm", |out, stream| {
        // SAFETY: all handles are of live arrays, or empty where that is allowed.
        unsafe {
            mlx_sys::mlx_gather_qmm(
                out,
                x.as_ptr(),
                w.codes.as_ptr(),
                w.scales.as_ptr(),
                handle(w.biases),
                mlx_array_new(),
                ids.as_ptr(),
                true,
                some(group),
                some(bits),
                mode.as_ptr(),
                order == Order::Ascending,
                stream,
            )
        }
    })
}

/// `x[i] @ w[ids[i]]`.
pub(super) fn gather_mm(x: &Array, w: &Array, ids: &Array, order: Order) -> Result<Array> {
    call("gather_mm", |out, stream| {
        // SAFETY: all handles are of live arrays, or empty where that is allowed.
        unsafe {
            mlx_sys::mlx_gather_mm(
                out,
                x.as_ptr(),
                w.as_ptr(),
                mlx_array_new(),
                ids.as_ptr(),
                order == Order::Ascending,
                stream,
            )
        }
    })
}

/// The values of `w` in `dtype`.
pub(super) fn dequantize(w: Quantized<'_>, dtype: Dtype) -> Result<Array> {
    let Scheme { mode, group, bits } = w.scheme;
    let dtype = mlx_optional_dtype { value: dtype.into(), has_value: true };
    call("dequantize", |out, stream| {
        // SAFETY: all handles are of live arrays, or empty where that is allowed.
        unsafe {
            mlx_sys::mlx_dequantize(
                out,
                w.codes.as_ptr(),
                w.scales.as_ptr(),
                handle(w.biases),
                some(group),
                some(bits),
                mode.as_ptr(),
                mlx_array_new(),
                dtype,
                stream,
            )
        }
    })
}

/// `x[from[0]..to[0], from[1]..to[1], ..]`, a view.
pub(super) fn slice<const N: usize>(x: &Array, from: [i32; N], to: [i32; N]) -> Result<Array> {
    let strides = [1; N];
    call("slice", |out, stream| {
        // SAFETY: the arrays of numbers have the lengths that are given.
        unsafe {
            mlx_sys::mlx_slice(out, x.as_ptr(), from.as_ptr(), N, to.as_ptr(), N, strides.as_ptr(), N, stream)
        }
    })
}

/// Every `step`-th of `range` along an axis of `x`, a view.
pub(super) fn slice_axis(x: &Array, axis: usize, range: Range<i32>, step: i32) -> Result<Array> {
    let (mut from, mut to, mut steps) = (vec![0; x.ndim()], x.shape().to_vec(), vec![1; x.ndim()]);
    if let (Some(from), Some(to), Some(steps)) = (from.get_mut(axis), to.get_mut(axis), steps.get_mut(axis)) {
        (*from, *to, *steps) = (range.start, range.end, step);
    }
    let n = x.ndim();
    call("slice", |out, stream| {
        // SAFETY: the arrays of numbers have the lengths that are given.
        unsafe {
            mlx_sys::mlx_slice(out, x.as_ptr(), from.as_ptr(), n, to.as_ptr(), n, steps.as_ptr(), n, stream)
        }
    })
}

/// `x` with `update` at `from..to`: in its memory, if nobody else holds `x` when it is computed.
pub(super) fn slice_update<const N: usize>(
    x: &Array,
    update: &Array,
    from: [i32; N],
    to: [i32; N],
) -> Result<Array> {
    let strides = [1; N];
    call("slice_update", |out, stream| {
        // SAFETY: the arrays of numbers have the lengths that are given.
        unsafe {
            mlx_sys::mlx_slice_update(
                out,
                x.as_ptr(),
                update.as_ptr(),
                from.as_ptr(),
                N,
                to.as_ptr(),
                N,
                strides.as_ptr(),
                N,
                stream,
            )
        }
    })
}

/// An array of `dtype` and `shape` with a copy of `bytes`, which has them all.
pub(super) fn from_bytes(bytes: &[u8], shape: &[i32], dtype: Dtype) -> Result<Array> {
    let want = shape.iter().map(|n| *n as usize).product::<usize>() * size_of_dtype(dtype);
    if want != bytes.len() {
        return Err(error(format!("{} bytes for {shape:?} of {dtype:?}, wanted {want}", bytes.len())));
    }
    if bytes.is_empty() {
        return mlx_rs::ops::zeros_dtype(shape, dtype).map_err(super::exception);
    }
    // SAFETY: the buffer has the bytes of the shape, and is copied.
    Ok(unsafe { Array::from_raw_data(bytes.as_ptr().cast(), shape, dtype) })
}

/// Bytes of a value.
pub(super) fn size_of_dtype(dtype: Dtype) -> usize {
    match dtype {
        Dtype::Float32 | Dtype::Uint32 | Dtype::Int32 => 4,
        Dtype::Float16 | Dtype::Bfloat16 => 2,
        _ => 1,
    }
}

/// Whether MLX was built for CUDA and finds a card.
pub(super) fn has_cuda() -> bool {
    let mut answer = false;
    // SAFETY: the answer is written to a bool.
    let status = unsafe { mlx_sys::mlx_cuda_is_available(&mut answer) };
    status == 0 && answer
}

/// What MLX calls the architecture of the graphics card, `sm_90` for an H100; empty if it does not say.
pub(super) fn architecture() -> Result<String> {
    let mut name = std::ptr::null();
    // SAFETY: both handles are live until they are freed; the name is of the information and copied before that.
    unsafe {
        let device = mlx_sys::mlx_device_new_type(mlx_sys::mlx_device_type__MLX_GPU, 0);
        let mut info = mlx_sys::mlx_device_info_new();
        let mut status = mlx_sys::mlx_device_info_get(&mut info, device);
        if status == 0 {
            status = mlx_sys::mlx_device_info_get_string(&mut name, info, c"architecture".as_ptr());
        }
        let known = if status == 0 && !name.is_null() {
            CStr::from_ptr(name).to_string_lossy().into_owned()
        } else {
            String::new()
        };
        mlx_sys::mlx_device_info_free(info);
        mlx_sys::mlx_device_free(device);
        // 2: there is no such entry.
        if status == 1 { Err(error("MLX can't describe the graphics card".to_owned())) } else { Ok(known) }
    }
}
