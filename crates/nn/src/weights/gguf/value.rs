//! Values of GGUF metadata. Knows types, not keys.

use std::fmt;

use super::cursor::Cursor;
use super::texts::Texts;
use crate::{Error, Result};

/// The deepest nesting of arrays that is read; known files have none.
const MAX_DEPTH: u32 = 4;

/// A value of GGUF metadata. Integers and floats of all widths are one each.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Value {
    /// An unsigned integer.
    U64(u64),
    /// A signed integer.
    I64(i64),
    /// A floating-point number.
    F64(f64),
    /// A truth value.
    Bool(bool),
    /// Text.
    String(String),
    /// Values of one type.
    Array(Array),
}

/// Values of one type.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Array {
    /// Integers or floats.
    Numbers(Numbers),
    /// Truth values.
    Bools(Vec<bool>),
    /// Texts.
    Strings(Texts),
    /// Arrays.
    Arrays(Vec<Array>),
}

/// Numbers as stored: they take no more memory than in the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Numbers {
    kind: NumberType,
    bytes: Vec<u8>,
}

/// The stored type of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The names say it.
pub enum NumberType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    U64,
    I64,
    F64,
}

/// The type of a value.
enum Type {
    Number(NumberType),
    Bool,
    String,
    Array,
}

impl Value {
    /// Reads the type and the value of `key`.
    pub(super) fn read(cursor: &mut Cursor<'_>, key: &str) -> Result<Self> {
        Ok(match Type::read(cursor, key)? {
            Type::Number(kind) => kind.value(cursor.take(kind.bytes() as u64, key)?),
            Type::Bool => {
                let [byte] = cursor.array(key)?;
                Self::Bool(truth(cursor, key, byte)?)
            }
            Type::String => Self::String(cursor.text(key)?.to_owned()),
            Type::Array => Self::Array(Array::read(cursor, key, MAX_DEPTH)?),
        })
    }

    /// Text.
    pub fn as_str(&self) -> Option<&str> {
        if let Self::String(s) = self { Some(s) } else { None }
    }

    /// An integer that is not negative.
    pub fn as_usize(&self) -> Option<usize> {
        match *self {
            Self::U64(n) => n.try_into().ok(),
            Self::I64(n) => n.try_into().ok(),
            _ => None,
        }
    }

    /// An integer.
    pub fn as_i64(&self) -> Option<i64> {
        match *self {
            Self::U64(n) => n.try_into().ok(),
            Self::I64(n) => Some(n),
            _ => None,
        }
    }

    /// An integer or a floating-point number.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::U64(n) => Some(n as f64),
            Self::I64(n) => Some(n as f64),
            Self::F64(x) => Some(x),
            _ => None,
        }
    }

    /// A truth value.
    pub fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(b) = self { Some(*b) } else { None }
    }

    /// Whether it is an array.
    pub fn is_array(&self) -> bool {
        matches!(self, Self::Array(_))
    }

    /// An array of truth values.
    pub fn as_bools(&self) -> Option<&[bool]> {
        if let Self::Array(Array::Bools(v)) = self { Some(v) } else { None }
    }

    /// An array of texts.
    pub fn as_strings(&self) -> Option<&Texts> {
        if let Self::Array(Array::Strings(v)) = self { Some(v) } else { None }
    }

    /// The integers of an array of integers.
    pub fn to_integers(&self) -> Option<Vec<i64>> {
        self.numbers()?.iter().map(|v| v.as_i64()).collect()
    }

    /// The numbers of an array of integers or floating-point numbers.
    pub fn to_floats(&self) -> Option<Vec<f32>> {
        self.numbers()?.iter().map(|v| Some(v.as_f64()? as f32)).collect()
    }

    fn numbers(&self) -> Option<&Numbers> {
        if let Self::Array(Array::Numbers(n)) = self { Some(n) } else { None }
    }
}

/// Short: arrays by their length, long text by its start.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::U64(n) => write!(f, "{n}"),
            Self::I64(n) => write!(f, "{n}"),
            Self::F64(x) => write!(f, "{x}"),
            Self::Bool(b) => write!(f, "{b}"),
            Self::String(s) => write!(f, "{:?}", s.chars().take(40).collect::<String>()),
            Self::Array(Array::Numbers(n)) => write!(f, "an array of {} {:?}", n.iter().len(), n.kind),
            Self::Array(Array::Bools(v)) => write!(f, "an array of {} truth values", v.len()),
            Self::Array(Array::Strings(v)) => write!(f, "an array of {} texts", v.len()),
            Self::Array(Array::Arrays(v)) => write!(f, "an array of {} arrays", v.len()),
        }
    }
}

impl Array {
    /// Reads element type, length and elements.
    fn read(cursor: &mut Cursor<'_>, key: &str, depth: u32) -> Result<Self> {
        /// The least bytes of a text: its length.
        const STRING: u64 = 8;
        /// The least bytes of an array: its type and length.
        const ARRAY: u64 = 4 + 8;
        let kind = Type::read(cursor, key)?;
        let len = cursor.u64(key)?;
        Ok(match kind {
            Type::Number(kind) => {
                let bytes = cursor.take(len.saturating_mul(kind.bytes() as u64), key)?.to_vec();
                Self::Numbers(Numbers { kind, bytes })
            }
            Type::Bool => {
                let bytes = cursor.take(len, key)?;
                Self::Bools(bytes.iter().map(|b| truth(cursor, key, *b)).collect::<Result<_>>()?)
            }
            Type::String => {
                cursor.check(len.saturating_mul(STRING), key)?;
                Self::Strings((0..len).map(|_| cursor.text(key)).collect::<Result<_>>()?)
            }
            Type::Array => {
                cursor.check(len.saturating_mul(ARRAY), key)?;
                if depth == 0 {
                    return Err(cursor.wrong(key.to_owned(), "arrays nested at most 4 deep", len));
                }
                Self::Arrays((0..len).map(|_| Self::read(cursor, key, depth - 1)).collect::<Result<_>>()?)
            }
        })
    }
}

impl Numbers {
    /// The numbers in order, as [`Value::U64`], [`Value::I64`] or [`Value::F64`].
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Value> + '_ {
        self.bytes.chunks_exact(self.kind.bytes()).map(|bytes| self.kind.value(bytes))
    }
}

impl NumberType {
    fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// The number in `bytes`, of which there are `self.bytes()`.
    fn value(self, bytes: &[u8]) -> Value {
        let mut raw = [0; 8];
        raw[..self.bytes()].copy_from_slice(bytes);
        let bits = u64::from_le_bytes(raw);
        // Casts to narrower integers keep the low bits, which are all there are.
        match self {
            Self::U8 | Self::U16 | Self::U32 | Self::U64 => Value::U64(bits),
            Self::I8 => Value::I64(i64::from(bits as i8)),
            Self::I16 => Value::I64(i64::from(bits as i16)),
            Self::I32 => Value::I64(i64::from(bits as i32)),
            Self::I64 => Value::I64(bits as i64),
            Self::F32 => Value::F64(f64::from(f32::from_bits(bits as u32))),
            Self::F64 => Value::F64(f64::from_bits(bits)),
        }
    }
}

impl Type {
    fn read(cursor: &mut Cursor<'_>, key: &str) -> Result<Self> {
        Ok(match cursor.u32(key)? {
            0 => Self::Number(NumberType::U8),
            1 => Self::Number(NumberType::I8),
            2 => Self::Number(NumberType::U16),
            3 => Self::Number(NumberType::I16),
            4 => Self::Number(NumberType::U32),
            5 => Self::Number(NumberType::I32),
            6 => Self::Number(NumberType::F32),
            7 => Self::Bool,
            8 => Self::String,
            9 => Self::Array,
            10 => Self::Number(NumberType::U64),
            11 => Self::Number(NumberType::I64),
            12 => Self::Number(NumberType::F64),
            got => {
                return Err(Error::GgufType { path: cursor.path().to_owned(), key: key.to_owned(), got });
            }
        })
    }
}

fn truth(cursor: &Cursor<'_>, key: &str, byte: u8) -> Result<bool> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(cursor.wrong(key.to_owned(), "0 or 1", u64::from(other))),
    }
}
