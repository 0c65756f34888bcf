//! Safetensors checkpoints, one file or sharded, with matrices quantized by MLX; those that other libraries quantized
//! are converted by `foreign`. Not a writer.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use rillm_quant::{FloatType, Format, RawTensor};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::WeightSource;
use super::foreign::Module;
use super::map::Bytes;
use super::quantization::{Decision, Mode, Parts, Quantization, Setting};
use crate::{Error, Result};

const INDEX: &str = "model.safetensors.index.json";
/// The limit of the reference implementation.
const MAX_HEADER: u64 = 100_000_000;
/// `global_scale` of nvfp4 is the largest magnitude of the tensor; 2688 = 448 * 6 is that of E4M3 times E2M1.
const NVFP4_MAX: f32 = 2688.0;

/// A safetensors checkpoint, mapped into memory.
#[derive(Debug)]
pub struct Safetensors {
    files: Vec<File>,
    tensors: BTreeMap<String, Entry>,
    quantization: Quantization,
}

#[derive(Debug)]
struct File {
    path: PathBuf,
    bytes: Bytes,
}

#[derive(Debug)]
struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// In the file.
    range: Range<usize>,
}

/// The type of stored values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Dtype {
    Float(FloatType),
    U32,
    U8,
    I8,
    I32,
    I64,
    /// 8-bit floats with 3 bits of mantissa.
    E4M3,
    /// Exponents of 8 bits.
    E8M0,
    Other(Box<str>),
}

/// A tensor as it is in its file, of as many bytes as its shape takes, if its type is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stored<'a> {
    pub dtype: &'a Dtype,
    pub shape: &'a [usize],
    pub bytes: &'a [u8],
}

impl Safetensors {
    /// Opens one file, or a folder: the shards of `model.safetensors.index.json`, else `model.safetensors`, else
    /// all `model*.safetensors`, else all `*.safetensors`. Headers are checked, tensors not read.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NoCheckpoint`], [`Error::MissingShard`] and what headers and indexes can have
    /// wrong with them.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            return Self::from_files(vec![File { path: path.to_owned(), bytes: Bytes::map(path)? }]);
        }
        let index = path.join(INDEX);
        if index.is_file() {
            return Self::open_index(&index);
        }
        let single = path.join("model.safetensors");
        let paths = if single.is_file() { vec![single] } else { list(path)? };
        let files = paths.into_iter().map(|path| Ok(File { bytes: Bytes::map(&path)?, path }));
        Self::from_files(files.collect::<Result<_>>()?)
    }

    /// A file that is in memory.
    ///
    /// # Errors
    /// What a header can have wrong with it.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        Self::from_files(vec![File { path: "<memory>".into(), bytes: Bytes::Owned(bytes) }])
    }

    /// The shard of each tensor by the index of a sharded checkpoint. `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Json`]; [`Error::ShardName`] if a shard is not a plain file name.
    pub fn weight_map(path: &Path, index: &[u8]) -> Result<BTreeMap<String, String>> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let index: Index = serde_json::from_slice(index).map_err(|source| Error::Json {
            path: path.to_owned(),
            what: "index",
            source,
        })?;
        for shard in index.weight_map.values() {
            if Path::new(shard).file_name() != Some(shard.as_ref()) || shard.contains('\\') {
                return Err(Error::ShardName { path: path.to_owned(), shard: shard.clone() });
            }
        }
        Ok(index.weight_map)
    }

    /// The same checkpoint, its quantized matrices read as config.json says. Without this call their shapes
    /// alone decide.
    pub fn with_quantization(self, quantization: Quantization) -> Self {
        Self { quantization, ..self }
    }

    fn open_index(path: &Path) -> Result<Self> {
        let json = Bytes::map(path)?;
        let weight_map = Self::weight_map(path, &json)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut shards: BTreeMap<&str, &str> = BTreeMap::new();
        for (tensor, shard) in &weight_map {
            shards.entry(shard).or_insert(tensor);
        }
        let mut files = Vec::with_capacity(shards.len());
        for (shard, tensor) in shards {
            let file = folder.join(shard);
            if !file.is_file() {
                return Err(Error::MissingShard {
                    path: path.to_owned(),
                    shard: shard.to_owned(),
                    tensor: tensor.to_owned(),
                });
            }
            files.push(File { bytes: Bytes::map(&file)?, path: file });
        }
        let checkpoint = Self::from_files(files)?;
        for (tensor, shard) in weight_map {
            let entry = checkpoint.tensors.get(&tensor);
            if entry.is_none_or(|e| checkpoint.files[e.file].path.file_name() != Some(shard.as_ref())) {
                return Err(Error::MissingInShard { path: path.to_owned(), shard, tensor });
            }
        }
        Ok(checkpoint)
    }

    fn from_files(files: Vec<File>) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (i, file) in files.iter().enumerate() {
            for (name, entry) in file.entries(i)? {
                if tensors.contains_key(&name) {
                    return Err(Error::Duplicate { path: file.path.clone(), name });
                }
                tensors.insert(name, entry);
            }
        }
        Ok(Self { files, tensors, quantization: Quantization::default() })
    }

    fn bytes(&self, entry: &Entry) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.files[entry.file].bytes[entry.range.clone()])
    }

    fn dense(&self, name: &str, entry: &Entry) -> Result<RawTensor<'_>> {
        let Dtype::Float(dtype) = entry.dtype else {
            return Err(self.unsupported(name, entry));
        };
        let parts = [self.bytes(entry), Cow::Borrowed(&[][..]), Cow::Borrowed(&[][..])];
        RawTensor::new(Format::Float(dtype), entry.shape.clone(), parts)
            .map_err(|source| Error::Quant { name: name.to_owned(), source })
    }

    /// The matrix of module `path`, whose codes are `codes`.
    fn quantized(&self, path: &str, codes: &Entry, settings: Settings) -> Result<RawTensor<'_>> {
        let part = |part: &str| self.tensors.get(&format!("{path}.{part}"));
        let Some(scales) = part("scales") else {
            return Err(Error::MissingWeight { name: format!("{path}.scales") });
        };
        let biases = part("biases");
        let wrong = |wanted: String| Error::QuantizationShape {
            name: format!("{path}.weight"),
            codes: codes.shape.clone(),
            scales: scales.shape.clone(),
            biases: biases.map(|b| b.shape.clone()),
            wanted: wanted.into(),
        };
        let meta = match scales.dtype {
            Dtype::Float(t) => Some(t),
            Dtype::U8 => None,
            _ => return Err(self.unsupported(&format!("{path}.scales"), scales)),
        };
        if codes.dtype != Dtype::U32 {
            return Err(self.unsupported(&format!("{path}.weight"), codes));
        }
        let (Some((&words, lead)), Some((&groups, scales_lead))) =
            (codes.shape.split_last(), scales.shape.split_last())
        else {
            return Err(wrong("quantized matrix".to_owned()));
        };
        let setting = match settings {
            Settings::Listed(setting) => Some(setting),
            Settings::Inferred { cols } => {
                self.quantization.infer(Parts { words, groups, scales: meta, cols })
            }
        };
        let Some((setting, format)) = setting.and_then(|s| Some((s, s.format(meta)?))) else {
            return Err(wrong("known quantization".to_owned()));
        };
        let cols = groups.checked_mul(setting.group);
        let fits = cols.and_then(|n| n.checked_mul(setting.bits as usize)) == words.checked_mul(32);
        let wanted_biases = (setting.mode == Mode::Affine).then_some((&scales.dtype, &scales.shape));
        let biases_fit = biases.map(|b| (&b.dtype, &b.shape)) == wanted_biases;
        let (Some(cols), true, true, true) = (cols, fits, biases_fit, lead == scales_lead) else {
            return Err(wrong(format!("matrix of {format}")));
        };
        let shape = lead.iter().copied().chain([cols]).collect();
        let biases = biases.map_or(Cow::Borrowed(&[][..]), |b| self.bytes(b));
        let mut tensor = RawTensor::new(format, shape, [self.bytes(codes), self.bytes(scales), biases])
            .map_err(|source| Error::Quant { name: format!("{path}.weight"), source })?;
        if setting.mode == Mode::NvFp4 {
            tensor.factor = self.global_scale(path)?.map_or(1.0, |g| g / NVFP4_MAX);
        }
        Ok(tensor)
    }

    /// mxfp4 as Hugging Face stores it: `{name}_blocks: [.., in / 32, 16]` and `{name}_scales: [.., in / 32]`, bytes
    /// whose low nibble comes first.
    fn blocks(&self, name: &str) -> Result<Option<RawTensor<'_>>> {
        let part = |part: &str| self.tensors.get(&format!("{name}_{part}"));
        let (Some(blocks), Some(scales)) = (part("blocks"), part("scales")) else { return Ok(None) };
        for (entry, part) in [(blocks, "blocks"), (scales, "scales")] {
            if entry.dtype != Dtype::U8 {
                return Err(self.unsupported(&format!("{name}_{part}"), entry));
            }
        }
        let lead = match blocks.shape.split_last() {
            Some((16, lead)) if lead == scales.shape => lead,
            _ => {
                let want = scales.shape.iter().copied().chain([16]).collect();
                let name = format!("{name}_blocks");
                return Err(Error::WeightShape { name, got: blocks.shape.clone(), want });
            }
        };
        let (groups, lead) = lead.split_last().map_or((0, lead), |(groups, lead)| (*groups, lead));
        let shape = lead.iter().copied().chain([groups.saturating_mul(32)]).collect();
        let parts = [self.bytes(blocks), self.bytes(scales), Cow::Borrowed(&[][..])];
        let quant = |source| Error::Quant { name: name.to_owned(), source };
        RawTensor::new(Format::MxFp4, shape, parts).map(Some).map_err(quant)
    }

    fn global_scale(&self, path: &str) -> Result<Option<f32>> {
        let name = format!("{path}.global_scale");
        let Some(entry) = self.tensors.get(&name) else { return Ok(None) };
        if entry.dtype != Dtype::Float(FloatType::F32) {
            return Err(self.unsupported(&name, entry));
        }
        match <[u8; 4]>::try_from(&*self.bytes(entry)) {
            Ok(bytes) => Ok(Some(f32::from_le_bytes(bytes))),
            Err(_) => Err(Error::WeightShape { name, got: entry.shape.clone(), want: Vec::new() }),
        }
    }

    /// The tensor called `name` in the files.
    pub(super) fn stored(&self, name: &str) -> Option<Stored<'_>> {
        let Entry { file, dtype, shape, range } = self.tensors.get(name)?;
        Some(Stored { dtype, shape, bytes: &self.files[*file].bytes[range.clone()] })
    }

    /// The matrix of module `path`, converted, if another library quantized it.
    fn converted(&self, path: &str) -> Result<Option<RawTensor<'_>>> {
        let Some(foreign) = self.quantization.foreign() else { return Ok(None) };
        let module = Module::new(self, path);
        let matrix = foreign.matrix(&module)?;
        if matches!(&matrix, Some(RawTensor { codes: Cow::Owned(_), .. })) {
            module.release(foreign.all_leaves());
        }
        Ok(matrix)
    }

    fn find(&self, name: &str, cols: Option<usize>) -> Result<Option<RawTensor<'_>>> {
        if let Some(path) = name.strip_suffix(".weight")
            && let Some(matrix) = self.converted(path)?
        {
            return Ok(Some(matrix));
        }
        let Some(entry) = self.tensors.get(name) else { return self.blocks(name) };
        let Some(path) = name.strip_suffix(".weight") else {
            return self.dense(name, entry).map(Some);
        };
        let settings = match self.quantization.decide(path) {
            Decision::Listed(setting) => Settings::Listed(setting),
            Decision::Unlisted if self.has_scales(path, entry) => Settings::Inferred { cols },
            Decision::Unlisted | Decision::Dense => return self.dense(name, entry).map(Some),
        };
        self.quantized(path, entry, settings).map(Some)
    }

    fn has_scales(&self, path: &str, codes: &Entry) -> bool {
        codes.dtype == Dtype::U32 && self.tensors.contains_key(&format!("{path}.scales"))
    }

    /// Whether matrix `name` is stored as blocks and scales.
    fn is_blocks(&self, name: &str) -> bool {
        ["blocks", "scales"].iter().all(|part| self.tensors.contains_key(&format!("{name}_{part}")))
    }

    /// Whether `name` is a part of a quantized matrix other than its codes.
    fn is_part(&self, name: &str) -> bool {
        if name.strip_suffix("_scales").is_some_and(|matrix| self.is_blocks(matrix)) {
            return true;
        }
        [".scales", ".biases", ".global_scale"].iter().any(|part| {
            name.strip_suffix(part).is_some_and(|path| {
                let codes = self.tensors.get(&format!("{path}.weight"));
                codes.is_some_and(|codes| self.has_scales(path, codes))
            })
        })
    }

    fn unsupported(&self, name: &str, entry: &Entry) -> Error {
        Error::UnsupportedDtype {
            path: self.files[entry.file].path.clone(),
            tensor: name.to_owned(),
            dtype: entry.dtype.to_string(),
        }
    }
}

/// How the settings of a quantized matrix are known.
enum Settings {
    Listed(Setting),
    Inferred { cols: Option<usize> },
}

impl WeightSource for Safetensors {
    fn get(&self, name: &str) -> Result<Option<RawTensor<'_>>> {
        self.find(name, None)
    }

    fn get_shaped(&self, name: &str, want: &[usize]) -> Result<Option<RawTensor<'_>>> {
        self.find(name, want.last().copied())
    }

    fn release(&self, bytes: &[u8]) {
        self.files.iter().for_each(|file| file.bytes.release(bytes));
    }

    fn names(&self) -> Vec<String> {
        if let Some(foreign) = self.quantization.foreign() {
            return self.tensors.keys().filter_map(|name| foreign.parameter(self, name)).collect();
        }
        let whole = |name: &String| match name.strip_suffix("_blocks") {
            Some(matrix) if self.is_blocks(matrix) => Some(matrix.to_owned()),
            _ => Some(name.clone()).filter(|name| !self.is_part(name)),
        };
        self.tensors.keys().filter_map(whole).collect()
    }
}

impl File {
    /// Reads and checks the header. `file` is this file's number.
    fn entries(&self, file: usize) -> Result<Vec<(String, Entry)>> {
        let (header, data) = self.split()?;
        let Header(mut infos) = serde_json::from_slice(header).map_err(|source| Error::Json {
            path: self.path.clone(),
            what: "header",
            source,
        })?;
        infos.sort_by_key(|(_, info)| info.data_offsets);
        let data_start = self.bytes.len() - data.len();
        let mut end = 0;
        let mut entries = Vec::with_capacity(infos.len());
        for (name, info) in infos {
            let (start, stop) = info.data_offsets;
            if start != end || stop < start {
                let path = self.path.clone();
                return Err(Error::Offsets { path, tensor: name, start, end: stop, want: end });
            }
            end = stop;
            if end > data.len() as u64 {
                return Err(Error::Truncated {
                    path: self.path.clone(),
                    what: name,
                    want: end.saturating_add(data_start as u64),
                    got: self.bytes.len() as u64,
                });
            }
            // Both lie in the file, which is in memory, so that they fit a usize.
            let range = data_start + start as usize..data_start + stop as usize;
            let shape = self.checked_shape(&name, &info)?;
            entries.push((name, Entry { file, dtype: Dtype::new(&info.dtype), shape, range }));
        }
        if end != data.len() as u64 {
            return Err(Error::TrailingBytes { path: self.path.clone(), got: data.len() as u64 - end });
        }
        Ok(entries)
    }

    /// Header and data.
    fn split(&self) -> Result<(&[u8], &[u8])> {
        let truncated = |want| Error::Truncated {
            path: self.path.clone(),
            what: "the header".to_owned(),
            want,
            got: self.bytes.len() as u64,
        };
        let Some((len, rest)) = self.bytes.split_first_chunk() else { return Err(truncated(8)) };
        let len = u64::from_le_bytes(*len);
        if len > rest.len() as u64 {
            return Err(truncated(len.saturating_add(8)));
        }
        if len > MAX_HEADER {
            return Err(Error::HeaderTooLong { path: self.path.clone(), max: MAX_HEADER, got: len });
        }
        Ok(rest.split_at(len as usize))
    }

    /// The shape, if it takes as many bytes as the tensor has.
    fn checked_shape(&self, name: &str, info: &Info) -> Result<Vec<usize>> {
        let overflow = || Error::ShapeOverflow {
            path: self.path.clone(),
            tensor: name.to_owned(),
            shape: info.shape.clone(),
        };
        let shape: Vec<usize> = info
            .shape
            .iter()
            .map(|&d| usize::try_from(d).ok())
            .collect::<Option<_>>()
            .ok_or_else(overflow)?;
        let values = info.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).ok_or_else(overflow)?;
        // Types that are not known can't be read either.
        let Some(bits) = bits(&info.dtype) else { return Ok(shape) };
        let want = values.checked_mul(bits).ok_or_else(overflow)?.div_ceil(8);
        let got = info.data_offsets.1 - info.data_offsets.0;
        if want != got {
            let (path, tensor) = (self.path.clone(), name.to_owned());
            let dtype = info.dtype.as_str().into();
            return Err(Error::ByteLength { path, tensor, shape, dtype, want, got });
        }
        Ok(shape)
    }
}

impl Dtype {
    fn new(name: &str) -> Self {
        match name {
            "F32" => Self::Float(FloatType::F32),
            "F16" => Self::Float(FloatType::F16),
            "BF16" => Self::Float(FloatType::BF16),
            "U32" => Self::U32,
            "U8" => Self::U8,
            "I8" => Self::I8,
            "I32" => Self::I32,
            "I64" => Self::I64,
            "F8_E4M3" => Self::E4M3,
            "F8_E8M0" => Self::E8M0,
            other => Self::Other(other.into()),
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Float(t) => write!(f, "{t:?}"),
            Self::U32 => f.write_str("U32"),
            Self::U8 => f.write_str("U8"),
            Self::I8 => f.write_str("I8"),
            Self::I32 => f.write_str("I32"),
            Self::I64 => f.write_str("I64"),
            Self::E4M3 => f.write_str("F8_E4M3"),
            Self::E8M0 => f.write_str("F8_E8M0"),
            Self::Other(name) => f.write_str(name),
        }
    }
}

/// Bits of one value of a type.
fn bits(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "F4" => 4,
        "F6_E2M3" | "F6_E3M2" => 6,
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" | "F8_E4M3FNUZ" | "F8_E5M2FNUZ" => 8,
        "U16" | "I16" | "F16" | "BF16" => 16,
        "U32" | "I32" | "F32" => 32,
        "U64" | "I64" | "F64" | "C64" => 64,
        _ => return None,
    })
}

/// All weights of a folder without an index: those called `model*`, as mlx-lm does, else all.
fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let io = |source| Error::Io { path: folder.to_owned(), source };
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            all.push(path);
        }
    }
    all.sort();
    let is_model = |p: &PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("model"));
    if all.iter().any(is_model) {
        all.retain(is_model);
    }
    if all.is_empty() { Err(Error::NoCheckpoint { path: folder.to_owned() }) } else { Ok(all) }
}

/// The JSON of a header, in order, without `__metadata__`.
struct Header(Vec<(String, Info)>);

#[derive(Deserialize)]
struct Info {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(de: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut tensors = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        let info = map.next_value().map_err(|e| A::Error::custom(format!("{name}: {e}")))?;
                        tensors.push((name, info));
                    }
                }
                Ok(Header(tensors))
            }
        }
        de.deserialize_map(Entries)
    }
}
