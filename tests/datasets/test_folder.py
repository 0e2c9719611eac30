"""stages/datasets/folder.py: the splits that become of a folder of pictures, or of an archive of one."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import unicodedata
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from stages.common.failure import StageError
from stages.datasets import Dataset, folder
from tests.common.test_pictures import BLUE, RED, SMALL, UNREADABLE, encoded, flat, photograph, png
from tests.project import ROOT


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, content: bytes = SMALL["PNG"]) -> Path:
    path = Path("pictures") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_shades(part: str = "", count: int = 10, first: int = 0) -> list[Path]:
    """Write pictures, all different: cats are shades of red, dogs are shades of blue, from bright to dark."""
    return [
        write(f"{part}{name}/{shade}.png", encoded(flat("RGB", color)))
        for shade in range(first, first + count)
        for name, color in (("cat", (255 - shade, 0, 0)), ("dog", (0, 0, 255 - shade)))
    ]


def load(**changes: Any) -> Dataset:
    values = {"pixels": 4, "channels": 3, "resize": "stretch", "labels": "", "exclude": [], "val_as": "test"}
    values |= {"test_fraction": 0.2, "seed": 7, "skip_unreadable": False, "groups": [], "relabel": ""}
    with folder.load(folder.Params.model_validate(values | changes), Path()) as dataset:
        train, test = (replace(split, images=array(split.images)) for split in (dataset.train, dataset.test))
    return replace(dataset, train=train, test=test)


def array(images: Any) -> NDArray[np.uint8]:
    """The images of a split in memory."""
    return np.concatenate([np.zeros((0, *images.shape[1:]), np.uint8), *images.chunks])


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
    write_shades("train/", count=5, first=3)
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
def test_files_that_are_not_pictures_do_not_change_the_dataset(repository: Path, name: str) -> None:
    write_shades()
    first = load()
    write(name, b"no picture")
    assert load().sha256 == first.sha256


def write_unreadable() -> dict[str, str]:
    """Files that cannot be read, and the reason of each."""
    write("cat/animated.png", UNREADABLE["an animated PNG"][0])
    write("cat/empty.jpg", b"")
    write("cat/huge.png", UNREADABLE["20,000 by 20,000 pixels"][0])
    write("dog/text.png", b"text")
    os.mkfifo("pictures/dog/pipe.png")
    Path("pictures/dog/broken.png").symlink_to("nowhere")
    return {
        "cat/animated.png": "has several frames",
        "cat/empty.jpg": "is empty",
        "cat/huge.png": "has more than 100,000,000 pixels",
        "dog/broken.png": "is not a file",
        "dog/pipe.png": "is not a file",
        "dog/text.png": "is not a picture in a supported format",
    }


def test_unreadable_pictures_are_listed_in_one_error(repository: Path) -> None:
    write_shades()
    reasons = write_unreadable()
    with pytest.raises(
        StageError, match=r"6 of 26 pictures .* or set dataset.folder.skip_unreadable to true"
    ) as error:
        load()
    for name, reason in reasons.items():
        assert f"{name} {reason}" in str(error.value)


def test_unreadable_pictures_are_skipped_on_request_and_listed(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shades()
    sound = load()
    reasons = write_unreadable()
    dataset = load(skip_unreadable=True)
    assert contents(dataset) == contents(sound)
    assert dataset.sha256 == sound.sha256
    assert dataset.edition == "pictures of your own: 20 files in pictures/, 6 skipped"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("pictures: skipped: 6 of 26 pictures cannot be read (is not a file: 2, ")
    listed = folder.UNREADABLE.read_text().splitlines()
    for one, (name, reason) in zip(listed, reasons.items(), strict=True):
        assert one.startswith(f"{name} {reason}")


def test_a_name_with_a_line_break_is_listed_in_one_line(repository: Path) -> None:
    write_shades()
    write("cat/a\nb.png")
    with pytest.raises(StageError, match=r"'cat/a\\nb.png' has an unprintable name"):
        load()


def link_a_class() -> None:
    write_shades()
    Path("pictures/cat").rename("elsewhere")
    Path("pictures/cat").symlink_to(Path("elsewhere").resolve())


WRONG_FOLDERS: dict[str, tuple[Callable[[], object], str]] = {
    "none": (lambda: None, "pictures: no such folder or archive; set dataset.folder.path"),
    "an empty file": (lambda: Path("pictures").touch(), r"pictures: not a folder, \.zip or uncompressed \.tar"),
    "one picture in a class": (
        lambda: (write_shades(), write("emu/1.png", encoded(flat("RGB", (9, 9, 9))))),
        r"no readable training pictures of emu; add some \(a class needs two, one of them for testing\)",
    ),
    "a linked class": (link_a_class, "pictures/cat: a link to a folder, in which DVC sees no changes"),
}


@pytest.mark.parametrize("kind", WRONG_FOLDERS)
def test_a_folder_without_a_dataset_is_an_error(repository: Path, kind: str) -> None:
    make, message = WRONG_FOLDERS[kind]
    make()
    with pytest.raises(StageError, match=message):
        load()


def test_a_class_without_a_readable_picture_is_an_error(repository: Path) -> None:
    write("cat/1.png", b"")
    write("dog/1.png")
    write("dog/2.png")
    with pytest.raises(StageError, match="no readable training pictures of cat"):
        load(skip_unreadable=True)


@pytest.mark.parametrize(("classes", "dtype"), [(256, np.uint8), (257, np.uint16)])
def test_labels_have_as_many_bytes_as_the_classes_need(repository: Path, classes: int, dtype: Any) -> None:
    for number in range(classes):
        for color in (RED, BLUE):
            write(f"{number:03}/{color}.png", encoded(flat("RGB", color, (1, 1))))
    dataset = load(pixels=1)
    assert dataset.train.labels.dtype == dtype
    assert sorted(dataset.train.labels) == sorted(dataset.test.labels) == list(range(classes))


def test_reading_twice_gives_the_same_bytes(repository: Path) -> None:
    for name in ("china.jpg", "flower.jpg"):
        write(f"{name[:-4]}/1.jpg", photograph(name))
        write(f"{name[:-4]}/2.jpg", encoded(Image.open(io.BytesIO(photograph(name))).rotate(180)))
    first, second = load(pixels=[24, 32]), load(pixels=[24, 32])
    assert contents(first) == contents(second)


def test_val_is_the_end_of_the_training_images(repository: Path) -> None:
    for part, count, first in (("train/", 5, 0), ("val/", 3, 5), ("test/", 2, 8)):
        write_shades(part, count, first)
    write("val/cat/unlike.png", encoded(flat("RGB", (9, 9, 9))))
    dataset = load()
    assert (dataset.validation, len(dataset.train.labels), len(dataset.test.labels)) == (7, 17, 4)
    assert (9, 9, 9) in [tuple(image[0, 0]) for image in dataset.train.images[-7:]]


def test_a_class_without_test_pictures_is_a_warning(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shades("train/")
    write("test/cat/1.png")
    assert load().test.labels.tolist() == [0]
    assert "warning: no test pictures of dog; these classes will have no figures" in capsys.readouterr().err


def test_a_table_gives_classes_and_splits(repository: Path) -> None:
    write_shades("images/", 2)
    rows = ["images/cat/0.png,warm,train", "images/cat/1.png,warm,test", "images/dog/0.png,cold,train"]
    write("labels.csv", "\n".join(["path,label,split", *rows, "images/dog/1.png,cold,test"]).encode())
    dataset = load(labels="labels.csv")
    assert dataset.classes == ("cold", "warm")
    assert [sorted(split.labels) for split in (dataset.train, dataset.test)] == [[0, 1], [0, 1]]
    write("labels.csv", Path("pictures/labels.csv").read_bytes() + b"\n")
    assert load(labels="labels.csv").sha256 != dataset.sha256


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"pictures/labels\.csv: no such file \(dataset\.folder\.labels\); CSV files there: other\.csv"),
        (b"\xff\xfe", r"pictures/labels\.csv: not UTF-8 at byte 0"),
    ],
)
def test_a_table_that_cannot_be_read_is_named(repository: Path, content: bytes | None, message: str) -> None:
    write_shades()
    write("other.csv", b"")
    if content:
        write("labels.csv", content)
    with pytest.raises(StageError, match=message):
        load(labels="labels.csv")


def test_16_bit_pictures_of_12_bits_use_the_whole_range(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("cat", "dog"):
        for level in (1, 2048, 4095):
            write(f"{name}/{level}.png", png(8, 8, 16, 0, level.to_bytes(2, "big") * 8))
    dataset = load(channels=1)
    assert dataset.decoding is not None
    assert dataset.decoding.grey_bits == 12
    assert {*dataset.train.images.flat, *dataset.test.images.flat} == {0, 128, 255}
    assert "16-bit pictures use 12 bits; scaled from 12 to 8 bits" in capsys.readouterr().err


@pytest.mark.parametrize("cores", [1, 2, 4])
def test_the_number_of_cores_does_not_change_the_dataset(
    repository: Path, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shades(count=60)
    write("cat/broken.png", b"")
    first = load(skip_unreadable=True)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert contents(load(skip_unreadable=True)) == contents(first)


def pack_zip(path: Path, folder: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in folder.rglob("*"):
            archive.write(file, file.relative_to(folder))


def pack_tar(path: Path, folder: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.add(folder, ".")


@pytest.mark.parametrize("pack", [pack_zip, pack_tar])
def test_an_archive_gives_the_same_dataset_as_the_folder(repository: Path, pack: Any) -> None:
    write_shades()
    write("__MACOSX/cat/._1.png", b"x")
    pack(Path("set.archive"), Path("pictures"))
    from_folder, from_archive = load(), load(path="set.archive")
    assert contents(from_archive) == contents(from_folder)
    assert from_archive.sha256 == from_folder.sha256
    assert from_archive.edition == "pictures of your own: 20 files in set.archive"


def test_a_zip_with_windows_separators_is_read(repository: Path) -> None:
    write_shades()
    with zipfile.ZipFile("set.zip", "w") as archive:
        for file in Path("pictures").rglob("*.*"):
            archive.write(file, str(file.relative_to("pictures")).replace("/", "\\"))
    assert contents(load(path="set.zip")) == contents(load())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["../a/1.png"], r"set\.archive: '\.\./a/1\.png' is not a safe path; pack the folder again"),
        (["/a/1.png"], r"set\.archive: '/a/1\.png' is not a safe path"),
        (["a/1.png", "a/1.png"], r"set\.archive: 'a/1\.png' is in it twice"),
    ],
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_with_unsafe_names_is_refused(
    repository: Path, kind: str, names: list[str], message: str
) -> None:
    if kind == "zip":
        with warnings.catch_warnings(action="ignore"), zipfile.ZipFile("set.archive", "w") as archive:
            for name in names:
                archive.writestr(name, b"")
    else:
        with tarfile.open("set.archive", "w") as tar:
            for name in names:
                tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(StageError, match=message):
        load(path="set.archive")


def test_links_and_devices_in_a_tar_are_not_pictures(repository: Path) -> None:
    write_shades()
    pack_tar(Path("set.tar"), Path("pictures"))
    with tarfile.open("set.tar", "a") as tar:
        for name, kind in (("cat/link.png", tarfile.SYMTYPE), ("dog/device.png", tarfile.CHRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/hostname"
            tar.addfile(member)
    with pytest.raises(StageError, match=r"2 of 22 pictures cannot be read \(is not a file: 2\)"):
        load(path="set.tar")


@pytest.mark.parametrize("damage", ["cut at a header", "cut in a header", "cut in a picture", "damaged header"])
def test_a_truncated_or_damaged_tar_is_refused(repository: Path, damage: str) -> None:
    write_shades()
    pack_tar(Path("set.tar"), Path("pictures"))
    with tarfile.open("set.tar") as archive:
        start = archive.getmembers()[-1].offset
    content = bytearray(Path("set.tar").read_bytes())
    cuts = {"cut at a header": 0, "cut in a header": 100, "cut in a picture": tarfile.BLOCKSIZE + 10}
    if damage in cuts:
        del content[start + cuts[damage] :]
    else:
        content[start + 10] ^= 1
    Path("set.tar").write_bytes(content)
    with pytest.raises(
        StageError, match=r"^set\.tar: not a folder, \.zip or uncompressed \.tar \(.*\); if it is intact"
    ):
        load(path="set.tar")


@pytest.mark.parametrize(
    ("name", "hint"), [("a.tar.xz", "run: unxz a.tar.xz"), ("a.7z", "if it is intact, unpack it")]
)
def test_an_archive_of_another_format_is_one_line(repository: Path, name: str, hint: str) -> None:
    Path(name).write_bytes(b"7z\xbc\xaf" + bytes(600))
    with pytest.raises(StageError, match=hint):
        load(path=name)


def test_a_thousand_unreadable_pictures_are_summarized(repository: Path) -> None:
    write_shades()
    for number in range(1000):
        write(f"cat/broken {number}.png", b"" if number % 2 else b"text")
    with pytest.raises(StageError) as caught:
        load()
    assert len(str(caught.value)) < 2000
    assert "1,000 of 1,020 pictures cannot be read (is not a picture in a supported format" in str(caught.value)
    assert "is empty: 500): " in str(caught.value)
    assert f"and 990 more, in {folder.UNREADABLE}" in str(caught.value)
    assert len(folder.UNREADABLE.read_text().splitlines()) == 1000


DOWNLOAD = """
import resource, sys
from stages import download
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
download.main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_number_of_pictures(repository: Path) -> None:
    """480 pictures of 256 x 256 pixels are 94 MB."""
    for name in ("cat", "dog"):
        for shade in range(240):
            write(f"{name}/{shade}.png", encoded(flat("RGB", (shade, 0, len(name)))))
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    text = text.replace("name: cifar10", "name: folder").replace("pixels: 32", "pixels: 256")
    Path("params.yaml").write_text(text, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", DOWNLOAD, "--out", "raw"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 60_000  # kB
    assert json.loads(Path("raw/source.json").read_text())["decoding"]["resize"] == "stretch"
    assert {path.name for path in Path("raw").iterdir()} == {".lock", "source.json", "test.npz", "train.npz"}


def names(dataset: Dataset) -> tuple[set[str], set[str]]:
    return set(dataset.train.names), set(dataset.test.names)


@pytest.mark.parametrize("seed", range(5))
def test_copies_under_other_names_and_encodings_are_on_one_side(repository: Path, seed: int) -> None:
    write_shades(count=20)
    for shade in range(8):
        for suffix in ("bmp", "webp"):
            color = flat("RGB", (255 - shade, 0, 0))
            write(f"cat/copy-{shade}.{suffix}", encoded(color, suffix.upper(), lossless=True))
    dataset = load(seed=seed)
    train, test = names(dataset)
    assert len(train) + len(test) == 56
    assert test
    for shade in range(8):
        copies = {f"cat/{shade}.png", f"cat/copy-{shade}.bmp", f"cat/copy-{shade}.webp"}
        assert copies <= train or copies <= test
    pixels = [{image.tobytes() for image in split.images} for split in (dataset.train, dataset.test)]
    assert not pixels[0] & pixels[1]


def test_of_given_splits_the_test_split_is_kept_and_its_copies_leave_training(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shades("train/", count=10)
    write_shades("test/", count=3)
    train, test = names(load())
    assert (len(train), len(test)) == (14, 6)
    assert not {name.removeprefix("train/") for name in train} & {name.removeprefix("test/") for name in test}
    assert "left out 6 pictures that have the same pixels as a picture held out" in capsys.readouterr().err


def test_identical_pictures_with_two_labels_are_a_warning(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shades()
    write("dog/a-cat.png", encoded(flat("RGB", (255, 0, 0))))
    load()
    expected = "identical pictures have several labels (1 sets), such as cat/0.png (cat) and dog/a-cat.png (dog)"
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("rule", [r"patient(\d+)", "groups.csv"])
@pytest.mark.parametrize("seed", range(3))
def test_a_group_is_never_on_both_sides_and_the_fraction_is_about_right(
    repository: Path, rule: str, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["path,group"]
    for shade in range(60):
        for name, color in (("cat", (255 - shade, 0, 0)), ("dog", (0, 0, 255 - shade))):
            write(f"{name}/patient{shade % 15}-{shade}.png", encoded(flat("RGB", color)))
            rows.append(f"{name}/patient{shade % 15}-{shade}.png,{shade % 15}")
    write("groups.csv", "\n".join(rows).encode())
    dataset = load(groups=rule, seed=seed)
    train, test = ({name.partition("patient")[2].partition("-")[0] for name in part} for part in names(dataset))
    assert not train & test
    assert 20 <= len(dataset.test.labels) <= 28
    assert "puts 120 pictures into 15 groups" in capsys.readouterr().err


def test_runs_of_training_images_that_validation_must_not_separate_are_named(repository: Path) -> None:
    write_shades(count=20)
    dataset = load(groups=[r"/(\d)\d?\.png"])  # by the first digit of the shade
    digits = [Path(name).stem[0] for name in dataset.train.names]
    for start, stop in dataset.together:
        assert len(set(digits[start:stop])) == 1
    assert sum(stop - start for start, stop in dataset.together) == len(digits)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ("none-(.)", "'none-(.)' matches none of the pictures in pictures; correct it"),
        ("none.csv", "pictures/none.csv: no such file (dataset.folder.groups); CSV files there: groups.csv"),
        (
            "groups.csv",
            "pictures/groups.csv:2: 'emu.png' is not a picture in pictures/; correct or remove this row",
        ),
    ],
)
def test_a_rule_that_groups_nothing_is_an_error(repository: Path, groups: str, message: str) -> None:
    write_shades()
    write("groups.csv", b"path,group\nemu.png,1\n")
    with pytest.raises(StageError, match=re.escape(message)):
        load(groups=groups)


def test_a_rule_that_is_no_regular_expression_is_refused() -> None:
    with pytest.raises(ValueError, match="is not a regular expression"):
        load(groups="(")


def test_a_table_of_corrections_changes_labels_and_drops_pictures(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shades()
    before = load()
    write("fixes.csv", b"path,label\ncat/1.png,dog\ncat/2.png,drop\ncat/3.png,cat\n")
    after = load(relabel="fixes.csv")
    found = dict(zip(after.train.names, after.train.labels, strict=True))
    found |= dict(zip(after.test.names, after.test.labels, strict=True))
    assert (found["cat/1.png"], found["cat/3.png"], len(found)) == (1, 0, 19)
    assert "cat/2.png" not in found
    assert after.sha256 != before.sha256
    assert "fixes.csv changes the labels of 1 pictures and leaves out 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,class\n", "pictures/fixes.csv: no column 'label'; expected path,label"),
        (
            "path,label\ncat/1.png,dgo\n",
            "pictures/fixes.csv:2: 'dgo' is neither a class nor drop; did you mean 'dog'?",
        ),
        ("path,label\ncat/1.png,dog\ncat/1.png,cat\n", "pictures/fixes.csv:3: 'cat/1.png' has an earlier row"),
        ("path,label\n1.png,dog\n", "pictures/fixes.csv:2: '1.png' is the name of 2 pictures"),
    ],
)
def test_a_wrong_table_of_corrections_names_file_and_line(repository: Path, content: str, message: str) -> None:
    write_shades()
    write("fixes.csv", content.encode())
    with pytest.raises(StageError, match=re.escape(message)):
        load(relabel="fixes.csv")
