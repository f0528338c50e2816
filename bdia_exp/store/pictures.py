"""Pictures: from the bytes of a file to pixels, and from pixels to a picture."""

import io
import warnings

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""The only formats that Pillow may try. With its other readers, a file can start a program."""

PIXELS = 89_478_485
"""The largest picture that is read; Pillow warns above this size."""

warnings.filterwarnings("ignore", module=r"PIL\.")  # of damaged or large files: `OSError` says it


def decode(data: bytes, *, upright: bool = False) -> Tensor:
    """An image file as uint8 [1 or 3, H, W], as `read_picture` reads it. Raises OSError."""
    return read_picture(data, upright=upright)[0]


def read_picture(data: bytes, *, upright: bool = False) -> tuple[Tensor, bool]:
    """An image file as uint8 [C, H, W], and whether a part of it was transparent.

    C is 1 for a grey picture, else 3. Transparent parts are put on white, so that the colours
    stored under them do not matter. With `upright` it is rotated by its EXIF orientation.

    Raises OSError, with the reason, for a picture that is damaged, too large, of another format, of
    more than one frame, or of more than 8 bits a channel.
    """
    too_large = f"more than {PIXELS:,} pixels: make it smaller"
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            if picture.width * picture.height > PIXELS:
                raise OSError(too_large)
            if picture.mode.startswith(("I", "F")):
                raise OSError("more than 8 bits a channel: convert it first")
            # A JPEG of a telephone (MPO) has previews and depth after its picture.
            if picture.format != "MPO" and getattr(picture, "is_animated", False):
                raise OSError("more than one frame: save the one that is meant as a PNG")
            return on_white(ImageOps.exif_transpose(picture) if upright else picture)
    except UnidentifiedImageError:
        raise OSError(f"not a file of the formats {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        raise OSError(too_large) from None
    except OSError:
        raise
    except Exception as error:  # damaged bytes can cause any exception, MemoryError too
        raise OSError(str(error) or type(error).__name__) from None


def on_white(picture: Image.Image) -> tuple[Tensor, bool]:
    """A picture as uint8 [1 or 3, H, W] on white, and whether a part of it was transparent."""
    grey, transparent = picture.mode in ("1", "L", "LA"), False
    if picture.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        transparent = picture.getchannel("A").getextrema()[0] != 255
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return as_tensor(picture.convert("L" if grey else "RGB")), transparent


def as_tensor(picture: Image.Image) -> Tensor:
    """A grey or RGB image → uint8 [C, H, W]."""
    array = np.array(picture)
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)


def to_pil(image: Tensor) -> Image.Image:
    """uint8 [C, H, W] → an image: grey, grey and alpha, RGB or RGBA for C from 1 to 4."""
    array = image.permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
