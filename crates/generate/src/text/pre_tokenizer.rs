//! How byte-level vocabularies split text before merging, by GGUF's `tokenizer.ggml.pre`: the patterns of the
//! `tokenizer.json` files that the names stand for. Not the merging.

use serde_json::{Value, json};
use tokenizers::PreTokenizerWrapper;

use super::tokenizer::message;
use crate::error::{Error, Result};

/// One way to split text.
#[derive(Debug)]
pub(super) struct PreTokenizer {
    /// The values of `tokenizer.ggml.pre` that mean it.
    names: &'static [&'static str],
    /// Each pattern splits what those before it left over and found, into matches and what is between them.
    patterns: &'static [&'static str],
    /// Whether a piece that is a token stays whole, whatever the merges say.
    pub(super) whole_tokens: WholeTokens,
    /// Whether the vocabulary's texts were brought to Unicode's composed form first.
    pub(super) normal_form: NormalForm,
    /// Whether such files mean a BOS where they don't say.
    pub(super) adds_bos: bool,
}

/// What becomes of a piece that is a token as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WholeTokens {
    /// It is that token.
    Keep,
    /// It is merged as any other.
    Merge,
}

/// What is done to a text before it is split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NormalForm {
    /// Nothing.
    AsIs,
    /// Unicode's NFC.
    Composed,
}

const GPT2: &str = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// GPT-4o's with runs of Han apart.
const KIMI: &str = r"\p{Han}+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DIGIT: &str = r"\p{N}";
const DIGITS3: &str = r"[0-9][0-9][0-9]";
/// Cased letters of the scripts that have case.
const CASED: &str = "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";

use NormalForm::{AsIs, Composed};
use WholeTokens::{Keep, Merge};

static KNOWN: &[PreTokenizer] = &[
    PreTokenizer {
        names: &["default"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", DIGITS3],
        whole_tokens: Merge,
        normal_form: AsIs,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["gpt-2", "phi-2", "jais", "trillion", "granite-docling", "exaone4", "modern-bert"],
        patterns: &[GPT2],
        whole_tokens: Merge,
        normal_form: AsIs,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["mpt", "olmo"],
        patterns: &[GPT2],
        whole_tokens: Merge,
        normal_form: Composed,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"],
        patterns: &[LLAMA3],
        whole_tokens: Keep,
        normal_form: AsIs,
        adds_bos: true,
    },
    PreTokenizer {
        names: &["dbrx", "smaug-bpe", "chatglm-bpe"],
        patterns: &[LLAMA3],
        whole_tokens: Merge,
        normal_form: AsIs,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["glm4", "glm5"],
        patterns: &[LLAMA3],
        whole_tokens: Keep,
        normal_form: AsIs,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["qwen2", "deepseek-r1-qwen", "megrez", "kormo"],
        patterns: &[QWEN2],
        whole_tokens: Merge,
        normal_form: Composed,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["stablelm2", "hunyuan", "solar-open", "grok-2"],
        patterns: &[QWEN2],
        whole_tokens: Merge,
        normal_form: AsIs,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["qwen35"],
        patterns: &[QWEN35],
        whole_tokens: Merge,
        normal_form: Composed,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b", "mellum2"],
        patterns: &[DIGIT, GPT2],
        whole_tokens: Merge,
        normal_form: AsIs,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["command-r"],
        patterns: &[DIGIT, GPT2],
        whole_tokens: Merge,
        normal_form: Composed,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["falcon"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, DIGITS3],
        whole_tokens: Merge,
        normal_form: AsIs,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["deepseek-llm"],
        patterns: &[
            r"[\r\n]",
            CASED,
            "\\s?[!-/:-~！-／：-～‘-‟　-。]+",
            r"\s+$",
            r"[一-龥ࠀ-一가-\x{D7FF}]+",
            r"\p{N}+",
        ],
        whole_tokens: Merge,
        normal_form: AsIs,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["deepseek-coder"],
        patterns: &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-\x{D7FF}]+", DIGIT],
        whole_tokens: Merge,
        normal_form: AsIs,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["deepseek-v3", "hunyuan-dense", "joyai-llm"],
        patterns: &[
            r"\p{N}{1,3}",
            r"[一-龥぀-ゟ゠-ヿ]+",
            r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
        ],
        whole_tokens: Merge,
        normal_form: AsIs,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["tekken"],
        patterns: &[TEKKEN],
        whole_tokens: Keep,
        normal_form: AsIs,
        adds_bos: true,
    },
    PreTokenizer {
        names: &["gpt-4o", "llama4", "kanana2", "minimax-m2"],
        patterns: &[GPT4O],
        whole_tokens: Merge,
        normal_form: AsIs,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["kimi-k2"],
        patterns: &[KIMI],
        whole_tokens: Merge,
        normal_form: AsIs,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["bailingmoe", "bailingmoe2", "llada-moe"],
        patterns: &[
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        ],
        whole_tokens: Merge,
        normal_form: AsIs,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["seed-coder"],
        patterns: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        whole_tokens: Merge,
        normal_form: AsIs,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["poro-chat", "bloom", "gpt3-finnish"],
        patterns: &[r" ?[^(\s|.,!?…。，、।۔،)]+"],
        whole_tokens: Merge,
        normal_form: AsIs,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["viking"],
        patterns: &[r" ?[^(\s|.,!?…。，、।۔،)]+", DIGIT],
        whole_tokens: Merge,
        normal_form: AsIs,
        adds_bos: false,
    },
];

impl PreTokenizer {
    /// The one that `name` stands for.
    ///
    /// # Errors
    /// [`Error::UnknownPreTokenizer`] with the known names.
    pub(super) fn named(name: &str) -> Result<&'static Self> {
        KNOWN.iter().find(|pre| pre.names.contains(&name)).ok_or_else(|| {
            let known: Vec<&str> = KNOWN.iter().flat_map(|pre| pre.names).copied().collect();
            Error::UnknownPreTokenizer { pre: name.to_owned(), known: known.join(", ") }
        })
    }

    /// The splits, then bytes to the characters that stand for them.
    pub(super) fn build(&self) -> Result<PreTokenizerWrapper> {
        let split = |pattern: &&str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        let bytes =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        let steps: Vec<Value> = self.patterns.iter().map(split).chain([bytes]).collect();
        serde_json::from_value(json!({"type": "Sequence", "pretokenizers": steps})).map_err(message)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _};

    use super::*;

    #[test]
    fn every_pattern_compiles_and_has_one_meaning() {
        let mut seen = std::collections::HashSet::new();
        for pre in KNOWN {
            pre.build().unwrap();
            assert!(pre.names.iter().all(|name| seen.insert(*name)), "{:?}", pre.names);
        }
    }

    /// Where `regex` of Python splits with the pattern of Kimi's tokenizer.
    #[test]
    fn runs_of_han_are_pieces_of_their_own() {
        let pieces = |text: &str| -> Vec<String> {
            let mut split = PreTokenizedString::from(text);
            PreTokenizer::named("kimi-k2").unwrap().build().unwrap().pre_tokenize(&mut split).unwrap();
            let splits = split.get_splits(OffsetReferential::Original, OffsetType::Byte);
            splits.into_iter().map(|(_, (from, to), _)| text[from..to].to_owned()).collect()
        };
        assert_eq!(
            pieces("Hello你好World's 12345, 世界 МИРмир!\n\n  HTTPServer's  end"),
            [
                "Hello",
                "你好",
                "World's",
                " ",
                "123",
                "45",
                ",",
                " ",
                "世界",
                " МИРмир",
                "!\n\n",
                " ",
                " HTTPServer's",
                " ",
                " end",
            ]
        );
        assert_eq!(
            pieces("日本語のテキスト〇々 ab你c  x\r\n"),
            ["日本語", "のテキスト", "〇々", " ab", "你", "c", " ", " x", "\r\n"]
        );
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let error = PreTokenizer::named("mystery").unwrap_err().to_string();
        assert!(error.contains("mystery") && error.contains("llama-bpe"), "{error}");
    }
}
