//! GGUF files, versions 2 and 3: metadata and tensors under the names they are stored by. Translates neither;
//! not a writer.
//!
//! Layout: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod cursor;
mod texts;
mod value;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use rillm_quant::{FloatType, Format, RawTensor};

use self::cursor::Cursor;
pub use self::texts::Texts;
pub use self::value::{Array, NumberType, Numbers, Value};
use super::WeightSource;
use super::map::Bytes;
use crate::{Error, Result};

/// GGML has no tensors of more dimensions.
const MAX_DIMS: u32 = 4;
const DEFAULT_ALIGNMENT: usize = 32;
const ALIGNMENT_KEY: &str = "general.alignment";

/// A GGUF file, mapped into memory.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    bytes: Bytes,
    metadata: HashMap<String, Value>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    kind: Kind,
    /// Outermost first.
    shape: Vec<usize>,
    /// In the file; empty where the format is not known.
    range: Range<usize>,
}

/// The type of a tensor.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Known(Format),
    /// The number of a type without a codec.
    Other(u32),
}

impl Gguf {
    /// Opens a file and reads its metadata and the list of its tensors.
    ///
    /// # Errors
    /// [`Error::Io`], and what a file can have wrong with it, such as [`Error::GgufMagic`],
    /// [`Error::Truncated`], [`Error::Overlap`].
    pub fn open(path: &Path) -> Result<Self> {
        Self::parse(path.to_owned(), Bytes::map(path)?)
    }

    /// A file that is in memory.
    ///
    /// # Errors
    /// Those of [`open`](Self::open) but [`Error::Io`].
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        Self::parse("<memory>".into(), Bytes::Owned(bytes))
    }

    fn parse(path: PathBuf, bytes: Bytes) -> Result<Self> {
        let mut cursor = Cursor::new(&path, &bytes);
        let (tensors, values) = header(&mut cursor)?;
        let mut metadata = HashMap::new();
        for _ in 0..values {
            let key = cursor.text("a metadata key")?;
            let value = Value::read(&mut cursor, key)?;
            if metadata.insert(key.to_owned(), value).is_some() {
                return Err(Error::Duplicate { path: path.clone(), name: key.to_owned() });
            }
        }
        let infos = (0..tensors).map(|_| Info::read(&mut cursor)).collect::<Result<Vec<_>>>()?;
        let alignment = alignment(&cursor, metadata.get(ALIGNMENT_KEY))?;
        let start = cursor.position().next_multiple_of(alignment);
        let tensors = entries(&cursor, infos, start, alignment)?;
        Ok(Self { path, bytes, metadata, tensors })
    }

    /// The value of a metadata key.
    pub fn metadata(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// `value`, which is that of `key`, or an error if there is none.
    ///
    /// # Errors
    /// [`Error::MissingMetadata`].
    pub fn require<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| Error::MissingMetadata { path: self.path.clone(), key: key.to_owned() })
    }

    fn convert<'a, T>(
        &'a self,
        key: &str,
        want: &'static str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        let (path, key) = (&self.path, key);
        convert(value).map(Some).ok_or_else(|| Error::MetadataType {
            path: path.clone(),
            key: key.to_owned(),
            want,
            got: value.to_string(),
        })
    }

    /// Text, if the key is there.
    ///
    /// # Errors
    /// [`Error::MetadataType`].
    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        self.convert(key, "text", Value::as_str)
    }

    /// An integer of any type that is not negative, if the key is there.
    ///
    /// # Errors
    /// [`Error::MetadataType`].
    pub fn usize(&self, key: &str) -> Result<Option<usize>> {
        self.convert(key, "an unsigned integer", Value::as_usize)
    }

    /// A number, if the key is there.
    ///
    /// # Errors
    /// [`Error::MetadataType`].
    pub fn f32(&self, key: &str) -> Result<Option<f32>> {
        self.convert(key, "a number", |v| Some(v.as_f64()? as f32))
    }

    /// A truth value, if the key is there.
    ///
    /// # Errors
    /// [`Error::MetadataType`].
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.convert(key, "true or false", Value::as_bool)
    }

    /// An array of texts, if the key is there.
    ///
    /// # Errors
    /// [`Error::MetadataType`].
    pub fn strings(&self, key: &str) -> Result<Option<&Texts>> {
        self.convert(key, "an array of texts", Value::as_strings)
    }

    /// An array of integers, if the key is there.
    ///
    /// # Errors
    /// [`Error::MetadataType`].
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        self.convert(key, "an array of integers", Value::to_integers)
    }

    /// An array of numbers, if the key is there.
    ///
    /// # Errors
    /// [`Error::MetadataType`].
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f32>>> {
        self.convert(key, "an array of numbers", Value::to_floats)
    }

    /// The shape of a tensor, outermost dimension first, if it is there.
    pub fn shape(&self, tensor: &str) -> Option<&[usize]> {
        Some(&self.tensors.get(tensor)?.shape)
    }
}

impl WeightSource for Gguf {
    fn get(&self, name: &str) -> Result<Option<RawTensor<'_>>> {
        let Some(entry) = self.tensors.get(name) else { return Ok(None) };
        let Kind::Known(format) = entry.kind else {
            return Err(Error::UnsupportedDtype {
                path: self.path.clone(),
                tensor: name.to_owned(),
                dtype: entry.kind.to_string(),
            });
        };
        let codes = Cow::Borrowed(&self.bytes[entry.range.clone()]);
        RawTensor::new(format, entry.shape.clone(), [codes, Cow::Borrowed(&[]), Cow::Borrowed(&[])])
            .map(Some)
            .map_err(|source| Error::Quant { name: name.to_owned(), source })
    }

    fn release(&self, bytes: &[u8]) {
        self.bytes.release(bytes);
    }

    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }
}

/// Numbers of tensors and of metadata values, each checked against the size of the file.
fn header(cursor: &mut Cursor<'_>) -> Result<(u64, u64)> {
    /// The least bytes of a tensor's description: an empty name, no dimensions, type and offset.
    const TENSOR: u64 = 8 + 4 + 4 + 8;
    /// The least bytes of a value: an empty key, type and one byte.
    const VALUE: u64 = 8 + 4 + 1;
    let got = cursor.array("the magic number")?;
    if got != *b"GGUF" {
        return Err(Error::GgufMagic { path: cursor.path().to_owned(), got });
    }
    let got = cursor.u32("the version")?;
    if !matches!(got, 2 | 3) {
        return Err(Error::GgufVersion { path: cursor.path().to_owned(), got });
    }
    let tensors = cursor.u64("the number of tensors")?;
    let values = cursor.u64("the number of metadata values")?;
    cursor.check(tensors.saturating_mul(TENSOR), "the list of tensors")?;
    cursor.check(values.saturating_mul(VALUE), "the metadata")?;
    Ok((tensors, values))
}

fn alignment(cursor: &Cursor<'_>, value: Option<&Value>) -> Result<usize> {
    /// Far beyond what any file has; keeps rounding up from overflowing.
    const MAX: usize = 1 << 24;
    match value {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(value) => {
            let n = value.as_usize().filter(|n| n.is_power_of_two() && *n <= MAX);
            n.ok_or_else(|| Error::MetadataType {
                path: cursor.path().to_owned(),
                key: ALIGNMENT_KEY.to_owned(),
                want: "a power of two",
                got: value.to_string(),
            })
        }
    }
}

/// A tensor as the file lists it.
struct Info<'a> {
    name: &'a str,
    /// Innermost first.
    dims: Vec<u64>,
    kind: u32,
    /// From the start of the data.
    offset: u64,
}

impl<'a> Info<'a> {
    fn read(cursor: &mut Cursor<'a>) -> Result<Self> {
        let name = cursor.text("a tensor's name")?;
        let rank = cursor.u32(name)?;
        if rank > MAX_DIMS {
            return Err(cursor.wrong(format!("{name}: dimensions"), "at most 4", u64::from(rank)));
        }
        let dims = (0..rank).map(|_| cursor.u64(name)).collect::<Result<Vec<_>>>()?;
        if dims.contains(&0) {
            // No model has them, and without values any number of rows would fit the file.
            return Err(cursor.wrong(format!("{name}: a dimension"), "at least 1", 0));
        }
        Ok(Self { name, dims, kind: cursor.u32(name)?, offset: cursor.u64(name)? })
    }

    fn shape(&self, path: &Path) -> Result<Vec<usize>> {
        let shape: Option<Vec<usize>> = self.dims.iter().rev().map(|&d| usize::try_from(d).ok()).collect();
        let product = self.dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
        shape.filter(|_| product.is_some()).ok_or_else(|| Error::ShapeOverflow {
            path: path.to_owned(),
            tensor: self.name.to_owned(),
            shape: self.dims.iter().rev().copied().collect(),
        })
    }
}

/// Checks what the file says of its tensors: that each lies in the file, aligned, and none in another.
fn entries(
    cursor: &Cursor<'_>,
    mut infos: Vec<Info<'_>>,
    start: usize,
    alignment: usize,
) -> Result<BTreeMap<String, Entry>> {
    infos.sort_by_key(|info| info.offset);
    let path = cursor.path();
    let mut entries = BTreeMap::new();
    let mut last: Option<(&str, u64)> = None;
    for info in &infos {
        let name = info.name;
        if !info.offset.is_multiple_of(alignment as u64) {
            let what = format!("{name}: offset");
            return Err(cursor.wrong(what, "a multiple of the alignment", info.offset));
        }
        let shape = info.shape(path)?;
        let kind = Kind::new(info.kind);
        let size = kind.size(name, &shape)?;
        let end = info.offset.saturating_add(size);
        cursor.check_end((start as u64).saturating_add(end), name)?;
        if let Some((other, other_end)) = last
            && info.offset < other_end
        {
            let (tensor, other) = (name.to_owned(), other.to_owned());
            return Err(Error::Overlap { path: path.to_owned(), tensor, other });
        }
        last = Some((name, end));
        // Both are within the file, which is in memory.
        let range = start + info.offset as usize..start + end as usize;
        if entries.insert(name.to_owned(), Entry { kind, shape, range }).is_some() {
            return Err(Error::Duplicate { path: path.to_owned(), name: name.to_owned() });
        }
    }
    Ok(entries)
}

impl Kind {
    fn new(number: u32) -> Self {
        Self::Known(match number {
            0 => Format::Float(FloatType::F32),
            1 => Format::Float(FloatType::F16),
            2 => Format::Q4_0,
            3 => Format::Q4_1,
            6 => Format::Q5_0,
            7 => Format::Q5_1,
            8 => Format::Q8_0,
            12 => Format::Q4K,
            13 => Format::Q5K,
            14 => Format::Q6K,
            30 => Format::Float(FloatType::BF16),
            39 => Format::MxFp4Blocks,
            _ => return Self::Other(number),
        })
    }

    /// Bytes of a tensor; 0 where the type has no codec.
    fn size(self, name: &str, shape: &[usize]) -> Result<u64> {
        let Self::Known(format) = self else { return Ok(0) };
        let quant = |source| Error::Quant { name: name.to_owned(), source };
        let (cols, lead) = shape.split_last().map_or((1, &[][..]), |(cols, lead)| (*cols, lead));
        let row = format.row_bytes(cols).map_err(quant)?[0] as u64;
        let size = lead.iter().try_fold(row, |n, &d| n.checked_mul(d as u64));
        size.ok_or_else(|| quant(rillm_quant::Error::Overflow { shape: shape.to_vec() }))
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let number = match self {
            Self::Known(format) => return write!(f, "{format}"),
            Self::Other(number) => *number,
        };
        let name = match number {
            9 => "Q8_1",
            10 => "Q2_K",
            11 => "Q3_K",
            15 => "Q8_K",
            16 => "IQ2_XXS",
            17 => "IQ2_XS",
            18 => "IQ3_XXS",
            19 => "IQ1_S",
            20 => "IQ4_NL",
            21 => "IQ3_S",
            22 => "IQ2_S",
            23 => "IQ4_XS",
            24 => "I8",
            25 => "I16",
            26 => "I32",
            27 => "I64",
            28 => "F64",
            29 => "IQ1_M",
            34 => "TQ1_0",
            35 => "TQ2_0",
            _ => return write!(f, "number {number}"),
        };
        f.write_str(name)
    }
}
