"""Small tokenizers, trained here, and what transformers makes of texts and ids with them.

    pip install transformers tokenizers sentencepiece
    python make_tokenizers.py

writes, beside this file, `tokenizers/<name>/` (a Hugging Face folder), `tokenizers/<name>.gguf.json` (the same
vocabulary as the metadata of a GGUF file has it) and `tokenizers/expected.json`.
"""

import io
import json
import pathlib
import random
import shutil

import sentencepiece as spm
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

HERE = pathlib.Path(__file__).parent
OUT = HERE / "tokenizers"
TEXT = (HERE / "../../../../tests/data/persuasion.txt").resolve().read_text(encoding="utf-8")[:60_000]
TEXT += "\nDie Größe, 1234 Äpfel; où est l'été? Привет, мир! 你好，世界。 def f(x):\n    return x + 1\n" * 40

SAMPLES = [
    "",
    " ",
    "   ",
    "\n",
    "Hello world",
    " Hello  world ",
    "Hello, y'all! How are you 😁 ?I've been 3.14 or 1000000 years.",
    "tabs\tand\r\nnewlines\n\n\n and  spaces   end   ",
    "Die Größe, où est l'été, Привет 你好，世界。 नमस्ते 안녕",
    "e\u0301 combining",
    "🦙🧑🏽‍🚀 \U000103a0 \u200b zero",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "a<tool>b <tool> c</s> d <s>",
    "<s> Already begun",
    "<|begin|> Already begun",
    "Captain Wentworth's answer was: \"I'LL go,\" wasn't it? WE'RE",
]


def pretrained(tokenizer, **config):
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **config)


def byte_level():
    """SmolLM's recipe: single digits, GPT-2's split, bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXT.splitlines(keepends=True), trainer)
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    config = dict(bos_token="<|im_start|>", eos_token="<|im_end|>", unk_token="<|endoftext|>")
    gguf = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    return tokenizer, config, gguf


def byte_level_bos():
    """Llama 3's recipe: its split, tokens before merges, a BOS from the post-processor, about which
    transformers doesn't believe the configuration."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    split = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(keepends=True), trainer)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]),
        ]
    )
    # A training run's leftovers, which must not cut or pad prompts.
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=16, pad_id=1, pad_token="<|end|>")
    config = dict(bos_token="<|begin|>", eos_token="<|end|>", add_bos_token=False)
    gguf = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }
    return tokenizer, config, gguf


def sentence_piece_proto(kind, size, **options):
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()),
        model_writer=model,
        model_type=kind,
        vocab_size=size,
        character_coverage=0.999,
        minloglevel=2,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        **options,
    )
    return spm.SentencePieceProcessor(model_proto=model.getvalue())


def scored_merges(pieces):
    """transformers' generate_merges: every split of a piece into pieces, best score first."""
    ids = {piece: i for i, (piece, _) in enumerate(pieces)}
    merges = []
    for piece, score in pieces:
        local = [(piece[:i], piece[i:], score) for i in range(1, len(piece)) if piece[:i] in ids and piece[i:] in ids]
        merges += sorted(local, key=lambda m: (ids[m[0]], ids[m[1]]))
    merges.sort(key=lambda m: (m[2], len(m[0]), len(m[1])), reverse=True)
    return ids, [(left, right) for left, right, _ in merges]


def sentence_piece(prefix):
    """Llama 2's recipe (with the space in front), or Gemma's (without)."""
    sp = sentence_piece_proto("bpe", 600, byte_fallback=True, split_digits=True, user_defined_symbols=["<tool>"])
    pieces = [(sp.id_to_piece(i), sp.get_score(i)) for i in range(sp.vocab_size())]
    ids, merges = scored_merges(pieces)
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    space = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space])
        tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    else:
        tokenizer.normalizer = space
        tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    config = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    gguf = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.scores": [score for _, score in pieces],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": prefix,
        "types": [
            2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else 1 for i in range(len(pieces))
        ],
    }
    if prefix:
        # What SentencePiece itself says; its BPE and ours must agree on ordinary text.
        gguf["sentencepiece"] = [sp.encode(text) for text in ORDINARY]
    return tokenizer, config, gguf


def unigram():
    """T5's recipe: a language model over pieces, and a decoder that is none of the common ones."""
    sp = sentence_piece_proto("unigram", 300)
    pieces = [(sp.id_to_piece(i), sp.get_score(i)) for i in range(sp.vocab_size())]
    tokenizer = Tokenizer(models.Unigram(pieces, 0, False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return tokenizer, dict(eos_token="</s>", unk_token="<unk>"), None


def words():
    """No decoder at all: tokens are joined by spaces."""
    tokenizer = Tokenizer(models.WordLevel({"[unk]": 0, "the": 1, "sea": 2, "and": 3, "sky": 4}, unk_token="[unk]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer, dict(unk_token="[unk]"), None


ORDINARY = ["Hello world", "Captain Wentworth was there in 1814.", "She had been forced into prudence", "où est l'été"]


def gguf_metadata(tokenizer, gguf):
    vocab = tokenizer.get_vocab()
    tokens = sorted(vocab, key=vocab.get)
    assert [vocab[t] for t in tokens] == list(range(len(tokens)))
    types = gguf.pop("types", None) or [1] * len(tokens)
    types += [1] * (len(tokens) - len(types))
    for i, token in tokenizer.get_added_tokens_decoder().items():
        if types[i] != 2:
            types[i] = 3 if token.special else 4
    gguf["tokenizer.ggml.tokens"] = tokens
    gguf["tokenizer.ggml.token_type"] = types
    if gguf["tokenizer.ggml.model"] == "gpt2":
        merges = json.loads(tokenizer.to_str())["model"]["merges"]
        gguf["tokenizer.ggml.merges"] = [" ".join(pair) for pair in merges]
    return gguf


def ids_to_decode(rng, size, byte_ids):
    """Random ids, and runs of bytes whole, cut and broken."""
    yield [rng.randrange(size) for _ in range(40)]
    for cut in range(5):
        emoji = list("🦙é".encode())[: 6 - cut]
        yield [byte_ids[b] for b in emoji]
        yield [rng.randrange(size)] + [byte_ids[b] for b in emoji] + [rng.randrange(size)] * 2
        yield [byte_ids[b] for b in emoji + [0xFF] + emoji]
    yield [byte_ids[b] for b in b"\xe4\xbd\xa0\xe4\xbd \n\n"]


def byte_characters():
    """GPT-2's character for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


def expected(name, folder):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    size = len(tokenizer)
    rng = random.Random(name)
    vocab = tokenizer.get_vocab()
    if "<0x41>" in vocab:
        byte_ids = [vocab[f"<0x{b:02X}>"] for b in range(256)]
    else:
        byte_ids = [vocab.get(c, b % size) for b, c in enumerate(byte_characters())]
    decodes = [*ids_to_decode(rng, size, byte_ids)]
    return {
        "name": name,
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "unk": tokenizer.unk_token_id,
        "size": size,
        "encode": [
            {
                "text": text,
                "add": tokenizer(text)["input_ids"],
                "skip": tokenizer(text, add_special_tokens=False)["input_ids"],
            }
            for text in SAMPLES
        ],
        "decode": [{"ids": ids, "text": tokenizer.decode(ids, skip_special_tokens=True)} for ids in decodes],
    }


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    recipes = {
        "byte_level": byte_level(),
        "byte_level_bos": byte_level_bos(),
        "sentence_piece": sentence_piece(True),
        "sentence_piece_no_prefix": sentence_piece(False),
        "unigram": unigram(),
        "words": words(),
    }
    results = []
    for name, (tokenizer, config, gguf) in recipes.items():
        folder = OUT / name
        folder.mkdir(parents=True)
        tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        result = expected(name, folder)
        if gguf:
            result["sentencepiece"] = [
                {"text": text, "ids": ids} for text, ids in zip(ORDINARY, gguf.pop("sentencepiece", []))
            ]
            metadata = gguf_metadata(tokenizer, gguf)
            (OUT / f"{name}.gguf.json").write_text(json.dumps(metadata, ensure_ascii=False))
        results.append(result)
    (OUT / "expected.json").write_text(json.dumps(results, ensure_ascii=False, indent=0))


main()
