"""Decodes a picture file to uint8 pixels of a given size, by the same rules in training and in prediction.

The content decides the format, not the file's name. Pictures are turned upright by their EXIF orientation,
embedded color profiles are converted to sRGB, and transparent areas become white. `Decoding` has the other rules.
"""

import functools
import io
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile, ImageOps, TiffImagePlugin, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")  # and HEIF, with pillow-heif
MAX_PIXELS = 100_000_000  # of one picture; it takes some hundred megabytes while it is decoded
_PHOTOMETRIC = 262  # the TIFF tag
# Pillow's raw modes of 16-bit color pictures, B with the high byte first, L with the low byte first, and for each
# the one that decodes the byte that it discards.
_FOREIGN = "B" if sys.byteorder == "little" else "L"
_OTHER_BYTE = {
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBA")
    for order, other in (("B", "L"), ("L", "B"), ("N", _FOREIGN))
}
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


class Decoding(BaseModel):
    """How pictures become pixels; recorded with data and model, so that prediction decodes as download did.

    resize: "stretch" ignores the aspect ratio; "crop" keeps it and cuts off the excess; "pad" keeps it and adds
    black borders. grey_bits: 16-bit pictures, grey or RGB, are scaled to 8 bits from this many, which the
    dataset uses.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    height: int
    width: int
    channels: int  # 1: grey, 3: RGB
    resize: Literal["stretch", "crop", "pad"] = "stretch"
    grey_bits: int = 16


class Unreadable(Exception):
    """Why a picture cannot be read; completes a sentence that begins with its name."""


def decode(file: IO[bytes], rules: Decoding, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Return the picture in `file`, which must be seekable, as uint8 (H, W, C); raises `Unreadable`."""
    with _opened(file, max_pixels) as image:
        # A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size, several times faster. At four times the final size
        # or more, this changes the result by less than one grey level on average.
        image.draft(None, (4 * max(rules.height, rules.width),) * 2)
        if rules.grey_bits < 16 and _is_16_bit_color(image):
            _scale_16_bit_color(image, file, rules.grey_bits, max_pixels)
        ImageOps.exif_transpose(image, in_place=True)
        return _pixels(image, rules)


def used_bits(file: IO[bytes]) -> int:
    """Return how many bits the pixels of a 16-bit picture use, 0 for other pictures; raises `Unreadable`."""
    with _opened(file) as image:
        if _is_16_bit_grey(image):
            return int(np.asarray(image).max()).bit_length()
        return 8 + int(np.asarray(image)[..., :3].max()).bit_length() if _is_16_bit_color(image) else 0


@contextmanager
def _opened(file: IO[bytes], max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    try:
        # Pillow warns, for instance, about damaged EXIF data, but can read the picture.
        with warnings.catch_warnings(action="ignore"), _open(file, max_pixels) as image:
            yield image
    except (Unreadable, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise Unreadable(f"has more than {max_pixels:,} pixels; scale it down") from None
    except UnidentifiedImageError:
        raise Unreadable(f"is not a picture in a supported format ({', '.join(FORMATS)}, HEIC)") from None
    except Exception as error:  # on damaged content, Pillow's decoders raise nearly anything
        raise Unreadable(f"is damaged: {error}") from None


def _open(file: IO[bytes], max_pixels: int) -> ImageFile.ImageFile:
    formats: tuple[str, ...] = FORMATS
    start = file.read(64)
    file.seek(0)
    if start[4:8] == b"ftyp" and start[8:12] in _HEIC_BRANDS and b"avif" not in start:
        try:
            from pillow_heif import register_heif_opener
        except ImportError:
            raise Unreadable("is a HEIC picture; to read those, run: pip install pillow-heif") from None
        register_heif_opener()
        formats = ("HEIF",)
    image = Image.open(file, formats=formats)
    if image.width * image.height > max_pixels:  # Pillow's own limit is about twice as high
        raise Image.DecompressionBombError
    # Phones append further pictures, such as a depth map, to the main one (MPO, HEIF): read the main one.
    if getattr(image, "is_animated", False) and image.format not in ("MPO", "HEIF"):
        raise Unreadable("has several frames; save one of them as a picture")
    return image


def _is_16_bit_grey(image: Image.Image) -> bool:
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        raise Unreadable("has more than 16 bits per channel; convert it to 8 or 16 bits")
    return image.mode.startswith("I")


def _is_16_bit_color(image: Image.Image) -> bool:
    return any(_raw_mode(tile.args) in _OTHER_BYTE for tile in getattr(image, "tile", ()))


def _raw_mode(args: Any) -> str:
    return str(args[0] if isinstance(args, tuple) else args)


def _scale_16_bit_color(image: Image.Image, file: IO[bytes], bits: int, max_pixels: int) -> None:
    """Scale a 16-bit RGB or RGBA picture from `bits` to 8 bits, in place.

    Pillow keeps the upper byte of each value. To get the lower one, decode again with the other order of bytes.
    """
    high = np.asarray(image).astype(np.uint16)
    file.seek(0)
    with _open(file, max_pixels) as other:
        other.tile = [tile._replace(args=_with_other_byte(tile.args)) for tile in other.tile]
        values = (high << 8 | np.asarray(other)) >> (bits - 8)
    image.paste(Image.fromarray(np.minimum(values, 255).astype(np.uint8)))


def _with_other_byte(args: Any) -> Any:
    other = _OTHER_BYTE[_raw_mode(args)]
    return (other, *args[1:]) if isinstance(args, tuple) else other


def _pixels(image: Image.Image, rules: Decoding) -> NDArray[np.uint8]:
    if _is_16_bit_grey(image):
        values = np.asarray(image).astype(np.int64)
        if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == 0:
            values = 2**rules.grey_bits - 1 - values  # 0 is white, which Pillow ignores for 16 bits
        image = Image.fromarray((values >> (rules.grey_bits - 8)).clip(0, 255).astype(np.uint8))
    mode = "L" if rules.channels == 1 else "RGB"
    to_srgb = None
    if profile := image.info.get("icc_profile"):
        if image.mode not in ("L", "RGB", "RGBA", "CMYK"):
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        to_srgb = _to_srgb(profile, image.mode)
    if to_srgb is None or image.has_transparency_data:
        image = image.convert("RGBA" if image.has_transparency_data else mode)
    image = _resized(image, rules)
    if to_srgb is not None:
        image = ImageCms.applyTransform(image, to_srgb) or image
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert(mode)
    if image.size != (rules.width, rules.height):  # pad
        canvas = Image.new(mode, (rules.width, rules.height))
        canvas.paste(image, ((rules.width - image.width) // 2, (rules.height - image.height) // 2))
        image = canvas
    return np.asarray(image).reshape(rules.height, rules.width, rules.channels)


def _resized(image: Image.Image, rules: Decoding) -> Image.Image:
    size = (rules.width, rules.height)
    if rules.resize == "crop":
        return ImageOps.fit(image, size, Image.Resampling.BICUBIC)
    if rules.resize == "pad":
        scale = min(rules.width / image.width, rules.height / image.height)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC)


@functools.lru_cache(maxsize=16)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform from an embedded profile to sRGB; None if it is sRGB or does not fit the picture."""
    try:
        source = ImageCms.getOpenProfile(io.BytesIO(profile))
        if mode != "CMYK" and "srgb" in ImageCms.getProfileDescription(source).lower():
            return None
        target = ImageCms.createProfile("sRGB")
        return ImageCms.buildTransform(source, target, mode, "RGBA" if mode == "RGBA" else "RGB")
    except (ImageCms.PyCMSError, OSError):
        return None
