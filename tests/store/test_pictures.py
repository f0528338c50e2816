"""One picture: what is read as one, on white, and what is refused in a sentence."""

import contextlib
import io
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bdia_exp.store import archives
from bdia_exp.store.pictures import PIXELS, decode, read_picture

GREY = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 6), dtype=np.uint8))


def encoded(picture: Image.Image, kind: str = "PNG", **how) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **how)
    return file.getvalue()


def png(width: int, height: int, *more: tuple[bytes, bytes]) -> bytes:
    """A grey PNG with further chunks; its pixels are those of an image of 8 × 8."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", head), *more, (b"IDAT", zlib.compress(bytes(72))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP"])
def test_every_format_without_loss(kind):
    pixels = decode(encoded(GREY, kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert torch.equal(pixels, torch.from_numpy(np.array(GREY)).expand(len(pixels), -1, -1))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_what_is_transparent_is_white_whatever_colour_is_under_it(mode):
    """Alpha channels, a palette with a transparent colour, and one transparent colour (tRNS)."""
    found = []
    for hidden in (0, 90):
        pixels = np.full((4, 4, 4), (120, 120, 120, 255), np.uint8)
        pixels[2:] = (hidden, hidden, hidden, 0)
        picture = Image.fromarray(pixels)
        if mode in ("LA", "RGBA"):
            data = encoded(picture.convert(mode))
        else:
            plain = picture.convert("RGB")
            plain = plain.quantize(4) if mode == "P" else plain.convert(mode)
            key = plain.getpixel((0, 3))
            data = encoded(plain, transparency=key)
        image, transparent = read_picture(data)
        assert transparent
        found.append(image)
    assert torch.equal(*found)
    assert len(found[0]) == (1 if mode in ("L", "LA") else 3)
    assert found[0][:, :2].unique().tolist() == [120]
    assert found[0][:, 2:].unique().tolist() == [255]


def test_half_transparent_and_opaque_alpha():
    half = Image.new("RGBA", (2, 2), (0, 0, 0, 51))
    assert decode(encoded(half)).unique().tolist() == [204]  # 255 · (1 − 51/255)
    coloured = Image.merge("RGBA", [GREY, GREY, GREY, Image.new("L", GREY.size, 255)])
    image, transparent = read_picture(encoded(coloured))
    assert not transparent
    assert torch.equal(image[0], torch.from_numpy(np.array(GREY)))


BOMB = zlib.compress(bytes(20_000_000))
TWO = {"save_all": True, "append_images": [Image.new("L", GREY.size)]}
REFUSED = {
    "no bytes": (b"", "not a file of the formats PNG, JPEG"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "not a file of the form"),
    "profile": (png(8, 8, (b"iCCP", b"x\0\0" + BOMB)), "too large"),
    "compressed text": (png(8, 8, (b"zTXt", b"x\0\0" + BOMB)), "too large"),
    "90 megapixels": (png(9_500, 9_500), "more than 89,478,485 pixels"),
    "225 megapixels": (png(15_000, 15_000), "more than 89,478,485 pixels"),
    "2^62 pixels": (png(2**31 - 1, 2**31 - 1), "more than 89,478,485 pixels"),
    "cut": (encoded(GREY)[:60], "."),
    "flipped": (encoded(GREY)[:45] + b"\xff" + encoded(GREY)[46:], "."),
    "fewer pixels than stated": (png(9, 900), "truncated|not enough"),
    "16 bits": (encoded(Image.new("I;16", (4, 4))), "more than 8 bits a channel"),
    "float": (encoded(Image.new("F", (4, 4)), "TIFF"), "more than 8 bits a channel"),
    "GIF": (encoded(GREY, "GIF", **TWO), "more than one frame"),
    "TIFF": (encoded(GREY, "TIFF", **TWO), "more than one frame"),
    "APNG": (encoded(GREY, "PNG", **TWO), "more than one frame"),
    "WEBP": (encoded(GREY, "WEBP", **TWO), "more than one frame"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", REFUSED)
def test_refusals(what):
    data, told = REFUSED[what]
    with pytest.raises(OSError, match=told) as error:
        decode(data)
    assert "BytesIO" not in str(error.value)


@pytest.mark.filterwarnings("ignore")
def test_every_cut_and_flip_is_read_or_refused():
    """No byte of a damaged file makes another exception than OSError."""
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"):
        data = encoded(GREY, kind)
        for at in range(0, len(data), 3):
            for damaged in (data[:at], data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]):
                with contextlib.suppress(OSError):
                    assert decode(damaged).dtype == torch.uint8


def test_postscript_starts_no_program(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    data = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    with pytest.raises(OSError, match="not a file of the formats"):
        decode(data)


def test_a_telephones_jpeg_with_a_preview_is_its_first_picture():
    assert len(decode(encoded(GREY, "MPO", **TWO))) == 1
    assert PIXELS == Image.MAX_IMAGE_PIXELS


def test_bytes_are_bounded_and_no_pipe_is_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "LARGEST", 10)
    (tmp_path / "x").write_bytes(bytes(11))
    with pytest.raises(OSError, match="more than"):
        archives.contents(tmp_path / "x")
    with pytest.raises(OSError, match="not a file"):
        archives.contents(Path("/dev/zero"))
