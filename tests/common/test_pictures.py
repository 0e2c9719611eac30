"""stages/common/pictures.py: what each kind of picture becomes, and why some cannot be read."""

import io
import struct
import sys
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from pillow_heif import from_pillow

from stages.common import pictures
from stages.common.pictures import Decoding

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def flat(mode: str, color: Any, size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new(mode, size, color)


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    crc = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + crc


def png(width: int, height: int, depth: int, color: int, row: bytes, extra: bytes = b"") -> bytes:
    """A PNG file of kinds that Pillow reads but does not write; `color` is PNG's own code."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress((b"\0" + row) * height if row else b""))
    return b"\x89PNG\r\n\x1a\n" + header + extra + rows + chunk(b"IEND", b"")


def rotated(form: str, **options: Any) -> bytes:
    """Red left and blue right as stored, with the note that the left side is the top."""
    image = flat("RGB", BLUE)
    image.paste(RED, (0, 0, 20, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(image, form, exif=exif.tobytes(), **options)


def decode(content: bytes, height: int = 2, width: int = 2, channels: int = 3, **rules: Any) -> Any:
    decoding = Decoding(height=height, width=width, channels=channels, **rules)
    pixels = pictures.decode(io.BytesIO(content), decoding)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (height, width, channels)
    return pixels.astype(int)


def heic(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    from_pillow(image).save(buffer, quality=100)
    return buffer.getvalue()


def palette(transparency: Any = None) -> bytes:
    image = flat("P", 1)
    image.putpalette([0, 0, 0, *RED])
    return encoded(image, **({} if transparency is None else {"transparency": transparency}))


FLAT_PICTURES = {
    "an RGB PNG": (encoded(flat("RGB", RED)), RED),
    "a JPEG": (encoded(flat("RGB", RED), "JPEG"), RED),
    "a WebP": (encoded(flat("RGB", RED), "WEBP", lossless=True), RED),
    "a progressive JPEG": (encoded(flat("RGB", RED), "JPEG", progressive=True), RED),
    "one pixel": (encoded(flat("RGB", RED, (1, 1))), RED),
    "20,000 pixels wide and 3 high": (encoded(flat("RGB", RED, (20_000, 3))), RED),
    "grey": (encoded(flat("L", 100)), (100, 100, 100)),
    "a grey JPEG": (encoded(flat("L", 100), "JPEG"), (100, 100, 100)),
    "black and white": (encoded(flat("1", 1)), WHITE),
    "grey of 2 bits": (png(8, 8, 2, 0, b"\xaa\xaa"), (170, 170, 170)),
    "grey of 16 bits": (png(8, 8, 16, 0, b"\x81\x80" * 8), (129, 129, 129)),
    "RGB of 16 bits": (png(8, 8, 16, 2, b"\x81\x80\x05\x80\x06\x80" * 8), (129, 5, 6)),
    "a palette": (palette(), RED),
    "a palette with a transparent colour": (palette(transparency=1), WHITE),
    "a palette with half transparent colours": (palette(transparency=b"\xff\x80"), (255, 127, 127)),
    "transparent RGBA": (encoded(flat("RGBA", (9, 9, 9, 0))), WHITE),
    "half transparent RGBA": (encoded(flat("RGBA", (255, 0, 0, 128))), (255, 127, 127)),
    "half transparent grey": (encoded(flat("LA", (0, 128))), (127, 127, 127)),
    "a transparent WebP": (encoded(flat("RGBA", (9, 9, 9, 0)), "WEBP"), WHITE),
    "RGB with a transparent colour": (encoded(flat("RGB", RED), transparency=RED), WHITE),
    "CMYK": (encoded(flat("CMYK", (0, 255, 255, 0)), "JPEG"), RED),
    "several JPEGs in one, as telephones write them": (
        encoded(flat("RGB", RED), "MPO", save_all=True, append_images=[flat("RGB", BLUE)]),
        RED,
    ),
    "a BMP": (encoded(flat("RGB", RED), "BMP"), RED),
    "a TIFF": (encoded(flat("RGB", RED), "TIFF"), RED),
    "a compressed TIFF": (encoded(flat("RGB", RED), "TIFF", compression="tiff_lzw"), RED),
    "a grey TIFF of 16 bits": (
        encoded(Image.fromarray(np.full((9, 9), 0x8180, np.uint16)), "TIFF"),
        (129, 129, 129),
    ),
    "a GIF": (encoded(flat("RGB", RED), "GIF"), RED),
    "a transparent GIF": (encoded(flat("P", 0), "GIF", transparency=0), WHITE),
    "an AVIF": (encoded(flat("RGB", RED), "AVIF", quality=100), RED),
    "a HEIC": (heic(flat("RGB", RED)), RED),
    "damaged EXIF data": (encoded(flat("RGB", RED), "JPEG", exif=b"Exif\0\0garbage-garbage"), RED),
}


@pytest.mark.parametrize("kind", FLAT_PICTURES)
def test_every_kind_of_picture_becomes_rgb(kind: str) -> None:
    content, color = FLAT_PICTURES[kind]
    assert np.abs(decode(content) - color).max() <= 1


@pytest.mark.parametrize("kind", FLAT_PICTURES)
def test_every_kind_of_picture_becomes_grey(kind: str) -> None:
    content, (red, green, blue) = FLAT_PICTURES[kind]
    luma = 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R BT.601
    assert np.abs(decode(content, channels=1) - luma).max() <= 1.5


@pytest.mark.parametrize(
    "content", [rotated("JPEG"), rotated("PNG"), rotated("WEBP", lossless=True)], ids=["JPEG", "PNG", "WebP"]
)
def test_a_picture_is_turned_upright_by_its_exif_orientation(content: bytes) -> None:
    pixels = decode(content, height=40, width=30)
    assert np.abs(pixels[:15] - RED).max() < 10
    assert np.abs(pixels[-15:] - BLUE).max() < 10


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_every_exif_orientation_is_turned_upright(form: str, orientation: int) -> None:
    upright = flat("RGB", BLUE, (40, 30))
    upright.paste(RED, (0, 0, 20, 15))  # one corner, so that all eight differ
    methods = {2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}  # Transpose that undoes each, inverted
    stored = upright
    for method in methods.get(orientation, []):
        stored = stored.transpose(Image.Transpose(method))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"exif": exif.tobytes()}
    if form == "TIFF":
        options = {"tiffinfo": {0x0112: orientation}}
    pixels = decode(encoded(stored, form, quality=100, **options), height=30, width=40)
    assert np.abs(pixels[:12, :16] - RED).max() < 30
    assert np.abs(pixels[18:, :] - BLUE).max() < 30
    assert np.abs(pixels[:, 24:] - BLUE).max() < 30


def test_the_whole_picture_is_scaled_whatever_its_proportions() -> None:
    image = flat("RGB", BLUE, (300, 20))
    image.paste(RED, (0, 0, 100, 20))
    image.paste(WHITE, (200, 0, 300, 20))
    pixels = decode(encoded(image), height=8, width=30)
    for middle, color in ((5, RED), (15, BLUE), (25, WHITE)):
        assert np.abs(pixels[:, middle] - color).max() <= 1


def photograph(name: str) -> bytes:
    package = find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    return (Path(package.origin).parent / "datasets" / "images" / name).read_bytes()


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
def test_a_photograph_keeps_its_picture_at_another_size(name: str) -> None:
    content = photograph(name)
    with Image.open(io.BytesIO(content)) as image:
        whole = image.convert("RGB").reduce(10)  # means of 10 x 10 pixels
    assert np.abs(decode(content, whole.height, whole.width) - np.asarray(whole)).mean() < 4


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
def test_decoding_a_jpeg_at_a_part_of_its_size_changes_it_by_less_than_a_grey_level_on_average(
    name: str,
) -> None:
    content = photograph(name)
    with Image.open(io.BytesIO(content)) as image:
        lossless = encoded(image)
    assert np.abs(decode(content, 32, 32) - decode(lossless, 32, 32)).mean() < 1


SMALL = {form: encoded(flat("RGB", RED), form) for form in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")}
TEXT_BOMB = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 25)))

UNREADABLE = {
    "text": (b"a text file\n", "is not a picture in a supported format"),
    "no pixels": (png(0, 0, 8, 2, b""), "is not a picture in a supported format"),
    "an animated GIF": (
        encoded(flat("RGB", RED), "GIF", save_all=True, append_images=[flat("RGB", BLUE)]),
        "has several frames",
    ),
    "a TIFF of floating-point numbers": (encoded(flat("F", 0.5), "TIFF"), "has more than 16 bits per channel"),
    "a TIFF of 32 bits": (encoded(flat("I", 70_000), "TIFF"), "has more than 16 bits per channel"),
    "a TIFF of two pages": (
        encoded(flat("RGB", RED), "TIFF", save_all=True, append_images=[flat("RGB", BLUE)]),
        "has several frames",
    ),
    "a HEIC cut short": (heic(flat("RGB", RED))[:-20], "is damaged"),
    "no bytes": (b"", "is not a picture in a supported format"),
    "an animated PNG": (encoded(flat("1", 1), save_all=True, append_images=[flat("1", 0)]), "has several frames"),
    "an animated WebP": (
        encoded(flat("RGB", RED), "WEBP", save_all=True, append_images=[flat("RGB", BLUE)]),
        "has several frames",
    ),
    "a truncated PNG": (SMALL["PNG"][:-40], "is damaged"),
    "a truncated JPEG": (photograph("china.jpg")[:100_000], "is damaged: image file is truncated"),
    "a JPEG truncated in its header": (SMALL["JPEG"][:100], "is damaged"),
    "a truncated WebP": (SMALL["WEBP"][:-20], "is damaged"),
    "a PNG without data": (SMALL["PNG"][:33] + chunk(b"IEND", b""), "is damaged"),
    "20,000 by 20,000 pixels": (png(20_000, 20_000, 8, 0, b""), "has more than 100,000,000 pixels"),
    "11,000 by 11,000 pixels": (png(11_000, 11_000, 8, 0, b""), "has more than 100,000,000 pixels"),
    "a text of 32 MB in a PNG of a few kB": (png(8, 8, 8, 0, bytes(8), TEXT_BOMB), "is damaged"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_cannot_be_read_has_a_reason(kind: str) -> None:
    content, reason = UNREADABLE[kind]
    with pytest.raises(pictures.Unreadable, match=f"^{reason}"):
        decode(content)


@settings(max_examples=400, deadline=None)
@given(
    form=st.sampled_from(sorted(SMALL)),
    edits=st.lists(st.tuples(st.integers(0, 700), st.integers(0, 9), st.binary(max_size=4)), max_size=3),
)
def test_any_damage_to_a_picture_gives_pixels_or_a_reason(form: str, edits: list[tuple[int, int, bytes]]) -> None:
    content = SMALL[form]
    for start, length, new in edits:
        content = content[:start] + new + content[start + length :]
    try:
        decode(content)
    except pictures.Unreadable as reason:
        assert str(reason).startswith(("is ", "has "))


def test_crop_keeps_the_aspect_ratio_and_cuts_off_the_excess() -> None:
    image = flat("RGB", BLUE, (90, 30))
    image.paste(RED, (0, 0, 30, 30))
    image.paste(WHITE, (60, 0, 90, 30))
    assert np.abs(decode(encoded(image), 10, 10, resize="crop")[:, 1:-1] - BLUE).max() <= 1


@pytest.mark.parametrize(("size", "inside"), [((90, 30), np.s_[10:20, :]), ((30, 90), np.s_[:, 10:20])])
def test_pad_keeps_the_whole_picture_between_black_borders(size: tuple[int, int], inside: Any) -> None:
    pixels = decode(encoded(flat("RGB", RED, size)), 30, 30, resize="pad")
    assert (pixels[inside] == RED).all()
    outside = np.ones((30, 30), bool)
    outside[inside] = False
    assert (pixels[outside] == 0).all()


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
def test_every_resize_rule_takes_pictures_of_extreme_proportions(resize: Any) -> None:
    for size in ((3000, 1), (1, 3000), (1, 1)):
        decode(encoded(flat("RGB", RED, size)), 5, 7, resize=resize)


@pytest.mark.parametrize(("bits", "value"), [(8, 200), (10, 800), (12, 3200), (16, 51200)])
def test_16_bit_grey_is_scaled_from_the_bits_that_the_set_uses(bits: int, value: int) -> None:
    content = png(8, 8, 16, 0, value.to_bytes(2, "big") * 8)
    assert pictures.used_bits(io.BytesIO(content)) == bits
    assert (decode(content, grey_bits=bits) == 200).all()


def test_16_bit_grey_above_the_range_becomes_white() -> None:
    assert (decode(png(8, 8, 16, 0, b"\x81\x80" * 8), grey_bits=10) == 255).all()


def tiff(pixels: bytes, channels: int, photometric: int, order: str) -> bytes:
    """A TIFF file of 16-bit pixels, 8 x 8; order: struct's code of the order of bytes."""
    tags = {256: 8, 257: 8, 258: 16, 262: photometric, 273: 0, 277: channels, 278: 8, 279: 128 * channels}
    start = 8 + 2 + 12 * len(tags) + 4
    bits = struct.pack(f"{order}{channels}H", *[16] * channels)
    tags[273] = start + len(bits)
    content = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    for tag, value in tags.items():
        content += struct.pack(f"{order}HHI", tag, 4, 1) + struct.pack(f"{order}I", value)
    content = content.replace(  # the bits of each channel, where there are several
        struct.pack(f"{order}HHII", 258, 4, 1, 16),
        struct.pack(f"{order}HHII", 258, 3, channels, start)
        if channels > 2
        else struct.pack(f"{order}HHIHxx", 258, 3, 1, 16),
    )
    return content + bytes(4) + bits + pixels


def deep(form: str, values: list[int]) -> bytes:
    """A picture of one color, given by its 16-bit values."""
    kind, _, byte_order = form.partition(" ")
    order = "<" if byte_order == "II" else ">"
    pixels = struct.pack(f"{order}{len(values)}H", *values) * 8
    if kind == "PNG":
        return png(8, 8, 16, {3: 2, 4: 6}[len(values)], pixels)
    return tiff(pixels * 8, len(values), 2, order)


@pytest.mark.parametrize("form", ["PNG", "TIFF II", "TIFF MM"])
@pytest.mark.parametrize("bits", [9, 10, 12, 16])
def test_16_bit_color_is_scaled_from_the_bits_that_the_set_uses(form: str, bits: int) -> None:
    color = (10, 200, 100)
    content = deep(form, [(value << (bits - 8)) + 1 for value in color])
    assert pictures.used_bits(io.BytesIO(content)) == bits
    assert (decode(content, grey_bits=bits) == color).all()


def test_16_bit_color_with_12_bits_and_transparency_is_white_where_it_is_transparent() -> None:
    assert (decode(deep("PNG", [160, 3200, 1600, 65535]), grey_bits=12) == (10, 200, 100)).all()
    assert (decode(deep("PNG", [160, 3200, 1600, 0]), grey_bits=12) == WHITE).all()


def test_16_bit_grey_where_0_is_white_is_inverted() -> None:
    content = tiff(struct.pack("<H", 4095 - 3200) * 64, 1, 0, "<")
    assert (decode(content, grey_bits=12) == 200).all()


def test_used_bits_of_other_pictures_are_0() -> None:
    assert pictures.used_bits(io.BytesIO(SMALL["PNG"])) == 0


def swapped_profile() -> bytes:
    """A color profile in which red and green are swapped."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = profile.index(b"rXYZ"), profile.index(b"gXYZ")
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    description = profile.index("sRGB".encode("utf-16-be"))
    profile[description : description + 8] = "Some".encode("utf-16-be")
    return bytes(profile)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_an_embedded_color_profile_is_converted_to_srgb(form: str) -> None:
    content = encoded(flat("RGB", RED), form, icc_profile=swapped_profile(), quality=100)
    assert np.abs(decode(content) - (0, 255, 0)).max() <= 6


def test_a_color_profile_applies_to_transparent_pictures_too() -> None:
    pixels = decode(encoded(flat("RGBA", (255, 0, 0, 128)), icc_profile=swapped_profile()))
    assert np.abs(pixels - (127, 255, 127)).max() <= 6


def test_an_srgb_profile_changes_no_pixel() -> None:
    image = Image.open(io.BytesIO(photograph("flower.jpg"))).convert("RGB")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert (decode(encoded(image, icc_profile=profile), 32, 32) == decode(encoded(image), 32, 32)).all()


@pytest.mark.parametrize("profile", [b"no profile", swapped_profile()[:200]])
def test_a_damaged_color_profile_is_ignored(profile: bytes) -> None:
    assert (decode(encoded(flat("RGB", RED), icc_profile=profile)) == RED).all()


def test_a_profile_for_another_mode_is_ignored() -> None:
    assert (decode(encoded(flat("L", 100), icc_profile=swapped_profile())) == 100).all()


def test_a_heic_without_pillow_heif_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(pictures.Unreadable, match=r"is a HEIC picture; .* pip install pillow-heif"):
        decode(heic(flat("RGB", RED)))
