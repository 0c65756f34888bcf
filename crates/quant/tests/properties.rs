//! What holds of every codec for all input: nearness, agreement of the views, no panic. Vectors are in `vectors.rs`.
#![allow(clippy::unwrap_used)]

use std::borrow::Cow;

use proptest::prelude::*;
use rillm_quant::{E2M1, Error, FloatType, Format, RawTensor, e4m3_to_f32, encode};

const COLS: usize = 512;

fn float_types() -> [FloatType; 3] {
    [FloatType::F32, FloatType::F16, FloatType::BF16]
}

fn coded() -> Vec<Format> {
    let mut formats = vec![Format::MxFp4, Format::MxFp8, Format::NvFp4, Format::Q4_0, Format::Q4_1];
    formats.extend([Format::Q5_0, Format::Q5_1, Format::Q8_0, Format::Q4K, Format::Q5K, Format::Q6K]);
    formats.push(Format::MxFp4Blocks);
    for bits in [2, 3, 4, 5, 6, 8] {
        for group in [32, 64, 128] {
            formats.extend(float_types().map(|meta| Format::Affine { bits, group, meta }));
        }
    }
    formats
}

fn encodable() -> Vec<Format> {
    let read_only = [Format::Q5_0, Format::Q5_1, Format::Q4K, Format::Q5K, Format::Q6K, Format::MxFp4Blocks];
    coded().into_iter().filter(|f| !read_only.contains(f)).collect()
}

/// Two rows of weights: magnitudes over several decades, offsets, runs of zeros.
fn values() -> impl Strategy<Value = Vec<f32>> {
    let group = (-3.0f32..2.0, -1.0f32..1.0, prop::collection::vec(-1.0f32..1.0, 16)).prop_map(
        |(decade, offset, values)| {
            let scale = 10f32.powf(decade);
            let offset = if offset.abs() < 0.7 { 0.0 } else { offset };
            values.into_iter().map(move |x| if x.abs() < 0.1 { 0.0 } else { (x + offset) * scale })
        },
    );
    prop::collection::vec(group, 2 * COLS / 16).prop_map(|groups| groups.into_iter().flatten().collect())
}

/// The value that each code of a group stands for.
fn levels(format: Format, scale: f32, bias: f32) -> Vec<f32> {
    let count = match format {
        Format::Affine { bits, .. } => 1usize << bits,
        Format::Q8_0 => 256,
        Format::MxFp8 => return (0..=255).map(|c| scale * e4m3_to_f32(c)).filter(|x| !x.is_nan()).collect(),
        Format::MxFp4 | Format::NvFp4 => return E2M1.map(|x| scale * x).to_vec(),
        _ => 16,
    };
    (0..count).map(|q| scale * q as f32 + bias).collect()
}

/// How far outside its levels a group may reach, in steps of the outermost two levels. Where the extreme
/// of larger magnitude is met exactly, the other may be short by one; scales of powers of two reach all.
fn overhang(format: Format) -> f32 {
    match format {
        Format::MxFp4 | Format::MxFp8 => 0.0,
        Format::NvFp4 => 0.5,
        Format::Q4_1 | Format::Q8_0 => 0.5,
        _ => 1.0,
    }
}

/// Error that rounding the stored scale and bias adds: relative to the values, and absolute where they underflow.
fn slack(format: Format, largest: f32) -> f32 {
    match format {
        Format::Affine { meta: FloatType::F32, .. } => largest * 1e-6,
        Format::Affine { meta: FloatType::BF16, .. } => largest * 3.0 / 256.0,
        Format::Affine { meta: FloatType::F16, bits, .. } => {
            largest * 3.0 / 2048.0 + (1 << bits) as f32 * 2f32.powi(-25)
        }
        Format::Q4_0 | Format::Q4_1 => largest * 3.0 / 2048.0 + 16.0 * 2f32.powi(-25),
        Format::Q8_0 => largest / 2048.0 + 128.0 * 2f32.powi(-25),
        Format::NvFp4 => 6.0 * 2f32.powi(-10),
        _ => 0.0,
    }
}

fn check_nearness(format: Format, values: &[f32]) -> Result<(), TestCaseError> {
    let tensor = encode(values, vec![2, COLS], format).unwrap();
    let group = format.meta_group();
    let (mut scales, mut biases) = (vec![0.0; COLS / group], vec![0.0; COLS / group]);
    let mut decoded = vec![0.0; COLS];
    for (row, values) in values.chunks(COLS).enumerate() {
        tensor.decode_row(row, &mut decoded).unwrap();
        tensor.scales_of_row(row, &mut scales, &mut biases).unwrap();
        for (g, values) in values.chunks(group).enumerate() {
            let mut levels = levels(format, scales[g], biases[g]);
            levels.sort_by(f32::total_cmp);
            let last = levels.len() - 1;
            let slack = slack(format, values.iter().fold(0.0, |a: f32, x| a.max(x.abs())));
            for (x, w) in values.iter().zip(&decoded[g * group..]) {
                let above = levels.partition_point(|l| l < x).clamp(1, last);
                let step = levels[above] - levels[above - 1];
                let inside = levels[0] <= *x && *x <= levels[last];
                let want = step * if inside { 0.5 } else { overhang(format) } * 1.00001 + slack;
                prop_assert!((x - w).abs() <= want, "{format}: {x} became {w}, step {step}, wanted {want}");
            }
        }
    }
    Ok(())
}

/// A tensor of 2 rows whose bytes are those of `seed`, repeated with a change each time.
fn arbitrary(format: Format, seed: &[u8]) -> RawTensor<'static> {
    let mut state = 0u8;
    let mut fill = |n: usize| -> Cow<'static, [u8]> {
        let bytes = (0..2 * n).map(|i| {
            state = state.wrapping_mul(5).wrapping_add(seed[i % seed.len()]);
            state
        });
        bytes.collect::<Vec<_>>().into()
    };
    let parts = format.row_bytes(COLS).unwrap().map(&mut fill);
    RawTensor::new(format, vec![2, COLS], parts).unwrap()
}

fn same(a: f32, b: f32) -> bool {
    a == b || a.is_nan() && b.is_nan()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn encoding_takes_the_nearest_level(values in values()) {
        for format in encodable() {
            check_nearness(format, &values)?;
        }
    }

    #[test]
    fn all_views_of_arbitrary_bytes_agree(seed in prop::collection::vec(any::<u8>(), 61), factor in 0.01f32..10.0) {
        for format in coded() {
            let mut tensor = arbitrary(format, &seed);
            if format == Format::NvFp4 {
                tensor.factor = factor;
            }
            let group = format.meta_group();
            let (mut scales, mut biases) = (vec![0.0; COLS / group], vec![0.0; COLS / group]);
            let (mut codes, mut decoded) = (vec![0; COLS], vec![0.0; COLS]);
            let whole = tensor.decode().unwrap();
            for row in 0..2 {
                tensor.decode_row(row, &mut decoded).unwrap();
                tensor.codes_of_row(row, &mut codes).unwrap();
                tensor.scales_of_row(row, &mut scales, &mut biases).unwrap();
                for (i, code) in codes.iter().enumerate() {
                    let (scale, bias) = (scales[i / group], biases[i / group]);
                    let w = match format {
                        Format::MxFp4 | Format::MxFp4Blocks | Format::NvFp4 => scale * E2M1[usize::from(*code)],
                        Format::MxFp8 => scale * e4m3_to_f32(*code),
                        _ => scale * f32::from(*code) + bias,
                    };
                    prop_assert!(same(w, decoded[i]) && same(w, whole[row * COLS + i]), "{format} {i}");
                }
                let run = tensor.row(row).unwrap().columns(256..COLS).unwrap();
                let (mut some, mut bits) = (vec![0; COLS - 256], [vec![0; 256 / group], vec![0; 256 / group]]);
                run.codes(&mut some).unwrap();
                prop_assert_eq!(&some, &codes[256..]);
                let [scale_bits, bias_bits] = &mut bits;
                if run.scale_bits(scale_bits, bias_bits).is_ok() {
                    let value = |bits: &u16| match format {
                        Format::Affine { meta: FloatType::BF16, .. } => half::bf16::from_bits(*bits).to_f32(),
                        _ => half::f16::from_bits(*bits).to_f32(),
                    };
                    let with_bias = matches!(format, Format::Affine { .. } | Format::Q4_1 | Format::Q5_1);
                    for (i, (s, b)) in scale_bits.iter().zip(bias_bits).enumerate() {
                        let at = 256 / group + i;
                        prop_assert!(same(value(s), scales[at]), "{format} {i}");
                        prop_assert!(!with_bias || same(value(b), biases[at]), "{format} {i}");
                    }
                }
            }
        }
    }

    #[test]
    fn plain_values_survive(values in prop::collection::vec(any::<f32>(), 130)) {
        let tensor = encode(&values, vec![2, 65], Format::Float(FloatType::F32)).unwrap();
        prop_assert!(tensor.decode().unwrap().iter().zip(&values).all(|(a, b)| same(*a, *b)));
        for t in [FloatType::F16, FloatType::BF16] {
            let tensor = encode(&values, vec![2, 65], Format::Float(t)).unwrap();
            let round = |x: &f32| match t {
                FloatType::F16 => half::f16::from_f32(*x).to_f32(),
                _ => half::bf16::from_f32(*x).to_f32(),
            };
            prop_assert!(tensor.decode().unwrap().iter().zip(&values).all(|(a, b)| same(*a, round(b))));
        }
    }

    #[test]
    fn encoders_do_not_panic(values in prop::collection::vec(any::<f32>(), COLS)) {
        for format in encodable() {
            encode(&values, vec![1, COLS], format).unwrap().decode().unwrap();
        }
    }
}

#[test]
fn wrong_requests_are_typed_errors() {
    let tensor = encode(&[1.0; 64], vec![2, 32], Format::Q8_0).unwrap();
    let mut out = [0.0; 32];
    assert_eq!(tensor.decode_row(2, &mut out), Err(Error::Row { row: 2, rows: 2 }));
    assert!(matches!(tensor.decode_row(0, &mut out[1..]), Err(Error::Length { want: 32, got: 31, .. })));
    assert!(matches!(tensor.scales_of_row(0, &mut [], &mut []), Err(Error::Length { want: 1, got: 0, .. })));
    let row = tensor.row(0).unwrap();
    assert!(matches!(row.columns(0..16), Err(Error::Group { cols: 16, group: 32, .. })));
    assert!(matches!(row.columns(32..64), Err(Error::Length { want: 32, got: 64, .. })));
    let wide = Format::Affine { bits: 4, group: 32, meta: FloatType::F32 };
    let wide = encode(&[1.0; 32], vec![1, 32], wide).unwrap();
    let row = wide.row(0).unwrap();
    assert!(matches!(row.scale_bits(&mut [0], &mut [0]), Err(Error::Unsupported { .. })));
    let plain = RawTensor::from_f32(vec![2], &[1.0, 2.0]).unwrap();
    assert!(matches!(plain.codes_of_row(0, &mut [0; 2]), Err(Error::Unsupported { .. })));
    assert!(matches!(encode(&[0.0; 256], vec![256], Format::Q4K), Err(Error::Unsupported { .. })));
    assert!(matches!(
        encode(&[0.0; 3], vec![2, 2], Format::Q8_0),
        Err(Error::Length { want: 4, got: 3, .. })
    ));
    assert!(matches!(encode(&[0.0; 33], vec![33], Format::Q8_0), Err(Error::Group { .. })));
}

#[test]
fn fields_that_do_not_fit_are_typed_errors() {
    let mut tensor = encode(&[1.0; 64], vec![2, 32], Format::MxFp4).unwrap();
    tensor.scales.to_mut().pop();
    assert!(matches!(tensor.decode(), Err(Error::Size { part: "scales", want: 2, got: 1, .. })));
    assert!(matches!(tensor.decode_row(1, &mut [0.0; 32]), Err(Error::Size { part: "scales", .. })));
    tensor.shape = vec![1 << 40, 1 << 20, 32];
    assert!(matches!(tensor.decode(), Err(Error::Overflow { .. })));
    assert!(matches!(tensor.decode_row(0, &mut [0.0; 32]), Err(Error::Overflow { .. })));
    tensor.shape = vec![1 << 30, 32];
    assert!(matches!(tensor.decode(), Err(Error::Size { .. })));
}

#[test]
fn empty_tensors_and_scalars_decode() {
    for shape in [vec![0, 32], vec![3, 0], vec![1 << 62, 0]] {
        assert!(encode(&[], shape, Format::Q8_0).unwrap().decode().unwrap().is_empty());
    }
    assert_eq!(RawTensor::from_f32(vec![], &[3.0]).unwrap().decode().unwrap(), [3.0]);
}
