//! Agreement with MLX and ggml on stored vectors, which `vectors/make.py` writes. Properties are in `properties.rs`.
#![allow(clippy::unwrap_used)]

use std::borrow::Cow;

use half::{bf16, f16};
use rillm_quant::{FloatType, Format, RawTensor, e4m3_to_f32, e8m0_to_f32, encode};
use safetensors::SafeTensors;

static VECTORS: &[u8] = include_bytes!("vectors/vectors.safetensors");

fn vectors() -> SafeTensors<'static> {
    SafeTensors::deserialize(VECTORS).unwrap()
}

fn bytes(name: &str) -> Option<&'static [u8]> {
    vectors().tensor(name).ok().map(|t| t.data())
}

fn floats(name: &str) -> Vec<f32> {
    let bytes = bytes(name).unwrap_or_else(|| panic!("no {name}"));
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// The format that a vector's name says: `affine.BITS.GROUP.TYPE` or `FORMAT.anything`.
fn format(name: &str) -> Format {
    let words: Vec<&str> = name.split('.').collect();
    match words[0] {
        "affine" => {
            let meta = match words[3] {
                "f32" => FloatType::F32,
                "f16" => FloatType::F16,
                _ => FloatType::BF16,
            };
            Format::Affine { bits: words[1].parse().unwrap(), group: words[2].parse().unwrap(), meta }
        }
        "mxfp4" => Format::MxFp4,
        "mxfp8" => Format::MxFp8,
        "nvfp4" => Format::NvFp4,
        "Q4_0" => Format::Q4_0,
        "Q4_1" => Format::Q4_1,
        "Q5_0" => Format::Q5_0,
        "Q5_1" => Format::Q5_1,
        "Q8_0" => Format::Q8_0,
        "Q4_K" => Format::Q4K,
        "Q5_K" => Format::Q5K,
        "Q6_K" => Format::Q6K,
        "MXFP4" => Format::MxFp4Blocks,
        other => panic!("{other}"),
    }
}

fn stored(name: &str) -> RawTensor<'static> {
    let shape = vectors().tensor(&format!("{name}.values")).unwrap().shape().to_vec();
    let parts = ["codes", "scales", "biases"]
        .map(|part| Cow::Borrowed(bytes(&format!("{name}.{part}")).unwrap_or_default()));
    let mut tensor = RawTensor::new(format(name), shape, parts).unwrap();
    if bytes(&format!("{name}.global_scale")).is_some() {
        tensor.factor = floats(&format!("{name}.global_scale"))[0] / 2688.0;
    }
    tensor
}

fn names() -> Vec<String> {
    let mut names: Vec<String> =
        vectors().names().iter().filter_map(|n| Some(n.strip_suffix(".values")?.to_owned())).collect();
    names.sort();
    names
}

/// Values that were given to the quantizer of a vector.
fn source(name: &str) -> Vec<f32> {
    let own = format!("{name}.source");
    let values = floats(if bytes(&own).is_some() { &own } else { "source" });
    match format(name) {
        Format::Affine { meta: FloatType::F16, .. } => {
            values.iter().map(|x| f16::from_f32(*x).to_f32()).collect()
        }
        Format::Affine { meta: FloatType::BF16, .. } => {
            values.iter().map(|x| bf16::from_f32(*x).to_f32()).collect()
        }
        _ => values,
    }
}

#[track_caller]
fn assert_same(name: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{name}");
    let different: Vec<_> = got
        .iter()
        .zip(want)
        .enumerate()
        .filter(|(_, (a, b))| a != b && !(a.is_nan() && b.is_nan()))
        .take(4)
        .collect();
    assert!(different.is_empty(), "{name}: {different:?}");
}

#[test]
fn every_vector_decodes_exactly() {
    let names = names();
    assert_eq!(names.len(), 6 * 5 + 8 + 5 + 9);
    for name in names {
        assert_same(&name, &stored(&name).decode().unwrap(), &floats(&format!("{name}.values")));
    }
}

#[test]
fn affine_encoder_writes_the_bytes_of_mlx() {
    for name in names().iter().filter(|n| n.starts_with("affine")) {
        let want = stored(name);
        let got = encode(&source(name), want.shape.clone(), want.format).unwrap();
        assert!(got.scales == want.scales, "scales of {name}");
        assert!(got.biases == want.biases, "biases of {name}");
        assert!(got.codes == want.codes, "codes of {name}");
    }
}

#[test]
fn small_float_encoders_agree_with_mlx() {
    for name in ["mxfp4.source", "mxfp8.source", "nvfp4.source"] {
        let want = stored(name);
        let source = source(name);
        let got = encode(&source, want.shape.clone(), want.format).unwrap();
        assert!(got.scales == want.scales, "scales of {name}");
        // Not the same codes: MLX's CPU build takes the smaller magnitude of a tie, its GPU kernels and
        // this encoder the even code. But the same distance, to the bit.
        let distance = |values: Vec<f32>| -> Vec<f32> {
            values.iter().zip(&source).map(|(w, x)| (w - x).abs()).collect()
        };
        assert_same(name, &distance(got.decode().unwrap()), &distance(want.decode().unwrap()));
    }
}

#[test]
fn e2m1_ties_go_to_the_even_code() {
    let mut values = [0.0f32; 32];
    values[..8].copy_from_slice(&[6.0, 0.25, 0.75, 1.25, 1.75, -2.5, -3.5, -5.0]);
    let tensor = encode(&values, vec![1, 32], Format::MxFp4).unwrap();
    assert_eq!(tensor.decode().unwrap()[..8], [6.0, 0.0, 1.0, 1.0, 2.0, -2.0, -4.0, -4.0]);
}

#[test]
fn ggml_encoders_write_the_bytes_of_ggml() {
    for name in ["Q4_0.source", "Q4_1.source", "Q8_0.source"] {
        let want = stored(name);
        let got = encode(&source(name), want.shape.clone(), want.format).unwrap();
        assert!(got.codes == want.codes, "{name}");
    }
}

#[test]
fn small_floats_have_their_landmarks() {
    assert_eq!([0, 1, 127, 254].map(e8m0_to_f32), [2f32.powi(-127), 2f32.powi(-126), 1.0, 2f32.powi(127)]);
    assert_eq!([0x38, 0x7e, 0x01, 0x08, 0xfe].map(e4m3_to_f32), [1.0, 448.0, 0.001953125, 0.015625, -448.0]);
    assert!([0x7f, 0xff].iter().all(|c| e4m3_to_f32(*c).is_nan()));
}
