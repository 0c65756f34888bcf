//! Every converter against a plain reading of its format's definition, and files that are not what they claim.
#![allow(clippy::unwrap_used)]

use half::{bf16, f16};
use proptest::prelude::*;
use proptest::sample::select;
use rillm_quant::{FloatType, Format, RawTensor, e4m3_to_f32};
use serde_json::{Value, json};

use super::super::{Quantization, Safetensors, WeightSource};
use crate::{Error, Result};

/// Name, type, shape and bytes.
type Tensor = (&'static str, &'static str, Vec<usize>, Vec<u8>);

fn checkpoint(config: &Value, tensors: &[Tensor]) -> Safetensors {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        data.extend(bytes);
        header.insert((*name).to_owned(), json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
    }
    let header = Value::Object(header).to_string();
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    let quantization = Quantization::from_config(&json!({"quantization_config": config})).unwrap();
    Safetensors::from_bytes(file).unwrap().with_quantization(quantization)
}

fn get(config: &Value, tensors: &[Tensor]) -> Result<(Format, Vec<usize>, Vec<f32>)> {
    let files = checkpoint(config, tensors);
    assert_eq!(files.names(), ["m.weight"]);
    let raw: RawTensor<'_> = files.get("m.weight")?.unwrap();
    let values = raw.decode().unwrap();
    Ok((raw.format, raw.shape, values))
}

/// Bytes that look random.
fn noise(n: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    (0..n).map(|_| next()).collect()
}

/// Scales that half precision holds, and their bytes.
fn halves(n: usize, seed: u64) -> (Vec<f32>, Vec<u8>) {
    let values: Vec<f16> =
        noise(n, seed).iter().map(|b| f16::from_f32((f32::from(*b) + 1.0) / 777.0)).collect();
    (values.iter().map(|x| x.to_f32()).collect(), values.iter().flat_map(|x| x.to_le_bytes()).collect())
}

fn word(bytes: &[u8], i: usize) -> u32 {
    u32::from_le_bytes(bytes[4 * i..][..4].try_into().unwrap())
}

/// Bits `[start, start + bits)` of words that `word` gives.
fn field(word: impl Fn(usize) -> u32, start: usize, bits: u32) -> u32 {
    (0..bits).map(|b| (start + b as usize, b)).map(|(at, b)| (word(at / 32) >> (at % 32) & 1) << b).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn gptq(
        bits in select(vec![2u32, 3, 4, 8]),
        blocks in 1usize..5,
        group in select(vec![-1i64, 8, 32, 48, 64, 128]),
        version in 1u32..3,
        order in select(vec!["none", "runs", "shuffled"]),
        seed in any::<u64>(),
    ) {
        let (inp, out) = (32 * blocks, 32);
        let runs = usize::try_from(group).unwrap_or(inp);
        let (groups, words) = (inp.div_ceil(runs), inp * bits as usize / 32);
        let (codes, zeros) = (noise(4 * words * out, seed), noise(4 * groups * bits as usize, seed ^ 1));
        let (scales, scale_bytes) = halves(groups * out, seed ^ 2);
        let mut g_idx: Vec<usize> = (0..inp).map(|i| i / runs).collect();
        if order == "shuffled" {
            let keys = noise(inp, seed ^ 3);
            let mut by: Vec<usize> = (0..inp).collect();
            by.sort_by_key(|i| keys[*i]);
            g_idx = by.iter().map(|i| i / runs).collect();
        }
        let mut tensors: Vec<Tensor> = vec![
            ("m.qweight", "I32", vec![words, out], codes.clone()),
            ("m.qzeros", "I32", vec![groups, bits as usize], zeros.clone()),
            ("m.scales", "F16", vec![groups, out], scale_bytes),
            ("m.bias", "F16", vec![out], vec![0; 2 * out]),
        ];
        if order != "none" {
            let bytes = g_idx.iter().flat_map(|g| (*g as i32).to_le_bytes()).collect();
            tensors.push(("m.g_idx", "I32", vec![inp], bytes));
        }
        let format = if version == 1 { "gptq" } else { "gptq_v2" };
        let config = json!({"quant_method": "gptq", "bits": bits, "group_size": group, "checkpoint_format": format});
        let (format, shape, got) = get(&config, &tensors).unwrap();
        prop_assert_eq!(shape, [out, inp]);
        let whole = order != "shuffled" && (runs >= inp || runs % 32 == 0);
        prop_assert!(!whole || matches!(format, Format::Affine { .. }), "{format}");
        for o in 0..out {
            for i in 0..inp {
                let g = g_idx[i];
                let code = field(|w| word(&codes, w * out + o), i * bits as usize, bits);
                let zero = field(|w| word(&zeros, g * bits as usize + w), o * bits as usize, bits);
                let zero = if version == 1 { (zero + 1) % (1 << bits) } else { zero };
                let want = (code as f32 - zero as f32) * scales[g * out + o];
                prop_assert_eq!(got[o * inp + i], want, "output {} input {}", o, i);
            }
        }
    }

    #[test]
    fn awq(
        inp in select(vec![32usize, 64, 100, 128, 192]),
        words in 1usize..20,
        group in select(vec![-1i64, 16, 32, 64, 128]),
        has_zeros in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let (out, runs) = (8 * words, usize::try_from(group).unwrap_or(inp));
        let groups = inp.div_ceil(runs);
        let (codes, zeros) = (noise(4 * inp * words, seed), noise(4 * groups * words, seed ^ 1));
        let (scales, scale_bytes) = halves(groups * out, seed ^ 2);
        let mut tensors: Vec<Tensor> = vec![
            ("m.qweight", "I32", vec![inp, words], codes.clone()),
            ("m.scales", "F16", vec![groups, out], scale_bytes),
        ];
        if has_zeros {
            tensors.push(("m.qzeros", "I32", vec![groups, words], zeros.clone()));
        }
        let config = json!({"quant_method": "awq", "bits": 4, "group_size": group, "version": "GEMM"});
        let (_, shape, got) = get(&config, &tensors).unwrap();
        prop_assert_eq!(shape, [out, inp]);
        // Nibble `i` of a word is of this output.
        let order = [0, 2, 4, 6, 1, 3, 5, 7];
        let nibble = |bytes: &[u8], row: usize, o: usize| {
            let at = order.iter().position(|x| *x == o % 8).unwrap();
            word(bytes, row * words + o / 8) >> (4 * at) & 15
        };
        for o in 0..out {
            for i in 0..inp {
                let g = i / runs;
                let zero = if has_zeros { nibble(&zeros, g, o) } else { 8 };
                let want = (nibble(&codes, i, o) as f32 - zero as f32) * scales[g * out + o];
                prop_assert_eq!(got[o * inp + i], want, "output {} input {}", o, i);
            }
        }
    }

    #[test]
    fn compressed_integers(
        bits in 1u32..9,
        cols in select(vec![32usize, 40, 64, 96, 128, 256]),
        rows in 1usize..20,
        group in select(vec![0usize, 8, 32, 64]),
        symmetric in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let runs = if group == 0 { cols } else { group };
        let (groups, words) = (cols.div_ceil(runs), (cols * bits as usize).div_ceil(32));
        let down = (rows * bits as usize).div_ceil(32);
        let (codes, zeros) = (noise(4 * rows * words, seed), noise(4 * down * groups, seed ^ 1));
        let (scales, scale_bytes) = halves(rows * groups, seed ^ 2);
        let shape = [rows as i64, cols as i64].iter().flat_map(|n| n.to_le_bytes()).collect();
        let mut tensors: Vec<Tensor> = vec![
            ("m.weight_packed", "I32", vec![rows, words], codes.clone()),
            ("m.weight_scale", "F16", vec![rows, groups], scale_bytes),
            ("m.weight_shape", "I64", vec![2], shape),
        ];
        if !symmetric {
            tensors.push(("m.weight_zero_point", "I32", vec![down, groups], zeros.clone()));
        }
        let mut weights = json!({"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "channel"});
        if group != 0 {
            (weights["strategy"], weights["group_size"]) = (json!("group"), json!(group));
        }
        let config = json!({"quant_method": "compressed-tensors", "format": "pack-quantized",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}});
        let (format, shape, got) = get(&config, &tensors).unwrap();
        prop_assert_eq!(shape, [rows, cols]);
        prop_assert_eq!(matches!(format, Format::Affine { .. }), cols % 32 == 0 && runs % 32 == 0);
        for r in 0..rows {
            for c in 0..cols {
                let g = c / runs;
                let code = field(|w| word(&codes, r * words + w), c * bits as usize, bits);
                let zero = if symmetric {
                    1 << (bits - 1)
                } else {
                    field(|w| word(&zeros, w * groups + g), r * bits as usize, bits)
                };
                let want = (code as f32 - zero as f32) * scales[r * groups + g];
                prop_assert_eq!(got[r * cols + c], want, "row {} column {}", r, c);
            }
        }
    }

    #[test]
    fn eight_bits(
        rows in 1usize..9,
        cols in select(vec![8usize, 32, 96, 160]),
        block in select(vec![[1usize, 1000], [1000, 1000], [3, 32], [2, 40], [4, 64]]),
        int in any::<bool>(),
        exponents in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let block = [block[0].min(rows), block[1].min(cols)];
        let (down, across) = (rows.div_ceil(block[0]), cols.div_ceil(block[1]));
        // Without the codes of NaN.
        let codes: Vec<u8> = noise(rows * cols, seed).iter().map(|b| if b & 0x7f == 0x7f { 1 } else { *b }).collect();
        let scales: Vec<bf16> = noise(down * across, seed ^ 1)
            .iter()
            .map(|b| bf16::from_f32(if exponents { f32::powi(2.0, i32::from(b % 20) - 10) } else { f32::from(b % 100 + 1) / 99.0 }))
            .collect();
        let tensors: Vec<Tensor> = vec![
            ("m.weight", if int { "I8" } else { "F8_E4M3" }, vec![rows, cols], codes.clone()),
            ("m.weight_scale", "BF16", vec![down, across], scales.iter().flat_map(|s| s.to_le_bytes()).collect()),
            ("m.input_scale", "F32", vec![1], vec![0; 4]),
        ];
        let weights = json!({"num_bits": 8, "type": if int { "int" } else { "float" }, "strategy": "block", "block_structure": block});
        let config = json!({"quant_method": "compressed-tensors", "format": "naive-quantized",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}});
        let mut read = vec![get(&config, &tensors).unwrap()];
        if !int {
            read.push(get(&json!({"quant_method": "fp8", "weight_block_size": block}), &tensors).unwrap());
        }
        for (format, shape, got) in read {
            prop_assert_eq!(shape, [rows, cols]);
            let exponents = scales.iter().all(|s| s.to_f32().to_bits() << 9 == 0);
            let compact = cols % 32 == 0 && (block[1] % 32 == 0 || across == 1);
            prop_assert_eq!(format == Format::MxFp8, !int && exponents && compact, "{}", format);
            for r in 0..rows {
                for c in 0..cols {
                    let code = codes[r * cols + c];
                    let code = if int { f32::from(code as i8) } else { e4m3_to_f32(code) };
                    let want = code * scales[r / block[0] * across + c / block[1]].to_f32();
                    prop_assert_eq!(got[r * cols + c], want, "row {} column {}", r, c);
                }
            }
        }
    }

    #[test]
    fn ternary(stored in 1usize..6, cols in select(vec![4usize, 32, 50, 128]), multiplies in any::<bool>(), seed in any::<u64>()) {
        let codes = noise(stored * cols, seed);
        let tensors: Vec<Tensor> = vec![
            ("m.weight", "U8", vec![stored, cols], codes.clone()),
            ("m.weight_scale", "BF16", vec![1], bf16::from_f32(1.75).to_le_bytes().to_vec()),
        ];
        let class = if multiplies { "autobitlinear" } else { "bitlinear" };
        let (_, shape, got) = get(&json!({"quant_method": "bitnet", "linear_class": class}), &tensors).unwrap();
        prop_assert_eq!(shape, [4 * stored, cols]);
        let scale = if multiplies { 1.75 } else { 1.0 / 1.75 };
        for r in 0..4 * stored {
            for c in 0..cols {
                let code = codes[r % stored * cols + c] >> (2 * (r / stored)) & 3;
                // `3 * scale - scale` is rounded, but no writer makes that code.
                if code < 3 {
                    prop_assert_eq!(got[r * cols + c], (f32::from(code) - 1.0) * scale);
                }
            }
        }
    }

    /// Parts of any shape and type give an error or a tensor.
    #[test]
    fn nonsense_never_panics(
        parts in prop::collection::vec(
            (
                select(vec!["qweight", "qzeros", "scales", "g_idx", "weight", "weight_packed", "weight_scale",
                    "weight_zero_point", "weight_shape", "weight_global_scale", "weight_scale_inv", "weight_scale_2", "bias"]),
                select(vec![("I32", 4usize), ("I64", 8), ("U8", 1), ("I8", 1), ("F8_E4M3", 1), ("F8_E8M0", 1), ("F16", 2), ("F32", 4)]),
                prop::collection::vec(select(vec![0usize, 1, 2, 4, 8, 32, 64]), 0..4),
            ),
            1..5,
        ),
        config in select(vec![
            json!({"quant_method": "gptq", "bits": 4, "group_size": 32}),
            json!({"quant_method": "gptq", "bits": 3, "group_size": -1}),
            json!({"quant_method": "awq", "group_size": 32}),
            json!({"quant_method": "fp8", "weight_block_size": [16, 1]}),
            json!({"quant_method": "fp8"}),
            json!({"quant_method": "bitnet"}),
            json!({"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}),
            json!({"quant_method": "modelopt", "quant_algo": "NVFP4"}),
            json!({"quant_method": "compressed-tensors", "config_groups": {
                "a": {"weights": {"num_bits": 4, "group_size": 32, "symmetric": false}},
                "b": {"weights": {"num_bits": 8, "type": "float"}},
                "c": {"weights": {"num_bits": 4, "type": "float", "group_size": 16}},
                "d": {"weights": {"num_bits": 3, "group_size": -1}},
            }}),
        ]),
        seed in any::<u64>(),
    ) {
        let mut tensors: Vec<Tensor> = Vec::new();
        for (i, (leaf, (dtype, size), shape)) in parts.into_iter().enumerate() {
            let name: &'static str = Box::leak(format!("m.{leaf}").into_boxed_str());
            if tensors.iter().all(|t| t.0 != name) {
                let bytes = noise(size * shape.iter().product::<usize>(), seed ^ i as u64);
                tensors.push((name, dtype, shape, bytes));
            }
        }
        let files = checkpoint(&config, &tensors);
        for name in files.names().iter().map(String::as_str).chain(["m.weight"]) {
            if let Ok(Some(tensor)) = files.get(name) {
                let _ = tensor.decode();
            }
        }
    }
}

fn four_bits(scale: Tensor, extra: Tensor) -> Vec<Tensor> {
    let packed = if extra.0 == "m.weight_scale_2" { "m.weight" } else { "m.weight_packed" };
    vec![(packed, "U8", vec![2, 16], noise(32, 5)), scale, extra]
}

#[test]
fn four_bit_floats() {
    let f32s = |x: f32| x.to_le_bytes().to_vec();
    let codes = noise(32, 5);
    let value =
        |r: usize, c: usize| rillm_quant::E2M1[usize::from(codes[r * 16 + c / 2] >> (4 * (c % 2)) & 15)];
    let nv = |global: Tensor| {
        four_bits(("m.weight_scale", "F8_E4M3", vec![2, 2], vec![0x38, 0x40, 0x30, 0x28]), global)
    };
    let scales = [[1.0, 2.0], [0.5, 0.25]];
    let weights = |group| {
        json!({"quant_method": "compressed-tensors", "config_groups": {"g": {"weights":
        {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": group}}}})
    };
    for (config, tensors, factor) in [
        (weights(16), nv(("m.weight_global_scale", "F32", vec![1], f32s(4.0))), 0.25),
        (
            json!({"quant_method": "modelopt", "quant_algo": "NVFP4"}),
            nv(("m.weight_scale_2", "F32", vec![], f32s(8.0))),
            8.0,
        ),
    ] {
        let (format, shape, got) = get(&config, &tensors).unwrap();
        assert_eq!((format, &shape[..]), (Format::NvFp4, &[2, 32][..]));
        for (at, x) in got.iter().enumerate() {
            let (r, c) = (at / 32, at % 32);
            assert_eq!(*x, value(r, c) * scales[r][c / 16] * factor);
        }
    }
    for bad in [0.0, f32::NAN] {
        let error = get(&weights(16), &nv(("m.weight_global_scale", "F32", vec![1], f32s(bad)))).unwrap_err();
        assert!(error.to_string().contains("weight_global_scale"), "{error}");
    }
    let mx = four_bits(
        ("m.weight_scale", "U8", vec![2, 1], vec![127, 130]),
        ("m.input_scale", "F32", vec![], f32s(1.0)),
    );
    let (format, _, got) = get(&weights(32), &mx).unwrap();
    assert_eq!(format, Format::MxFp4);
    assert!(got.iter().enumerate().all(|(at, x)| *x == value(at / 32, at % 32) * [1.0, 8.0][at / 32]));
}

/// Zero points times half-precision scales need more digits than a half has, but not those of symmetric codes.
#[test]
fn metas_are_as_narrow_as_they_can_be() {
    let gptq = json!({"quant_method": "gptq", "bits": 4, "group_size": 32});
    let tensors = |zero: u8, scale: f32| -> Vec<Tensor> {
        let scale = f16::from_f32(scale).to_le_bytes();
        vec![
            ("m.qweight", "I32", vec![4, 8], noise(128, 1)),
            ("m.qzeros", "I32", vec![1, 1], vec![zero; 4]),
            ("m.scales", "F16", vec![1, 8], scale.repeat(8)),
        ]
    };
    let meta = |zero, scale| match get(&gptq, &tensors(zero, scale)).unwrap().0 {
        Format::Affine { bits: 4, group: 32, meta } => meta,
        other => panic!("{other}"),
    };
    assert_eq!(meta(0x77, 0.1), FloatType::F16);
    assert_eq!(meta(0x66, 0.1), FloatType::F32);
    assert_eq!(meta(0x66, 0.5), FloatType::F16);
}

#[test]
fn parts_that_do_not_belong_together() {
    let gptq = json!({"quant_method": "gptq", "bits": 4, "group_size": 32});
    let base: Vec<Tensor> = vec![
        ("m.qweight", "I32", vec![8, 8], vec![0; 256]),
        ("m.qzeros", "I32", vec![2, 1], vec![0; 8]),
        ("m.scales", "F16", vec![2, 8], vec![0; 32]),
        ("m.g_idx", "I32", vec![64], vec![0; 256]),
    ];
    assert!(get(&gptq, &base).is_ok());
    let with = |i: usize, tensor: Tensor| {
        let mut tensors = base.clone();
        tensors[i] = tensor;
        get(&gptq, &tensors).unwrap_err()
    };
    let e = with(1, ("m.qzeros", "I32", vec![1, 2], vec![0; 8]));
    assert!(
        matches!(&e, Error::WeightShape { name, want, .. } if name == "m.qzeros" && want[..] == [2, 1]),
        "{e}"
    );
    let e = with(0, ("m.qweight", "F32", vec![8, 8], vec![0; 256]));
    assert!(matches!(&e, Error::WeightType { name, .. } if name == "m.qweight"), "{e}");
    let e = with(3, ("m.g_idx", "I32", vec![64], vec![1; 256]));
    assert!(matches!(&e, Error::WeightValue { name, .. } if name == "m.g_idx"), "{e}");
    let e = get(&gptq, &base[..2]).unwrap_err();
    assert!(matches!(&e, Error::MissingWeight { name } if name == "m.scales"), "{e}");

    let mut both = base.clone();
    both.push(("m.weight", "F32", vec![1], vec![0; 4]));
    let e = checkpoint(&gptq, &both).get("m.weight").unwrap_err();
    assert!(matches!(&e, Error::WeightValue { want, .. } if want.contains("qweight")), "{e}");
    // AWQ takes no columns in an order of its own, so nobody would read this.
    let awq = json!({"quant_method": "awq", "group_size": 32});
    assert_eq!(checkpoint(&awq, &base).names(), ["m.g_idx", "m.weight"]);

    let fp8 = json!({"quant_method": "fp8", "weight_block_size": [2, 2]});
    let weight: Tensor = ("m.weight", "F8_E4M3", vec![4, 6], vec![0; 24]);
    let e = get(&fp8, std::slice::from_ref(&weight)).unwrap_err();
    assert!(matches!(&e, Error::MissingWeight { name } if name == "m.weight_scale_inv"), "{e}");
    let e = get(&fp8, &[weight, ("m.weight_scale_inv", "F32", vec![3, 4], vec![0; 48])]).unwrap_err();
    assert!(matches!(&e, Error::WeightShape { want, .. } if want[..] == [2, 3]), "{e}");

    let int4 = json!({"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 4, "group_size": 32}}}});
    let packed: Vec<Tensor> = vec![
        ("m.weight_packed", "I32", vec![2, 8], vec![0; 64]),
        ("m.weight_scale", "F16", vec![2, 1], vec![0; 4]),
        ("m.weight_shape", "I64", vec![2], [2i64, 64].iter().flat_map(|n| n.to_le_bytes()).collect()),
    ];
    let e = get(&int4, &packed).unwrap_err();
    assert!(
        matches!(&e, Error::QuantizationShape { wanted, .. } if wanted.contains("int4 symmetric")),
        "{e}"
    );
}

#[test]
fn heads_that_share_a_quantized_embedding() {
    let online = |skip: Value| json!({"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online", "modules_to_not_convert": skip});
    let floats: Vec<u8> = [0.5f32, -0.25, 0.125, -2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let tensors: Vec<Tensor> = vec![
        ("lm_head.weight", "F32", vec![2, 2], floats.clone()),
        ("model.embed_tokens.weight", "F32", vec![2, 2], floats.clone()),
        ("model.layers.1.a.weight", "F32", vec![2, 2], floats.clone()),
        ("model.layers.11.a.weight", "F32", vec![2, 2], floats),
    ];
    let first = |files: &Safetensors, name| files.get(name).unwrap().unwrap().decode().unwrap()[0];
    let files = checkpoint(&online(Value::Null), &tensors);
    assert_eq!(first(&files, "lm_head.weight"), 0.5);
    assert_eq!(first(&files, "model.embed_tokens.weight"), 0.5);
    assert_eq!(first(&files, "model.layers.1.a.weight"), 0.71875);
    let files = checkpoint(&online(json!(["model.layers.1"])), &tensors);
    assert_eq!(first(&files, "lm_head.weight"), 0.71875);
    assert_eq!(first(&files, "model.layers.1.a.weight"), 0.5);
    assert_eq!(first(&files, "model.layers.11.a.weight"), 0.71875);
    let e = checkpoint(&online(json!([])), &tensors[1..]).get("model.embed_tokens.weight").unwrap_err();
    assert!(matches!(&e, Error::QuantizationOption { key, .. } if key == "modules_to_not_convert"), "{e}");
}
