//! GGUF files: one of the reference writer is read, hostile ones are errors that say why.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use rillm_nn::weights::{Array, Texts, Value};
use rillm_nn::{Error, Gguf, WeightSource};
use rillm_quant::{FloatType, Format};

/// Written by `data/make_gguf.py`.
const TINY: &[u8] = include_bytes!("data/tiny.gguf");

fn tiny() -> Gguf {
    Gguf::from_bytes(TINY.to_vec()).unwrap()
}

#[test]
fn metadata_of_the_reference_writer() {
    let g = tiny();
    assert_eq!(g.str("general.architecture").unwrap(), Some("llama"));
    assert_eq!(g.str("test.text").unwrap(), Some("schöne Grüße"));
    assert_eq!(g.usize("test.u8").unwrap(), Some(200));
    assert_eq!(g.metadata("test.i8"), Some(&Value::I64(-3)));
    assert_eq!(g.usize("test.u16").unwrap(), Some(65535));
    assert_eq!(g.metadata("test.i16"), Some(&Value::I64(-300)));
    assert_eq!(g.usize("test.u32").unwrap(), Some(4_000_000_000));
    assert_eq!(g.metadata("test.i32"), Some(&Value::I64(-70_000)));
    assert_eq!(g.metadata("test.u64"), Some(&Value::U64(1 << 63)));
    assert_eq!(g.metadata("test.i64"), Some(&Value::I64(-(1 << 40))));
    assert_eq!(g.f32("test.f32").unwrap(), Some(1e-5));
    assert_eq!(g.metadata("test.f64"), Some(&Value::F64(0.1)));
    assert_eq!(g.bool("test.bool").unwrap(), Some(true));
    assert_eq!(*g.strings("test.strings").unwrap().unwrap(), Texts::from_iter(["<s>", "", "▁the"]));
    assert_eq!(g.floats("test.floats").unwrap().unwrap(), [0.0, -1.5, 2.25]);
    assert_eq!(g.integers("test.integers").unwrap().unwrap(), [1, -2, 3]);
    assert_eq!(g.metadata("test.bools"), Some(&Value::Array(Array::Bools(vec![true, false]))));
    let Some(Value::Array(Array::Arrays(nested))) = g.metadata("test.nested") else { panic!() };
    assert_eq!(Value::Array(nested[0].clone()).to_integers().unwrap(), [1, 2]);
    assert_eq!(g.usize("absent").unwrap(), None);
    let e = g.require("absent", g.usize("absent").unwrap()).unwrap_err();
    assert_eq!(e.to_string(), "<memory>: no metadata key absent");
    let e = g.usize("test.text").unwrap_err();
    assert!(e.to_string().ends_with("test.text: wanted an unsigned integer, got \"schöne Grüße\""), "{e}");
    assert!(matches!(g.usize("test.i8"), Err(Error::MetadataType { .. })));
    assert!(matches!(g.integers("test.floats"), Err(Error::MetadataType { .. })));
}

#[test]
fn tensors_of_the_reference_writer() {
    let g = tiny();
    let get = |name: &str| g.get(name).unwrap().unwrap();
    assert_eq!(g.shape("cube").unwrap(), [2, 3, 4]);
    assert_eq!(get("cube").decode().unwrap(), (0..24u8).map(f32::from).collect::<Vec<_>>());
    assert_eq!(get("vector").shape, [5]);
    assert_eq!(get("f16").format, Format::Float(FloatType::F16));
    for (name, format) in [
        ("bf16", Format::Float(FloatType::BF16)),
        ("q4_0", Format::Q4_0),
        ("q4_1", Format::Q4_1),
        ("q5_0", Format::Q5_0),
        ("q5_1", Format::Q5_1),
        ("q8_0", Format::Q8_0),
        ("q4_k", Format::Q4K),
        ("q5_k", Format::Q5K),
        ("q6_k", Format::Q6K),
    ] {
        let tensor = get(name);
        assert_eq!((tensor.format, &tensor.shape[..]), (format, &[2, 256][..]));
        let expected = get(&format!("{name}.expected")).decode().unwrap();
        for (got, want) in tensor.decode().unwrap().iter().zip(&expected) {
            assert!((got - want).abs() <= 1e-6 * want.abs().max(1.0), "{name}: {got} {want}");
        }
    }
    let e = g.get("q2_k").unwrap_err();
    assert_eq!(e.to_string(), "<memory>: q2_k: type Q2_K is not supported");
    assert!(g.get("nothing").unwrap().is_none());
    assert!(g.names().contains(&"q2_k".to_owned()));
}

#[test]
fn a_file_on_disk() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), TINY).unwrap();
    assert_eq!(Gguf::open(file.path()).unwrap().names(), tiny().names());
    let e = Gguf::open(&file.path().with_extension("absent")).unwrap_err();
    assert!(matches!(e, Error::Io { .. }), "{e}");
}

/// A file under construction: header, then values and tensors in order.
#[derive(Clone)]
struct Draft {
    tensors: u64,
    values: u64,
    body: Vec<u8>,
}

impl Draft {
    fn new() -> Self {
        Self { tensors: 0, values: 0, body: Vec::new() }
    }
    fn text(mut self, text: &[u8]) -> Self {
        self.body.extend((text.len() as u64).to_le_bytes());
        self.body.extend(text);
        self
    }
    fn u32(mut self, n: u32) -> Self {
        self.body.extend(n.to_le_bytes());
        self
    }
    fn u64(mut self, n: u64) -> Self {
        self.body.extend(n.to_le_bytes());
        self
    }
    fn key(mut self, key: &str, kind: u32) -> Self {
        self.values += 1;
        self.text(key.as_bytes()).u32(kind)
    }
    fn tensor(mut self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Self {
        self.tensors += 1;
        let head = self.text(name.as_bytes()).u32(dims.len() as u32);
        dims.iter().fold(head, |draft, d| draft.u64(*d)).u32(kind).u64(offset)
    }
    /// The file with `data` bytes of data after the padding.
    fn file(self, data: usize) -> Vec<u8> {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(self.tensors.to_le_bytes());
        file.extend(self.values.to_le_bytes());
        file.extend(self.body);
        file.resize(file.len().next_multiple_of(32) + data, 0);
        file
    }
    fn error(self, data: usize) -> Error {
        Gguf::from_bytes(self.file(data)).unwrap_err()
    }
}

#[test]
fn hostile_headers() {
    let e = Gguf::from_bytes(b"GGU".to_vec()).unwrap_err();
    assert!(matches!(e, Error::Truncated { want: 4, got: 3, .. }), "{e}");
    let e = Gguf::from_bytes(b"GGML\0\0\0\0".to_vec()).unwrap_err();
    assert!(matches!(e, Error::GgufMagic { got: [b'G', b'G', b'M', b'L'], .. }), "{e}");
    for version in [0u32, 1, 4, 3u32.swap_bytes()] {
        let mut file = Draft::new().file(0);
        file[4..8].copy_from_slice(&version.to_le_bytes());
        let e = Gguf::from_bytes(file).unwrap_err();
        assert!(matches!(e, Error::GgufVersion { got, .. } if got == version), "{e}");
    }
    for count in [2, 1 << 40, u64::MAX] {
        let mut draft = Draft::new();
        draft.tensors = count;
        assert!(matches!(draft.clone().error(0), Error::Truncated { .. }));
        (draft.tensors, draft.values) = (0, count);
        assert!(matches!(draft.error(0), Error::Truncated { .. }));
    }
}

#[test]
fn hostile_metadata() {
    let key = |kind| Draft::new().key("k", kind);
    let e = key(13).error(0);
    assert!(matches!(&e, Error::GgufType { key, got: 13, .. } if key == "k"), "{e}");
    for len in [100, 1 << 40, u64::MAX] {
        let e = key(8).u64(len).error(0);
        assert!(matches!(&e, Error::Truncated { what, .. } if what == "k"), "{e}");
        for element in 0..13 {
            let e = key(9).u32(element).u64(len).error(0);
            assert!(matches!(&e, Error::Truncated { what, .. } if what == "k"), "{element}: {e}");
        }
        let mut draft = Draft::new();
        draft.values = 1;
        assert!(matches!(draft.u64(len).error(32), Error::Truncated { .. }));
    }
    let e = key(8).text(b"\xff\xfe").error(0);
    assert!(matches!(&e, Error::GgufText { what, .. } if what == "k"), "{e}");
    let e = key(7).u32(2).error(0);
    assert!(matches!(e, Error::GgufValue { want: "0 or 1", got: 2, .. }), "{e}");
    let deep = (0..200).fold(key(9), |draft, _| draft.u32(9).u64(1));
    let e = deep.error(0);
    assert!(matches!(e, Error::GgufValue { want: "arrays nested at most 4 deep", .. }), "{e}");
    let e = key(4).u32(1).key("k", 4).u32(2).error(0);
    assert!(matches!(&e, Error::Duplicate { name, .. } if name == "k"), "{e}");
    for alignment in [0, 3, 1 << 30] {
        let e = Draft::new().key("general.alignment", 4).u32(alignment).error(0);
        assert!(matches!(e, Error::MetadataType { want: "a power of two", .. }), "{e}");
    }
}

#[test]
fn alignment_moves_the_data() {
    let mut file = Draft::new().key("general.alignment", 4).u32(256).tensor("t", &[1], 0, 0).file(0);
    file.resize(256, 0);
    file.extend(1.5f32.to_le_bytes());
    let g = Gguf::from_bytes(file).unwrap();
    assert_eq!(g.get("t").unwrap().unwrap().decode().unwrap(), [1.5]);
}

#[test]
fn hostile_tensors() {
    let t = |dims: &[u64], kind, offset| Draft::new().tensor("t", dims, kind, offset);
    let e = t(&[1; 5], 0, 0).error(64);
    assert!(matches!(e, Error::GgufValue { want: "at most 4", got: 5, .. }), "{e}");
    let e = t(&[0, 1 << 34], 0, 0).error(64);
    assert!(matches!(e, Error::GgufValue { want: "at least 1", got: 0, .. }), "{e}");
    let e = t(&[1], 0, 4).error(64);
    assert!(matches!(e, Error::GgufValue { want: "a multiple of the alignment", got: 4, .. }), "{e}");
    let e = t(&[9], 0, 0).error(32);
    assert!(matches!(&e, Error::Truncated { what, want: 100, got: 96, .. } if what == "t"), "{e}");
    for offset in [64, 1 << 50, u64::MAX - 31] {
        let e = t(&[1], 0, offset).error(64);
        assert!(matches!(e, Error::Truncated { .. }), "{e}");
        let e = t(&[1], 10, offset).error(32);
        assert!(matches!(e, Error::Truncated { .. }), "{e}");
    }
    let e = t(&[1 << 40, 1 << 40], 0, 0).error(64);
    assert!(matches!(e, Error::ShapeOverflow { .. }), "{e}");
    let e = t(&[1 << 30, 1 << 33], 0, 0).error(64);
    assert!(
        matches!(
            e,
            Error::Quant { source: rillm_quant::Error::Overflow { .. }, .. } | Error::Truncated { .. }
        ),
        "{e}"
    );
    let e = t(&[33], 2, 0).error(64);
    assert!(matches!(e, Error::Quant { source: rillm_quant::Error::Group { .. }, .. }), "{e}");
    let e = t(&[1], 0, 0).tensor("t", &[1], 0, 32).error(64);
    assert!(matches!(&e, Error::Duplicate { name, .. } if name == "t"), "{e}");
    let e = t(&[9], 0, 0).tensor("u", &[1], 0, 32).error(64);
    assert!(matches!(&e, Error::Overlap { tensor, other, .. } if tensor == "u" && other == "t"), "{e}");
    let unknown = Gguf::from_bytes(t(&[1], 77, 0).file(64)).unwrap();
    let e = unknown.get("t").unwrap_err();
    assert!(matches!(&e, Error::UnsupportedDtype { dtype, .. } if dtype == "number 77"), "{e}");
}

#[test]
fn every_truncation_is_an_error() {
    // All that is not the padding after the last tensor.
    for len in (0..TINY.len() - 256).step_by(7) {
        assert!(Gguf::from_bytes(TINY[..len].to_vec()).is_err(), "{len}");
    }
}

proptest! {
    #[test]
    fn mutations_never_panic(edits in prop::collection::vec((0usize..2500, any::<u8>()), 1..8)) {
        let mut bytes = TINY.to_vec();
        for (at, byte) in edits {
            bytes[at] = byte;
        }
        if let Ok(g) = Gguf::from_bytes(bytes) {
            for name in g.names() {
                if let Ok(Some(tensor)) = g.get(&name) {
                    let _ = tensor.decode();
                }
            }
        }
    }
}
