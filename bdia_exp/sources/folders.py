"""Which files of a network's folder have its weights, in the layouts of diffusers and transformers.

Large networks are stored in several files, with an index: `NAME-00001-of-00002.safetensors`, … and
`NAME.safetensors.index.json`, which says in which file each tensor is.
"""

import re
from pathlib import Path

from bdia_exp.errors import UserError, few
from bdia_exp.store.files import json_object

WEIGHTS = [
    f"{name}{variant}.{suffix}"
    for variant in ("", ".fp16")
    for name, suffix in (
        ("diffusion_pytorch_model", "safetensors"),
        ("diffusion_pytorch_model", "bin"),
        ("model", "safetensors"),
        ("pytorch_model", "bin"),
    )
]
"""The first one that exists is read: fp16 only if there is no full-precision file."""
MAX_INDEX = 50_000_000  # bytes; many times the index of the largest published network


def weights_in(folder: Path) -> list[Path]:
    """The file, or the files in the order of their names, of a network's folder.

    Raises UserError if there is none, or if one of several is missing.
    """
    for name in WEIGHTS:
        if (path := folder / name).is_file():
            return [path]
        if (path := folder / index_of(name)).is_file():
            return _named_in(path, Path(name).suffix)
    raise UserError(f"{folder} cannot be read: a folder must hold {' or '.join(WEIGHTS[:4])}")


def index_of(name: str) -> str:
    """The name of the index of weights in several files."""
    if ".fp16." in name:
        return f"{name.replace('.fp16.', '.')}.index.fp16.json"
    return f"{name}.index.json"


def _named_in(index: Path, suffix: str) -> list[Path]:
    try:
        if index.stat().st_size > MAX_INDEX:
            raise ValueError("too large")
        names = {*json_object(index.read_text("utf-8"))["weight_map"].values()}
        if not names or not all(re.fullmatch(rf"[\w-][\w.-]*\{suffix}", name) for name in names):
            raise ValueError("no names of files")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        shape = '{"weight_map": {"TENSOR": "FILE", …}}'
        raise UserError(f"{index} is damaged, it should be {shape}: fetch it again") from None
    files = [index.parent / name for name in sorted(names)]
    if missing := [file.name for file in files if not file.is_file()]:
        raise UserError(
            f"{index.parent} lacks {few(missing)}, which {index.name} names: fetch the folder again"
        )
    return files
