#!/usr/bin/env python3
"""Fashion-MNIST in colours, with captions by rule: the training set of `mini_sd`.

Reads `train.npz` and `test.npz` of scripts/fashion_mnist.py and writes to --out

    train.npz, test.npz   images uint8 [N, 32, 32, 3], labels, colours, captions [N, 4]
    tokenizer/            a vocabulary in CLIP's format in which every word is one token
    fashion_captions.csv  1,000 held-out prompts: the first 100 test images of each class
    fashion_edits.zip     200 held-out images: the first 20 of each class
    fashion_edits_colour.csv, fashion_edits_class.csv   for each of these what it shows, and
                          the same in another colour, or another garment in the same colour

Each image's colour and words are chosen by a sha256 of its split and index. Words for brightness,
width and pattern are measured: the upper and the lower third of the images of a class have one.

    python scripts/captions.py --data data/fashion_mnist --out data/fashion_colour
"""

import csv
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image

from bdia_exp.metrics.colours import TINTS, tinted
from bdia_exp.metrics.garments import INK, NAMES
from bdia_exp.models.clip_tokenizer import END, START, byte_symbols

COLOURS = [*TINTS]
NOUNS = [[names[0], *names] if len(names) > 1 else [*names] for names in NAMES]
"""For each class; the usual name comes twice, so it is chosen more often."""
SLEEVES = {0: "short", 2: "long", 4: "long"}  # by class
FRAMES = ["{}", "{}", "a photo of {}", "a picture of {}", "an image of {}"]
CAPTIONS, PER_CLASS, EDITS_PER_CLASS = 4, 100, 20
BECOMES = (3, 3, 3, 4, 3, 7, 3, 9, 9, 5)
"""The class that an edit makes of each class: dresses of most clothes, other shoes of shoes."""


def neighbours(pixels: np.ndarray, mode: Any) -> list[np.ndarray]:
    """The nine shifts of images [N, H, W] by up to one pixel each way."""
    H, W = pixels.shape[1:]
    wide = np.pad(pixels, ((0, 0), (1, 1), (1, 1)), mode=mode)
    return [wide[:, y : y + H, x : x + W] for y in range(3) for x in range(3)]


def measured(grey: np.ndarray) -> dict[str, np.ndarray]:
    """Of each garment, from uint8 [N, H, W]: its mean brightness, the mean width of its rows, and
    the mean standard deviation of the 3×3 pixels around each of its inner pixels."""
    on, value = grey > INK, grey / 255.0
    area = on.sum((1, 2)).clip(1)
    near = neighbours(value, "edge")
    mean = sum(near) / 9
    spread = np.sqrt(np.maximum(sum(n**2 for n in near) / 9 - mean**2, 0))
    inside = np.logical_and.reduce(neighbours(on, "constant"))
    return {
        "brightness": (value * on).sum((1, 2)) / area,
        "width": area / on.any(2).sum(1).clip(1),
        "pattern": (spread * inside).sum((1, 2)) / inside.sum((1, 2)).clip(1),
    }


WORDS = {
    "brightness": ("dark", "bright"),
    "width": ("narrow", "wide"),
    "pattern": ("plain", "patterned"),
}


def thirds(values: dict[str, np.ndarray], labels: np.ndarray) -> dict[str, np.ndarray]:
    """For each measure, the limits of the lower and the upper third of every class, [10, 2]."""
    return {
        name: np.array([np.quantile(found[labels == k], [1 / 3, 2 / 3]) for k in range(10)])
        for name, found in values.items()
    }


def words_of(values: dict[str, np.ndarray], limits: dict[str, np.ndarray], labels) -> np.ndarray:
    """The measured words of each image, texts [N, 3], empty in the middle third."""
    columns = []
    for name, (low, high) in WORDS.items():
        (least, most), found = limits[name][labels].T, values[name]
        columns.append(np.where(found < least, low, np.where(found > most, high, "")))
    return np.stack(columns, 1)


def caption(key: str, label: int, colour: str, words: Sequence[str], always: bool = False) -> str:
    """One caption, chosen by the hash of `key`. One in eight has no colour, unless `always`."""
    chance = hashlib.sha256(key.encode()).digest()
    noun = NOUNS[label][chance[0] % len(NOUNS[label])]
    brightness, width, pattern = (
        word if chance[i] % 3 == 0 else "" for i, word in enumerate(words, 1)
    )
    if chance[4] % 8 == 0 and not always:
        colour = brightness = ""
    frame = FRAMES[chance[8] % len(FRAMES)]
    sleeves = SLEEVES.get(label, "") if chance[5] % 3 == 0 else ""
    after = sleeves and chance[6] % 2 == 0
    in_colour = bool(colour) and chance[7] % 5 == 0
    shade = " ".join(filter(None, [brightness, colour]))
    before = [width, pattern, "" if in_colour else shade]
    before += [f"{sleeves}-sleeved"] if sleeves and not after else []
    text = " ".join(filter(None, [*before, noun]))
    if noun in NOUNS[1]:  # plural
        text = f"a pair of {text}" if chance[9] % 2 == 0 else text
    elif frame != "{}" or chance[9] % 4:
        text = f"{'an' if text[0] in 'aeiou' else 'a'} {text}"
    text += f" with {sleeves} sleeves" if after else ""
    text += f" in {shade}" if in_colour else ""
    return frame.format(text)


def coloured(split: str, grey: np.ndarray, labels: np.ndarray, limits) -> dict[str, np.ndarray]:
    """The arrays of a split's file."""
    chosen = [hashlib.sha256(f"{split}:{i}".encode()).digest()[0] % 8 for i in range(len(grey))]
    words = words_of(measured(grey), limits, labels)
    texts = [
        [caption(f"{split}:{i}:{k}", label, COLOURS[colour], own) for k in range(CAPTIONS)]
        for i, (label, colour, own) in enumerate(zip(labels, chosen, words, strict=True))
    ]
    images = tinted(torch.from_numpy(grey)[:, None], torch.tensor(chosen))
    return {
        "images": images.permute(0, 2, 3, 1).numpy(),
        "labels": labels,
        "colours": np.array(chosen, np.uint8),
        "captions": np.array(texts),
        "words": words,
    }


def held_out(test: dict[str, np.ndarray]) -> list[list[object]]:
    """Rows of prompts from test images: image, prompt, class and colour."""
    rows = []
    for i in sorted(i for k in range(10) for i in np.flatnonzero(test["labels"] == k)[:PER_CLASS]):
        label, colour = int(test["labels"][i]), COLOURS[test["colours"][i]]
        text = caption(f"test:{i}:prompt", label, colour, test["words"][i], always=True)
        rows.append([i, text, label, colour])
    return rows


def edits(test: dict[str, np.ndarray]) -> tuple[list[int], dict[str, list[list[object]]]]:
    """The test images that are edited, and rows of image, prompt and `to` for each kind of edit."""
    classes = range(len(NAMES))
    chosen = sorted(
        i for k in classes for i in np.flatnonzero(test["labels"] == k)[:EDITS_PER_CLASS].tolist()
    )
    rows: dict[str, list[list[object]]] = {"colour": [], "class": []}
    for i in chosen:
        label, own = int(test["labels"][i]), COLOURS[test["colours"][i]]
        others = [colour for colour in COLOURS if colour != own]
        other = others[hashlib.sha256(f"edit:{i}".encode()).digest()[0] % len(others)]
        rows["colour"].append([i, plainly(label, own), plainly(label, other)])
        rows["class"].append([i, plainly(label, own), plainly(BECOMES[label], own)])
    return chosen, rows


def plainly(label: int, colour: str) -> str:
    """A class and a colour as a caption without other words: a red dress."""
    start = "a pair of" if label == 1 else "an" if colour[0] in "aeiou" else "a"
    return f"{start} {colour} {NAMES[label][0]}"


def write_edits(folder: Path, test: dict[str, np.ndarray]) -> None:
    """The held-out images as PNGs in a zip, and the prompts of their edits."""
    chosen, rows = edits(test)
    with zipfile.ZipFile(folder / "fashion_edits.zip", "w") as archive:
        for i in chosen:
            about = zipfile.ZipInfo(f"{i:05}.png")  # of a fixed date: the same bytes each time
            archive.writestr(about, encode_png(test["images"][i]))
    for kind, own in rows.items():
        write_csv(folder / f"fashion_edits_{kind}.csv", [["image", "prompt", "to"], *own])


def encode_png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", optimize=True)
    return file.getvalue()


def write_csv(path: Path, rows: Sequence[Sequence[object]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def merges_for(words: list[str]) -> list[tuple[str, str]]:
    """Merges of byte pairs that make one token of each word (ASCII letters).

    Each word's merges come after all earlier ones, so they change no earlier word.
    """
    merges: list[tuple[str, str]] = []
    for word in words:
        symbols = [*word[:-1], word[-1] + "</w>"]
        for pair in merges:
            symbols = _merged(symbols, pair)
        while len(symbols) > 1:
            merges.append((symbols[0], symbols[1]))
            symbols = _merged(symbols, merges[-1])
    return merges


def _merged(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    found: list[str] = []
    for symbol in symbols:
        if found and (found[-1], symbol) == pair:
            found[-1] += symbol
        else:
            found.append(symbol)
    return found


def write_tokenizer(folder: Path, texts: np.ndarray) -> None:
    """vocab.json and merges.txt, as CLIP's: bytes, merges, and the marks of start and end."""
    words = sorted({word for text in texts.flat for word in re.findall("[a-z]+", text)})
    merges, symbols = merges_for(words), byte_symbols()
    entries = [*symbols, *(f"{s}</w>" for s in symbols), *map("".join, merges), START, END]
    folder.mkdir(parents=True, exist_ok=True)
    vocab = {entry: number for number, entry in enumerate(entries)}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    lines = ["#version: 0.2", *map(" ".join, merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


@click.command(help=__doc__)
@click.option("--data", default="data/fashion_mnist", show_default=True)
@click.option("--out", default="data/fashion_colour", show_default=True)
def main(data: str, out: str) -> None:
    folder, limits, splits = Path(out), None, {}
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        given = np.load(Path(data) / f"{split}.npz")
        grey, labels = given["images"][..., 0], given["labels"]
        if limits is None:
            limits = thirds(measured(grey), labels)
        splits[split] = coloured(split, grey, labels, limits)
        np.savez_compressed(folder / f"{split}.npz", **splits[split])
        click.echo(f"{folder / split}.npz: {len(grey)} images, such as")
        click.echo("\n".join(f"    {text}" for text in splits[split]["captions"][:3].flat))
    write_tokenizer(folder / "tokenizer", splits["train"]["captions"])
    head = ["image", "prompt", "class", "colour"]
    write_csv(folder / "fashion_captions.csv", [head, *held_out(splits["test"])])
    write_edits(folder, splits["test"])


if __name__ == "__main__":
    main()
