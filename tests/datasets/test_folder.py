"""stages/datasets/folder.py: what becomes of each kind of picture, and of each wrong folder."""

import io
import os
import shutil
import struct
import subprocess
import unicodedata
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stages.common import pictures
from stages.common.failure import StageError
from stages.common.pictures import Decoding
from stages.datasets import Dataset, folder

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


def decode(content: bytes, height: int = 2, width: int = 2, channels: int = 3) -> Any:
    pixels = pictures.decode(io.BytesIO(content), Decoding(height=height, width=width, channels=channels))
    assert pixels.dtype == np.uint8
    assert pixels.shape == (height, width, channels)
    return pixels.astype(int)


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


SMALL = {form: encoded(flat("RGB", RED), form) for form in ("PNG", "JPEG", "WEBP")}
TEXT_BOMB = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 25)))

UNREADABLE = {
    "text": (b"a text file\n", "is not a picture in a supported format"),
    "no pixels": (png(0, 0, 8, 2, b""), "is not a picture in a supported format"),
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
    places=st.lists(st.tuples(st.integers(0, 700), st.integers(0, 9), st.binary(max_size=4)), max_size=3),
)
def test_any_damage_to_a_picture_gives_pixels_or_a_reason(form: str, places: list[tuple[int, int, bytes]]) -> None:
    content = SMALL[form]
    for start, length, new in places:
        content = content[:start] + new + content[start + length :]
    try:
        decode(content)
    except pictures.Unreadable as reason:
        assert str(reason).startswith(("is ", "has "))


# Folders.


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, content: bytes = SMALL["PNG"]) -> Path:
    path = Path("pictures") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_shades(part: str = "", count: int = 10) -> list[Path]:
    """Write pictures of which no two are the same: cats are shades of red, dogs are shades of blue."""
    return [
        write(f"{part}{name}/{shade}.png", encoded(flat("RGB", color)))
        for shade in range(count)
        for name, color in (("cat", (255 - shade, 0, 0)), ("dog", (0, 0, 255 - shade)))
    ]


def load(**changes: Any) -> Dataset:
    values = {"pixels": 4, "channels": 3, "test_fraction": 0.2, "seed": 7, "skip_unreadable": False}
    return folder.load(folder.Params.model_validate(values | changes))


def contents(dataset: Dataset) -> list[bytes]:
    splits = (dataset.train, dataset.test)
    return [array.tobytes() for split in splits for array in (split.images, split.labels)]


def test_one_tree_is_split_in_each_class(repository: Path) -> None:
    write_shades()
    dataset = load()
    assert dataset.name == "folder"
    assert dataset.classes == ("cat", "dog")
    assert dataset.edition == "pictures of your own: 20 files in pictures/"
    for split, count in ((dataset.train, 8), (dataset.test, 2)):
        assert split.images.dtype == split.labels.dtype == np.uint8
        assert split.images.shape == (2 * count, 4, 4, 3)
        assert np.bincount(split.labels).tolist() == [count, count]
        assert split.official == 2 * count
        assert np.array_equal(split.labels, (split.images[:, 0, 0, 2] > 0).astype(np.uint8))


def test_no_picture_is_in_both_splits_and_none_is_lost(repository: Path) -> None:
    write_shades()
    dataset = load()
    reds = [*dataset.train.images[:, 0, 0, 0], *dataset.test.images[:, 0, 0, 0]]
    assert sorted(reds) == [0] * 10 + list(range(246, 256))


@pytest.mark.parametrize(("fraction", "count"), [(0.01, 1), (0.4, 4), (0.99, 9)])
def test_each_class_has_a_picture_in_both_splits_whatever_the_fraction(
    repository: Path, fraction: float, count: int
) -> None:
    write_shades(count=10)
    assert np.bincount(load(test_fraction=fraction).test.labels).tolist() == [count, count]


def test_train_and_test_are_kept_as_they_are(repository: Path) -> None:
    write_shades("train/", count=5)
    write_shades("test/", count=3)
    dataset = load()
    assert (len(dataset.train.labels), len(dataset.test.labels)) == (10, 6)
    assert sorted(dataset.test.images[dataset.test.labels == 0, 0, 0, 0]) == [253, 254, 255]


def test_the_last_fifth_of_the_training_images_has_every_class(repository: Path) -> None:
    write_shades(count=30)
    labels = load().train.labels
    assert set(labels[-len(labels) // 5 :]) == {0, 1}


@pytest.mark.parametrize(("pixels", "shape"), [(4, (4, 4)), ([3, 5], (3, 5))])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_is_height_and_width_or_one_number(
    repository: Path, pixels: Any, shape: tuple[int, int], channels: int
) -> None:
    write_shades()
    assert load(pixels=pixels, channels=channels).train.images.shape[1:] == (*shape, channels)


@pytest.mark.parametrize(
    "change",
    [
        {"pixels": 0},
        {"pixels": True},
        {"pixels": [4]},
        {"pixels": [4, 4, 3]},
        {"pixels": 5000},
        {"channels": 2},
        {"test_fraction": 0.0},
        {"test_fraction": 1.0},
        {"seed": -1},
        {"path": ""},
        {"skip_unreadable": "no"},
    ],
)
def test_a_wrong_choice_is_refused_before_anything_is_read(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        load(**change)


def test_the_order_in_which_files_were_made_does_not_matter(repository: Path) -> None:
    write_shades()
    first = load()
    names = sorted(Path("pictures").rglob("*.png"), reverse=True)
    kept = {name.relative_to("pictures"): name.read_bytes() for name in names}
    shutil.rmtree("pictures")
    for name, content in kept.items():
        write(str(name), content)
    assert contents(load()) == contents(first)
    assert load().sha256 == first.sha256


def test_another_seed_gives_another_split_of_the_same_pictures(repository: Path) -> None:
    write_shades()
    assert contents(load(seed=1)) != contents(load(seed=2))
    assert load(seed=1).sha256 == load(seed=2).sha256


def test_names_do_not_move_pictures_between_the_splits(repository: Path) -> None:
    write_shades()
    first = load()
    Path("pictures/cat/3.png").rename("pictures/cat/x.PNG")
    assert contents(load()) == contents(first)
    assert load().sha256 != first.sha256


def test_one_more_picture_moves_at_most_one_other_between_the_splits(repository: Path) -> None:
    write_shades(count=20)
    before = {image.tobytes() for image in load().test.images}
    write("cat/new.png", encoded(flat("RGB", (77, 0, 0))))
    after = {image.tobytes() for image in load().test.images}
    assert len(before - after) <= 1


def test_the_sha256_changes_with_a_pictures_content_alone(repository: Path) -> None:
    write_shades()
    first = load().sha256
    write("cat/0.png", encoded(flat("RGB", (255, 0, 0)), compress_level=0))  # the same pixels
    assert load().sha256 != first


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum of the GNU coreutils")
def test_the_sha256_can_be_had_from_the_shell(repository: Path) -> None:
    write_shades("train/")
    write_shades("test/", count=3)
    command = "find . -type f -printf '%P\\n' | LC_ALL=C sort | xargs sha256sum | sha256sum"
    found = subprocess.run(
        ["sh", "-c", command], cwd="pictures", capture_output=True, text=True, check=True
    ).stdout
    assert found.split()[0] == load().sha256


def test_a_name_with_an_accent_is_the_same_however_the_file_system_keeps_it(repository: Path) -> None:
    digests, classes = set(), set()
    for form in ("NFC", "NFD"):
        shutil.rmtree("pictures", ignore_errors=True)
        for name in ("été", "hiver"):
            for color in (RED, BLUE):
                write(unicodedata.normalize(form, f"{name}/là {color}.png"), encoded(flat("RGB", color)))
        dataset = load()
        digests.add(dataset.sha256)
        classes.add(dataset.classes)
    assert classes == {("hiver", "été")}
    assert len(digests) == 1


def test_the_suffix_decides_nothing_but_that_it_is_a_picture(repository: Path) -> None:
    write_shades()
    write("cat/0.png", SMALL["JPEG"])
    write("cat/1.JPEG", SMALL["WEBP"])
    assert load().edition.startswith("pictures of your own: 21 files")


def test_a_linked_picture_is_read(repository: Path) -> None:
    write_shades()
    Path("elsewhere.png").write_bytes(SMALL["PNG"])
    Path("pictures/cat/link.png").symlink_to(Path("elsewhere.png").resolve())
    assert load().edition.startswith("pictures of your own: 21 files")


@pytest.mark.parametrize("name", [".gitkeep", "README.md", "cat/.DS_Store", "dog/Thumbs.db", ".hidden/1.png"])
def test_what_systems_and_people_leave_beside_pictures_is_passed_over(repository: Path, name: str) -> None:
    write_shades()
    first = load()
    write(name, b"no picture")
    assert load().sha256 == first.sha256


def write_odd_ones() -> dict[str, str]:
    """Six files that cannot be read, and the reason of each."""
    write("cat/animated.png", UNREADABLE["an animated PNG"][0])
    write("cat/empty.jpg", b"")
    write("cat/huge.png", UNREADABLE["20,000 by 20,000 pixels"][0])
    write("dog/kittens/1.png")
    write("dog/notes.txt", b"")
    write("dog/text.png", b"text")
    os.mkfifo("pictures/dog/pipe.png")
    Path("pictures/dog/broken.png").symlink_to("nowhere")
    return {
        "cat/animated.png": "has several frames",
        "cat/empty.jpg": "is empty",
        "cat/huge.png": "has more than 100,000,000 pixels",
        "dog/broken.png": "is not a file",
        "dog/kittens": "is a folder within a class",
        "dog/notes.txt": "is not named .png, .jpg, .jpeg, .webp",
        "dog/pipe.png": "is not a file",
        "dog/text.png": "is not a picture in a supported format",
    }


def test_all_that_cannot_be_read_is_listed_in_one_error(repository: Path) -> None:
    write_shades()
    reasons = write_odd_ones()
    with pytest.raises(
        StageError, match=r"8 of 28 files .* or set dataset.folder.skip_unreadable to true"
    ) as error:
        load()
    for name, reason in reasons.items():
        assert f"{name} {reason}" in str(error.value)


def test_all_that_cannot_be_read_is_skipped_on_demand_and_named(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shades()
    sound = load()
    reasons = write_odd_ones()
    dataset = load(skip_unreadable=True)
    assert contents(dataset) == contents(sound)
    assert dataset.sha256 == sound.sha256
    assert dataset.edition == "pictures of your own: 20 files in pictures/, 8 skipped"
    lines = capsys.readouterr().err.splitlines()
    for line, (name, reason) in zip(lines, reasons.items(), strict=True):
        assert line.startswith(f"pictures: skipped: {name} {reason}")


def test_a_name_with_a_line_break_is_listed_in_one_line(repository: Path) -> None:
    write_shades()
    write("cat/a\nb.png")
    with pytest.raises(StageError, match=r"'cat/a\\nb.png' has a name that cannot be shown"):
        load()


def link_a_class() -> None:
    write_shades()
    Path("pictures/cat").rename("elsewhere")
    Path("pictures/cat").symlink_to(Path("elsewhere").resolve())


WRONG_FOLDERS: dict[str, tuple[Callable[[], object], str]] = {
    "none": (lambda: None, "pictures: no such folder; one subfolder a class"),
    "a file": (lambda: Path("pictures").touch(), "pictures: no such folder; one subfolder a class"),
    "no class": (lambda: write("README.md"), "pictures: 0 classes found, 2 to 256 expected"),
    "one class": (lambda: write("cat/1.png"), r"pictures: 1 class found \(cat\), 2 to 256 expected"),
    "an empty class": (
        lambda: (write("cat/1.png"), write("dog/.gitkeep")),
        "pictures/dog: this class has no picture",
    ),
    "257 classes": (
        lambda: [write(f"{number}/1.png") for number in range(257)],
        "pictures: 257 classes found, 2 to 256 expected",
    ),
    "a picture without a class": (
        lambda: (write_shades(), write("1.jpg")),
        "pictures/1.jpg: this picture is in no class's folder",
    ),
    "one picture in a class": (
        lambda: (write_shades(), write("emu/1.png")),
        "'emu' has no picture left for train",
    ),
    "other classes in test": (
        lambda: (write_shades("train/"), write_shades("test/"), write("test/emu/1.png")),
        "only one of train/ and test/ has the class 'emu'",
    ),
    "a third part": (
        lambda: (write_shades("train/"), write_shades("test/"), write_shades("val/")),
        "beside train/ and test/ there is 'val'",
    ),
    "a picture beside train and test": (
        lambda: (write_shades("train/"), write_shades("test/"), write("1.webp")),
        "beside train/ and test/ there is '1.webp'",
    ),
    "one class in test": (
        lambda: (write_shades("train/"), write("test/cat/1.png")),
        r"pictures/test: 1 class found \(cat\), 2 to 256 expected",
    ),
    "one name in two forms": (
        lambda: (write("\xe9/1.png"), write("e\u0301/1.png")),
        "is unprintable or there twice",
    ),
    "an unprintable class": (lambda: (write_shades(), write("a\nb/1.png")), r"'a\\nb' is unprintable"),
    "a linked class": (link_a_class, "pictures/cat: a link to a folder, in which DVC sees no change"),
}


@pytest.mark.parametrize("kind", WRONG_FOLDERS)
def test_a_folder_that_is_not_as_expected_is_refused(repository: Path, kind: str) -> None:
    make, message = WRONG_FOLDERS[kind]
    make()
    with pytest.raises(StageError, match=message):
        load()


def test_a_class_of_which_nothing_is_left_after_skipping_is_refused(repository: Path) -> None:
    write("cat/1.png", b"")
    write("dog/1.png")
    write("dog/2.png")
    with pytest.raises(StageError, match="the class 'cat' has no picture left for train"):
        load(skip_unreadable=True)


def test_256_classes_can_be_told_apart(repository: Path) -> None:
    for number in range(256):
        for color in (RED, BLUE):
            write(f"{number:03}/{color}.png", encoded(flat("RGB", color, (1, 1))))
    dataset = load(pixels=1)
    assert sorted(dataset.train.labels) == sorted(dataset.test.labels) == list(range(256))


def test_reading_twice_gives_the_same_bytes(repository: Path) -> None:
    for name in ("china.jpg", "flower.jpg"):
        for copy in range(2):
            write(f"{name[:-4]}/{copy}.jpg", photograph(name) + bytes(copy))
    first, second = load(pixels=[24, 32]), load(pixels=[24, 32])
    assert contents(first) == contents(second)
