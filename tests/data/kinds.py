"""One tokenizer of each kind that people bring, made by code, with all that a tokenizer.json may carry besides."""

import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from rcdist.data.tokenizer import Tokenizer, read_tokenizer, train_bpe

SPECIAL = ("</s>", "<|endofdocument|>", "<|endoftext|>", "<unk>", "<pad>", "<s>")
TEXT = "It is a truth universally acknowledged,\n\nthat a single man. Zürich 東京 \U0001f600\tend\r\n"


def own_bpe() -> Tokenizer:
    """Return the kind that is trained here."""
    return train_bpe([TEXT * 20], 400, 10**6)


def byte_level(folder: Path) -> Path:
    """Write a byte-level BPE as GPT-2's, with everything on that changes what a text's ids are."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, [], dropout=0.3))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    steps = [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip(), normalizers.Replace("e", "")]
    backend.normalizer = normalizers.Sequence(steps)
    backend.add_special_tokens([tokenizers.AddedToken(token, lstrip=True, rstrip=True) for token in SPECIAL])
    boundary = backend.token_to_id("</s>")
    backend.post_processor = processors.TemplateProcessing("</s> $0 </s>", special_tokens=[("</s>", boundary)])
    backend.enable_truncation(5)
    backend.enable_padding(length=16, pad_id=backend.token_to_id("<pad>"), pad_token="<pad>")
    return _save(backend, folder / "byte-level.json")


def byte_fallback(folder: Path) -> Path:
    """Write a BPE over characters with bytes for those it has not, as Llama's: blanks are written as U+2581."""
    pieces = [*SPECIAL[3:], "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefgh ilmnorstu", "th"]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    backend = tokenizers.Tokenizer(models.BPE(vocab, [("t", "h")], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens([*SPECIAL[3:], "</s>"])
    return _save(backend, folder / "byte-fallback.json")


def words(folder: Path) -> Path:
    """Write a tokenizer of a few words that knows nothing else, whose ids have gaps, and whose boundary is a word."""
    vocab = {"<unk>": 0, "</s>": 7, "a": 300, "truth": 41, " ": 2}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    backend.decoder = decoders.Fuse()
    return _save(backend, folder / "words.json")


def characters(folder: Path) -> Path:
    """Write a BPE of some characters, without byte fallback and without a token for the others: it drops them."""
    vocab = {letter: i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz .")}
    backend = tokenizers.Tokenizer(models.BPE(vocab, []))
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(["</s>"])
    return _save(backend, folder / "characters.json")


def all_kinds(folder: Path) -> dict[str, Tokenizer]:
    """Return a tokenizer of every kind by name."""
    files = [make(folder) for make in (byte_level, byte_fallback, words, characters)]
    return {"bytes": Tokenizer(None), "bpe": own_bpe()} | {path.stem: read_tokenizer(path) for path in files}


def _save(backend: tokenizers.Tokenizer, path: Path) -> Path:
    path.write_text(json.dumps(json.loads(backend.to_str())))
    return path
