"""Decode a picture file to uint8 pixels of a given size: the same pixels in training and in prediction.

The picture is turned upright by its EXIF orientation and resized as a whole, whatever its proportions.
Transparency becomes white; of 16-bit grey the upper 8 bits are kept; color profiles are not applied.
"""

import warnings
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP")  # decided by the content, not by the suffix
MOST_PIXELS = 100_000_000  # of one picture; some hundred megabytes while it is decoded


class Unreadable(Exception):
    """Why a picture cannot be read; completes a sentence that begins with its name."""


def decode(file: IO[bytes], height: int, width: int, channels: int) -> NDArray[np.uint8]:
    """Return the picture in `file` as uint8 (height, width, channels); raises `Unreadable`."""
    try:
        # What Pillow warns of, such as damaged EXIF data, does not keep it from reading the picture.
        with warnings.catch_warnings(action="ignore"), Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise Image.DecompressionBombError  # Pillow's own limit is about twice this one
            # Many telephones append further JPEGs, such as a depth map (MPO); the first is the picture.
            if getattr(image, "is_animated", False) and image.format != "MPO":
                raise Unreadable("is animated; save one picture of it")
            # A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size, several times faster; from four times the
            # size asked for, that changes the result by less than a grey level on average.
            image.draft(None, (4 * max(height, width), 4 * max(height, width)))
            return _scaled(image, height, width, channels)
    except Image.DecompressionBombError:
        raise Unreadable(f"has more than {MOST_PIXELS:,} pixels; scale it down") from None
    except UnidentifiedImageError:
        raise Unreadable("is neither PNG, JPEG nor WebP; convert it, whatever its name says") from None
    except (Unreadable, MemoryError):
        raise
    except Exception as error:  # damaged content lets Pillow's decoders stumble over anything
        raise Unreadable(f"is damaged: {error}") from None


def _scaled(image: Image.Image, height: int, width: int, channels: int) -> NDArray[np.uint8]:
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion would make white of all above 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    mode = "L" if channels == 1 else "RGB"
    image = image.convert("RGBA" if image.has_transparency_data else mode)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert(mode)
    return np.asarray(image).reshape(height, width, channels)
