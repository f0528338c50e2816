#!/usr/bin/env python3
"""Fashion-MNIST as two .npz files of 32×32 images: `train.npz` (60,000) and `test.npz` (10,000).

Reads the four IDX files of the data set (MIT licence) and pads 28×28 to 32×32 with black. Debian
and Ubuntu have a package: `apt-get install dataset-fashion-mnist`; elsewhere give --idx.

    python scripts/fashion_mnist.py --out data/fashion_mnist
"""

import gzip
from pathlib import Path

import click
import numpy as np

DEBIAN = "/usr/share/datasets/fashion-mnist"
FILES = {"train": "train", "test": "t10k"}


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array in a gzipped IDX file. Raises ValueError if it is not one."""
    data = gzip.decompress(path.read_bytes())
    zero, kind, dims = int.from_bytes(data[:2], "big"), data[2], data[3]
    if zero or kind != 0x08:
        raise ValueError(f"{path} is not an IDX file of bytes")
    shape = np.frombuffer(data, ">i4", count=dims, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape)


@click.command(help=__doc__)
@click.option("--idx", default=DEBIAN, show_default=True, help="folder of the four .gz files")
@click.option("--out", default="data/fashion_mnist", show_default=True)
def main(idx: str, out: str) -> None:
    if not Path(idx).is_dir():
        raise click.ClickException(
            f"{idx} does not exist: run `apt-get install dataset-fashion-mnist`, or give --idx"
        )
    Path(out).mkdir(parents=True, exist_ok=True)
    for split, prefix in FILES.items():
        images = read_idx(Path(idx) / f"{prefix}-images-idx3-ubyte.gz")
        labels = read_idx(Path(idx) / f"{prefix}-labels-idx1-ubyte.gz")
        images = np.pad(images, ((0, 0), (2, 2), (2, 2)))[..., None]
        np.savez_compressed(Path(out) / f"{split}.npz", images=images, labels=labels)
        click.echo(f"{Path(out) / split}.npz: {len(images)} images {images.shape[1:]}")


if __name__ == "__main__":
    main()
