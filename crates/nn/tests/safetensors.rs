//! Safetensors checkpoints: those of the reference writer are read, hostile ones are errors that say why.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use proptest::prelude::*;
use rillm_nn::{Error, Quantization, Safetensors, WeightSource};
use rillm_quant::{FloatType, Format};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;

/// What the reference implementation writes.
fn written(tensors: &[(&str, Dtype, &[usize], Vec<u8>)]) -> Vec<u8> {
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (name.to_string(), TensorView::new(*dtype, shape.to_vec(), data).unwrap())
    });
    safetensors::serialize(views.collect::<HashMap<_, _>>(), None).unwrap()
}

/// A file with this header and `data` bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn error(bytes: Vec<u8>) -> Error {
    Safetensors::from_bytes(bytes).unwrap_err()
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

#[test]
fn plain_tensors() {
    let bytes = written(&[
        ("a.weight", Dtype::F32, &[2, 2], floats(&[1.0, 2.0, 3.0, -4.0])),
        ("b", Dtype::F16, &[2], vec![0, 0x3c, 0, 0xc0]),
        ("c", Dtype::BF16, &[], vec![0x80, 0x3f]),
        ("empty", Dtype::F32, &[0, 3], vec![]),
        ("ids", Dtype::I64, &[1], vec![0; 8]),
    ]);
    let s = Safetensors::from_bytes(bytes).unwrap();
    assert_eq!(s.names(), ["a.weight", "b", "c", "empty", "ids"]);
    let a = s.get("a.weight").unwrap().unwrap();
    assert_eq!((a.format, &a.shape[..]), (Format::Float(FloatType::F32), &[2, 2][..]));
    assert_eq!(a.decode().unwrap(), [1.0, 2.0, 3.0, -4.0]);
    assert!(matches!(a.codes, std::borrow::Cow::Borrowed(_)));
    assert_eq!(s.get("b").unwrap().unwrap().decode().unwrap(), [1.0, -2.0]);
    assert_eq!(s.get("c").unwrap().unwrap().shape, [0; 0]);
    assert_eq!(s.get("empty").unwrap().unwrap().shape, [0, 3]);
    assert!(s.get("nothing").unwrap().is_none());
    let e = s.get("ids").unwrap_err();
    assert_eq!(e.to_string(), "<memory>: ids: type I64 is not supported");
}

#[test]
fn unknown_types_are_errors_only_when_asked_for() {
    let header = r#"{"x":{"dtype":"F9","shape":[3],"data_offsets":[0,4]},
        "y":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
    let s = Safetensors::from_bytes(file(header, 8)).unwrap();
    assert!(s.get("y").unwrap().is_some());
    assert!(matches!(s.get("x"), Err(Error::UnsupportedDtype { dtype, .. }) if dtype == "F9"));
}

/// Codes of 2 rows of `words` words, `groups` scales of `meta`, and biases unless the scales are bytes.
fn matrix(path: &str, words: usize, groups: usize, meta: Dtype) -> Vec<(String, Dtype, Vec<usize>, Vec<u8>)> {
    let size = meta.bitsize() / 8;
    let mut parts = vec![
        (format!("{path}.weight"), Dtype::U32, vec![2, words], vec![0x21; 8 * words]),
        (format!("{path}.scales"), meta, vec![2, groups], vec![0; 2 * groups * size]),
    ];
    if meta != Dtype::U8 {
        parts.push((format!("{path}.biases"), meta, vec![2, groups], vec![0; 2 * groups * size]));
    }
    parts
}

fn checkpoint(
    parts: &[(String, Dtype, Vec<usize>, Vec<u8>)],
    quantization: serde_json::Value,
) -> Safetensors {
    let parts: Vec<_> = parts.iter().map(|(n, d, s, b)| (n.as_str(), *d, s.as_slice(), b.clone())).collect();
    let quantization = Quantization::from_config(&json!({ "quantization": quantization })).unwrap();
    Safetensors::from_bytes(written(&parts)).unwrap().with_quantization(quantization)
}

#[test]
fn quantized_matrices() {
    let mut parts = matrix("a", 8, 1, Dtype::F32);
    parts.extend(matrix("b", 16, 2, Dtype::BF16));
    parts.extend(matrix("mx", 8, 2, Dtype::U8));
    parts.extend(matrix("nv", 2, 1, Dtype::U8));
    parts.push(("nv.global_scale".into(), Dtype::F32, vec![1], floats(&[5376.0])));
    let s = checkpoint(&parts, json!({"bits": 4, "group_size": 64, "mx": {"mode": "mxfp4"}}));
    assert_eq!(s.names(), ["a.weight", "b.weight", "mx.weight", "nv.weight"]);
    let affine = |bits, group, meta| Format::Affine { bits, group, meta };

    let a = s.get("a.weight").unwrap().unwrap();
    assert_eq!((a.format, &a.shape[..]), (affine(4, 64, FloatType::F32), &[2, 64][..]));
    assert_eq!((a.codes.len(), a.scales.len(), a.biases.len()), (64, 8, 8));
    let b = s.get_shaped("b.weight", &[2, 64]).unwrap().unwrap();
    assert_eq!((b.format, &b.shape[..]), (affine(8, 32, FloatType::BF16), &[2, 64][..]));
    let b = s.get_shaped("b.weight", &[2, 256]).unwrap().unwrap();
    assert_eq!((b.format, &b.shape[..]), (affine(2, 128, FloatType::BF16), &[2, 256][..]));
    let mx = s.get("mx.weight").unwrap().unwrap();
    assert_eq!((mx.format, &mx.shape[..], mx.factor), (Format::MxFp4, &[2, 64][..], 1.0));
    let nv = s.get("nv.weight").unwrap().unwrap();
    assert_eq!((nv.format, &nv.shape[..], nv.factor), (Format::NvFp4, &[2, 16][..], 2.0));
}

#[test]
fn quantized_matrices_that_do_not_fit() {
    let settings = json!({"bits": 4, "group_size": 64, "dense": false, "listed": true, "bare": true});
    let shape_error = |parts: &[_], name: &str| {
        let e = checkpoint(parts, settings.clone()).get(name).unwrap_err();
        assert!(matches!(&e, Error::QuantizationShape { name: n, .. } if n == name), "{e}");
    };
    shape_error(&matrix("p", 7, 2, Dtype::F32), "p.weight");
    // Listed with other settings than the shapes have, and bytes where the setting wants floats.
    shape_error(&matrix("listed", 8, 2, Dtype::F32), "listed.weight");
    shape_error(&matrix("listed", 8, 1, Dtype::U8), "listed.weight");
    let mut parts = matrix("p", 8, 1, Dtype::F32);
    parts.pop();
    shape_error(&parts, "p.weight");
    parts.push(("p.biases".into(), Dtype::F16, vec![2, 1], vec![0; 4]));
    shape_error(&parts, "p.weight");
    let mut parts = matrix("p", 8, 1, Dtype::F32);
    (parts[1].2, parts[2].2) = (vec![2], vec![2]);
    shape_error(&parts, "p.weight");

    let bare = [("bare.weight".to_owned(), Dtype::U32, vec![2, 8], vec![0; 64])];
    let e = checkpoint(&bare, settings.clone()).get("bare.weight").unwrap_err();
    assert!(matches!(e, Error::MissingWeight { name } if name == "bare.scales"));
    let e = checkpoint(&matrix("dense", 8, 1, Dtype::F32), settings).get("dense.weight").unwrap_err();
    assert!(matches!(e, Error::UnsupportedDtype { dtype, .. } if dtype == "U32"));
}

#[test]
fn hostile_headers() {
    let x = |shape: &str, start: u64, end: u64| {
        format!(r#"{{"x":{{"dtype":"F32","shape":{shape},"data_offsets":[{start},{end}]}}}}"#)
    };
    let e = error(vec![1, 2, 3]);
    assert!(matches!(e, Error::Truncated { want: 8, got: 3, .. }), "{e}");
    let e = error(file("", 0)[..8].iter().map(|_| 0xff).collect());
    assert!(matches!(e, Error::Truncated { want: u64::MAX, got: 8, .. }), "{e}");
    for bad in ["", "{", "[]", "\u{1}", r#"{"x":3}"#, r#"{"x":{"dtype":"F32"}}"#, &x("[-1]", 0, 0)] {
        let e = error(file(bad, 0));
        assert!(matches!(e, Error::Json { what: "header", .. }), "{bad}: {e}");
    }
    let e = error(file(&"[".repeat(100_000), 0));
    assert!(matches!(e, Error::Json { .. }), "{e}");
    let mut bytes = file(&x("[1]", 0, 4), 4);
    bytes[10] = 0xff;
    assert!(matches!(error(bytes), Error::Json { .. }));

    let e = error(file(&x("[2]", 0, 8), 4));
    assert!(matches!(&e, Error::Truncated { what, want, got, .. } if what == "x" && *want == got + 4), "{e}");
    let e = error(file(&x("[2]", 4, 0), 8));
    assert!(matches!(e, Error::Offsets { start: 4, end: 0, want: 0, .. }), "{e}");
    let e = error(file(&x("[1]", 4, 8), 8));
    assert!(matches!(e, Error::Offsets { start: 4, end: 8, want: 0, .. }), "{e}");
    let e = error(file(&x("[1]", 0, 4), 5));
    assert!(matches!(e, Error::TrailingBytes { got: 1, .. }), "{e}");
    let e = error(file(&x("[3]", 0, 8), 8));
    assert!(matches!(e, Error::ByteLength { want: 12, got: 8, .. }), "{e}");
    for huge in ["[4294967296,4294967296]", "[18446744073709551615]"] {
        let e = error(file(&x(huge, 0, 8), 8));
        assert!(matches!(e, Error::ShapeOverflow { .. }), "{e}");
    }
    let overlap = r#"{"x":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},
        "y":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#;
    let e = error(file(overlap, 6));
    assert!(matches!(&e, Error::Offsets { tensor, start: 2, want: 4, .. } if tensor == "y"), "{e}");
    let twice = r#"{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},
        "x":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
    let e = error(file(twice, 2));
    assert!(matches!(&e, Error::Duplicate { name, .. } if name == "x"), "{e}");
}

#[test]
fn a_header_beyond_the_limit() {
    let e = error(file(&" ".repeat(100_000_001), 0));
    assert!(matches!(e, Error::HeaderTooLong { max: 100_000_000, got: 100_000_001, .. }), "{e}");
}

fn write(folder: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    fs::write(folder.join(name), bytes).unwrap();
}

fn one(name: &str) -> Vec<u8> {
    written(&[(name, Dtype::F32, &[1], floats(&[1.0]))])
}

#[test]
fn which_files_of_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let names = || Safetensors::open(folder.path()).unwrap().names();
    let e = Safetensors::open(folder.path()).unwrap_err();
    assert!(matches!(e, Error::NoCheckpoint { .. }), "{e}");
    write(folder.path(), "consolidated.safetensors", one("c"));
    assert_eq!(names(), ["c"]);
    write(folder.path(), "model-00002-of-00002.safetensors", one("b"));
    write(folder.path(), "model-00001-of-00002.safetensors", one("a"));
    assert_eq!(names(), ["a", "b"]);
    write(folder.path(), "model.safetensors", one("m"));
    assert_eq!(names(), ["m"]);
    let index = json!({"weight_map": {"a": "model-00001-of-00002.safetensors"}});
    write(folder.path(), "model.safetensors.index.json", index.to_string());
    assert_eq!(names(), ["a"]);
    let e = Safetensors::open(&folder.path().join("absent")).unwrap_err();
    assert!(matches!(&e, Error::Io { .. }) && e.to_string().contains("absent"), "{e}");
    write(folder.path(), "empty.safetensors", "");
    let e = Safetensors::open(&folder.path().join("empty.safetensors")).unwrap_err();
    assert!(matches!(e, Error::Truncated { want: 8, got: 0, .. }), "{e}");
}

#[test]
fn hostile_indexes() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "a.safetensors", one("a"));
    write(folder.path(), "b.safetensors", one("a"));
    let open = |index: &str| {
        write(folder.path(), "model.safetensors.index.json", index);
        Safetensors::open(folder.path())
    };
    for bad in ["", "{}", r#"{"weight_map":[]}"#, r#"{"weight_map":{"a":1}}"#] {
        let e = open(bad).unwrap_err();
        assert!(matches!(e, Error::Json { what: "index", .. }), "{e}");
    }
    for shard in ["../a.safetensors", "/etc/passwd", "..", "", "x/a.safetensors", "x\\\\y"] {
        let e = open(&format!(r#"{{"weight_map":{{"a":"{shard}"}}}}"#)).unwrap_err();
        assert!(matches!(e, Error::ShardName { .. }), "{shard}: {e}");
    }
    let e = open(r#"{"weight_map":{"a":"gone.safetensors"}}"#).unwrap_err();
    assert!(matches!(&e, Error::MissingShard { shard, .. } if shard == "gone.safetensors"), "{e}");
    let e = open(r#"{"weight_map":{"z":"a.safetensors"}}"#).unwrap_err();
    assert!(matches!(&e, Error::MissingInShard { tensor, .. } if tensor == "z"), "{e}");
    let e = open(r#"{"weight_map":{"a":"a.safetensors","b":"b.safetensors"}}"#).unwrap_err();
    assert!(matches!(&e, Error::Duplicate { name, .. } if name == "a"), "{e}");
}

#[test]
fn golden_checkpoints_load() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let mut loaded = 0;
    for folder in fs::read_dir(golden).unwrap() {
        let folder = folder.unwrap().path();
        let Ok(config) = fs::read(folder.join("config.json")) else { continue };
        let config = serde_json::from_slice(&config).unwrap();
        let quantization = Quantization::from_config(&config).unwrap();
        let s = Safetensors::open(&folder).unwrap().with_quantization(quantization);
        for name in s.names() {
            match s.get(&name) {
                Ok(tensor) => {
                    // Families without shared experts store matrices of no columns for them.
                    let tensor = tensor.unwrap();
                    assert_eq!(tensor.codes.is_empty(), tensor.shape.contains(&0), "{name}");
                }
                // Old GPT-2 checkpoints carry their attention masks, which nobody asks for.
                Err(Error::UnsupportedDtype { dtype, .. }) => assert_eq!(dtype, "BOOL", "{name}"),
                Err(e) => panic!("{e}"),
            }
        }
        loaded += 1;
    }
    assert!(loaded > 20, "{loaded}");
}

proptest! {
    #[test]
    fn mutations_never_panic(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let parts = matrix("m", 8, 1, Dtype::F16);
        let parts: Vec<_> = parts.iter().map(|(n, d, s, b)| (n.as_str(), *d, &s[..], b.clone())).collect();
        let mut bytes = written(&parts);
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(s) = Safetensors::from_bytes(bytes) {
            for name in s.names() {
                if let Ok(Some(tensor)) = s.get(&name) {
                    let _ = tensor.decode();
                }
            }
        }
    }
}
