//! GPTQ, as AutoGPTQ and GPTQModel store it: `qweight [in * bits / 32, out]`, codes along the inputs; `qzeros
//! [groups, out * bits / 32]`, along the outputs; `scales [groups, out]`; `g_idx [in]`, the group of each input, which
//! is not in order where inputs were taken by their activations (`desc_act`).
//!
//! Codes are little-endian bit streams over the words. The first version of the format stores zero points less one.

use std::borrow::Cow;

use rillm_quant::RawTensor;

use super::grouped::{Grouped, Groups, Zeros, code_at, transposed, transposed_words};
use super::module::{Module, Part, WORDS};
use super::options::Options;
use crate::Result;

/// What may lie beside `qweight`.
pub(super) const PARTS: &[&str] = &["qzeros", "scales", "g_idx"];

#[derive(Clone, Debug, PartialEq)]
pub(in crate::weights) struct Gptq {
    bits: u32,
    /// `None`: whole rows.
    group: Option<usize>,
    /// What is added to stored zero points, modulo the codes that there are.
    offset: u8,
}

impl Gptq {
    pub(super) fn from_config(options: &Options<'_>) -> Result<Self> {
        let bits = options.bits("bits", &[2, 3, 4, 8], "2, 3, 4 or 8")?;
        let formats = ["gptq", "gptq_v2"];
        let want = "gptq or gptq_v2";
        let format = options.one_of("format", "gptq", &formats, want)?;
        let format = options.one_of("checkpoint_format", format, &formats, want)?;
        options.one_of("pack_dtype", "int32", &["int32"], "int32")?;
        // Bits and groups of single modules.
        options.refuse("dynamic")?;
        Ok(Self {
            bits: bits.ok_or_else(|| options.wrong("bits", "2, 3, 4 or 8"))?,
            group: options.group("group_size", 128)?,
            offset: u8::from(format == "gptq"),
        })
    }

    pub(super) fn matrix<'a>(&self, module: &Module<'a>) -> Result<Option<RawTensor<'a>>> {
        let Some(codes) = module.get("qweight") else { return Ok(None) };
        let codes = codes.typed(&WORDS)?;
        let [words, out] = codes.matrix()?;
        let bits = self.bits as usize;
        let inp = words.checked_mul(32).filter(|n| n.is_multiple_of(bits)).map(|n| n / bits);
        let inp = inp.ok_or_else(|| codes.wrong_shape(&[words.next_multiple_of(bits), out]))?;
        let group = self.group.unwrap_or(inp);
        let shape = [inp.div_ceil(group), out];
        let scales = module.need("scales")?.shaped(&shape)?;
        let grouped = Grouped {
            rows: out,
            cols: inp,
            bits: self.bits,
            codes: Cow::Owned(transposed_words(codes.bytes(), [words, out])),
            groups: match module.get("g_idx") {
                Some(list) => groups(&list, inp, shape[0])?,
                None => Groups::Runs(group),
            },
            scales: transposed(&scales.scales()?, shape),
            zeros: Zeros::Each(transposed(&self.zeros(module, shape)?, shape)),
            meta: scales.float_type().unwrap_or(rillm_quant::FloatType::F32),
        };
        grouped.tensor(&module.name("weight")).map(Some)
    }

    /// `[groups, out]`.
    fn zeros(&self, module: &Module<'_>, [groups, out]: [usize; 2]) -> Result<Vec<f32>> {
        let words = (out * self.bits as usize).div_ceil(32);
        let zeros = module.need("qzeros")?.typed(&WORDS)?.shaped(&[groups, words])?;
        let mask = ((1u32 << self.bits) - 1) as u8;
        let rows = zeros.bytes().chunks_exact(4 * words);
        let zero = |row, i| f32::from(code_at(row, self.bits, i).wrapping_add(self.offset) & mask);
        Ok(rows.flat_map(|row| (0..out).map(move |i| zero(row, i))).collect())
    }
}

/// A list of the group of each of `cols` columns.
pub(super) fn groups(list: &Part<'_>, cols: usize, groups: usize) -> Result<Groups> {
    if list.shape() != [cols] {
        return Err(list.wrong_shape(&[cols]));
    }
    let valid = |g: i64| usize::try_from(g).ok().filter(|g| *g < groups);
    let group = |g| valid(g).ok_or_else(|| list.wrong_value(format!("groups below {groups}"), g));
    list.integers()?.into_iter().map(group).collect::<Result<_>>().map(Groups::Listed)
}
