//! AWQ in AutoAWQ's `gemm` layout: `qweight [in, out / 8]` and `qzeros [groups, out / 8]`, eight outputs a word in the
//! order of [`SHIFTS`]; `scales [groups, out]`.

use std::borrow::Cow;

use rillm_quant::{FloatType, RawTensor};

use super::grouped::{Grouped, Groups, Zeros, transposed};
use super::module::{Module, WORDS};
use super::options::Options;
use crate::Result;

/// What may lie beside `qweight`.
pub(super) const PARTS: &[&str] = &["qzeros", "scales"];

/// Where the eight outputs of a word lie: even ones in its lower half, odd ones in its upper.
const SHIFTS: [u32; 8] = [0, 16, 4, 20, 8, 24, 12, 28];
/// The zero point where none are stored.
const MIDDLE: f32 = 8.0;

#[derive(Clone, Debug, PartialEq)]
pub(in crate::weights) struct Awq {
    /// `None`: whole rows.
    group: Option<usize>,
}

impl Awq {
    pub(super) fn from_config(options: &Options<'_>) -> Result<Self> {
        for key in ["bits", "w_bit"] {
            options.bits(key, &[4], "4")?;
        }
        for key in ["version", "format"] {
            options.one_of(key, "gemm", &["gemm"], "gemm")?;
        }
        if options.text("backend")? == Some("llm-awq") {
            return Err(options.wrong("backend", "a layout of AutoAWQ"));
        }
        let key = if options.get("group_size").is_some() { "group_size" } else { "q_group_size" };
        Ok(Self { group: options.group(key, 128)? })
    }

    pub(super) fn matrix<'a>(&self, module: &Module<'a>) -> Result<Option<RawTensor<'a>>> {
        let Some(codes) = module.get("qweight") else { return Ok(None) };
        let codes = codes.typed(&WORDS)?;
        let [inp, words] = codes.matrix()?;
        let out = words.checked_mul(8).ok_or_else(|| codes.wrong_shape(&[inp]))?;
        let group = self.group.unwrap_or(inp);
        let shape = [inp.div_ceil(group), out];
        let scales = module.need("scales")?.shaped(&shape)?;
        let zeros = match module.get("qzeros") {
            None => Zeros::Same(MIDDLE),
            Some(zeros) => {
                let zeros = zeros.typed(&WORDS)?.shaped(&[shape[0], words])?;
                let all = zeros.bytes().as_chunks().0.iter().flat_map(|word| outputs(*word));
                Zeros::Each(transposed(&all.map(f32::from).collect::<Vec<_>>(), shape))
            }
        };
        let grouped = Grouped {
            rows: out,
            cols: inp,
            bits: 4,
            codes: Cow::Owned(rows(codes.bytes(), [inp, words])),
            groups: Groups::Runs(group),
            scales: transposed(&scales.scales()?, shape),
            zeros,
            meta: scales.float_type().unwrap_or(FloatType::F32),
        };
        grouped.tensor(&module.name("weight")).map(Some)
    }
}

/// The eight codes of a word, in the order of the outputs.
fn outputs(word: [u8; 4]) -> [u8; 8] {
    let word = u32::from_le_bytes(word);
    SHIFTS.map(|shift| (word >> shift & 15) as u8)
}

/// Codes `[inp, words]` as rows of outputs, two inputs a byte.
fn rows(codes: &[u8], [inp, words]: [usize; 2]) -> Vec<u8> {
    /// Words that a line of the cache holds.
    const LINE: usize = 16;
    let (codes, stride) = (codes.as_chunks::<4>().0, inp.div_ceil(2));
    let mut rows = vec![0; 8 * words * stride];
    for start in (0..words).step_by(LINE) {
        for i in 0..inp {
            for word in start..words.min(start + LINE) {
                for (j, code) in outputs(codes[i * words + word]).into_iter().enumerate() {
                    rows[(8 * word + j) * stride + i / 2] |= code << (4 * (i % 2));
                }
            }
        }
    }
    rows
}
