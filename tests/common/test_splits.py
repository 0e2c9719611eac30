import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stages.common import splits
from stages.common.failure import StageError
from tests.project import ROOT

IN_ONE_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def arrays(kind: str, count: int = 5) -> tuple[NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 4, 3, 2), dtype=np.uint8)
    labels = rng.integers(0, 3, count, dtype=np.uint8)
    if kind == "raw":
        return images, labels
    return images.astype(np.float32) / 255, np.eye(3, dtype=np.float32)[labels]


def forged(split: bytes, member: str, old: bytes, new: bytes) -> bytes:
    """The split with `old` replaced in a member, and its checksums made to agree."""
    with zipfile.ZipFile(io.BytesIO(split)) as archive:
        content = archive.read(member)
    changed = content.replace(old, new, 1)
    assert changed != content
    checksum, agreeing = (zlib.crc32(each).to_bytes(4, "little") for each in (content, changed))
    return split.replace(content, changed).replace(checksum, agreeing)


@pytest.fixture(params=["raw", "processed"])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str, NDArray[Any], NDArray[Any]]:
    images, labels = arrays(request.param)
    path = tmp_path / "train.npz"
    return path, splits.write(path, images, labels), images, labels


Written = tuple[Path, str, NDArray[Any], NDArray[Any]]


def test_what_is_written_is_read_back(written: Written) -> None:
    path, digest, images, labels = written
    split = splits.read(path, digest)
    assert split.sha256 == digest
    for found, expected in ((split.images, images), (split.labels, labels)):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_numpy_reads_the_file_by_itself(written: Written) -> None:
    path, _, images, labels = written
    with np.load(path) as archive:
        assert archive.files == ["images", "labels"]
        np.testing.assert_array_equal(archive["images"], images, strict=True)
        np.testing.assert_array_equal(archive["labels"], labels, strict=True)


def test_arrays_are_read_only_and_aligned_for_vector_instructions(written: Written) -> None:
    split = splits.read(written[0])
    for array in (split.images, split.labels):
        assert array.ctypes.data % 64 == 0
        assert not array.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            array.flat[0] = 1


def test_the_digest_is_the_sha256_of_the_two_members(written: Written) -> None:
    path, digest, _, _ = written
    with zipfile.ZipFile(path) as archive:
        content = archive.read("images.npy") + archive.read("labels.npy")
    assert digest == hashlib.sha256(content).hexdigest()


def test_the_same_arrays_give_the_same_bytes_on_every_machine(tmp_path: Path) -> None:
    images = np.arange(48, dtype=np.uint8).reshape(4, 2, 2, 3)
    splits.write(tmp_path / "a.npz", images, np.arange(4, dtype=np.uint8))
    found = hashlib.sha256((tmp_path / "a.npz").read_bytes()).hexdigest()
    assert found == "8f3cdf66ac9c9cd61f7debc51e937685becb9a9eeaf306d014d30be6db533b7a"


@IN_ONE_FOLDER
@given(cuts=st.lists(st.integers(0, 20)), kind=st.sampled_from(["raw", "processed"]))
def test_the_bytes_do_not_depend_on_the_parts(cuts: list[int], kind: str, tmp_path: Path) -> None:
    images, labels = arrays(kind, 20)
    digest = splits.write(tmp_path / "whole.npz", images, labels)
    chunked = splits.ChunkedArray(images.shape, images.dtype, np.split(images, sorted(cuts)))
    assert splits.write(tmp_path / "chunked.npz", chunked, labels) == digest
    assert (tmp_path / "chunked.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_arrays_in_another_memory_order_are_written_by_value(tmp_path: Path) -> None:
    images, labels = arrays("raw", 20)
    turned = np.asfortranarray(images)[::-2]
    splits.write(tmp_path / "a.npz", turned, labels[::-2])
    np.testing.assert_array_equal(splits.read(tmp_path / "a.npz").images, turned)


def test_labels_may_be_filled_in_by_the_parts(tmp_path: Path) -> None:
    images, expected = arrays("raw")
    labels = np.zeros_like(expected)

    def chunks() -> Iterator[NDArray[Any]]:
        for index in range(len(images)):
            labels[index] = expected[index]
            yield images[index : index + 1]

    splits.write(tmp_path / "a.npz", splits.ChunkedArray(images.shape, images.dtype, chunks()), labels)
    np.testing.assert_array_equal(splits.read(tmp_path / "a.npz").labels, expected)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((5, 4, 3), np.uint8),
        np.zeros((4, 4, 3, 2), np.uint8),
        np.zeros((5, 4, 3, 2), np.float32),
        splits.ChunkedArray((5, 4, 3, 2), np.dtype(np.uint8), [np.zeros((4, 4, 3, 2), np.uint8)]),
        splits.ChunkedArray((5, 4, 3, 2), np.dtype(np.uint8), [np.zeros((5, 4, 3, 1), np.uint8)]),
    ],
    ids=["three dimensions", "a label too many", "another dtype", "a row too few", "another shape"],
)
def test_arrays_that_are_no_split_leave_the_old_file(images: Any, tmp_path: Path) -> None:
    path = tmp_path / "train.npz"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match=r"train\.npz: "):
        splits.write(path, images, np.zeros(5, np.uint8))
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("train.npz", b"old")]


def test_chunks_are_the_images_asked_for_in_small_parts(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 128, 128, 3), dtype=np.uint8)
    splits.write(tmp_path / "a.npz", images, np.zeros(50, np.uint8))
    indices = np.arange(1, 50, 2)
    chunks = list(splits.read(tmp_path / "a.npz").chunks(indices))
    assert max(chunk.nbytes for chunk in chunks) <= splits.CHUNK
    np.testing.assert_array_equal(np.concatenate(chunks), images[indices])


def test_a_missing_file_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"none\.npz: no such file; run: dvc repro"):
        splits.read(tmp_path / "none.npz")


def test_another_digest_names_both(written: Written) -> None:
    path, digest, _, _ = written
    with pytest.raises(
        StageError, match=rf"checksum mismatch \(expected 1234…, found {digest[:8]}…\)\. To rebuild it: "
    ):
        splits.read(path, "1234")


def assert_refused_or_unchanged(path: Path, images: NDArray[Any], labels: NDArray[Any]) -> None:
    """Hold that reading a damaged file gives `StageError` or the arrays that were written."""
    try:
        split = splits.read(path)
    except StageError:
        return
    np.testing.assert_array_equal(split.images, images, strict=True)
    np.testing.assert_array_equal(split.labels, labels, strict=True)


@IN_ONE_FOLDER
@given(data=st.data())
def test_a_changed_byte_is_harmless_or_an_error(data: st.DataObject, written: Written) -> None:
    path, _, images, labels = written
    content = path.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    value = data.draw(st.integers(0, 255))
    changed = path.with_name("changed.npz")
    changed.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
    assert_refused_or_unchanged(changed, images, labels)


def test_every_changed_byte_of_the_arrays_is_an_error(written: Written) -> None:
    path, _, images, _ = written
    content = bytearray(path.read_bytes())
    start = content.index(images.tobytes())
    for place in range(start, start + images.nbytes):
        content[place] ^= 1
        path.write_bytes(content)
        with pytest.raises(StageError, match=r"images\.npy is truncated or damaged"):
            splits.read(path)
        content[place] ^= 1


@IN_ONE_FOLDER
@given(data=st.data())
def test_a_cut_or_lengthened_file_is_harmless_or_an_error(data: st.DataObject, written: Written) -> None:
    path, _, images, labels = written
    content = path.read_bytes()
    size = data.draw(st.integers(0, len(content)))
    more = data.draw(st.binary(max_size=200))
    changed = path.with_name("changed.npz")
    changed.write_bytes(content[:size] + more)
    assert_refused_or_unchanged(changed, images, labels)


def test_a_file_cut_at_any_place_is_an_error(written: Written) -> None:
    content = written[0].read_bytes()
    for size in range(0, len(content), 7):
        written[0].write_bytes(content[:size])
        with pytest.raises(StageError, match="not a valid split"):
            splits.read(written[0])


@IN_ONE_FOLDER
@given(content=st.binary(max_size=500))
def test_no_other_bytes_are_taken_for_a_split(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(StageError, match=r"a\.npz: not a valid split"):
        splits.read(tmp_path / "a.npz")


@IN_ONE_FOLDER
@given(names=st.lists(st.sampled_from(splits.MEMBERS), max_size=3), contents=st.lists(st.binary(), min_size=3))
def test_no_other_zip_is_taken_for_a_split(names: list[str], contents: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in zip(dict.fromkeys(names), contents, strict=False):
            archive.writestr(name, content)
    with pytest.raises(StageError, match=r"a\.npz: not a valid split"):
        splits.read(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_from_elsewhere_is_refused(save: Any, tmp_path: Path) -> None:
    images, labels = arrays("raw")
    save(tmp_path / "a.npz", images=images, labels=labels)
    with pytest.raises(StageError, match=r"a\.npz: not a valid split"):
        splits.read(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("member", "old", "new", "problem"),
    [
        ("images.npy", b"(5, 4, 3, 2)", b"(4, 5, 3, 2)", "not a valid split \\(uint8 images"),
        ("images.npy", b"(5, 4, 3, 2)", b"(5, 4, 3, 3)", "does not have the size of its shape"),
        ("images.npy", b"(5, 4, 3, 2)", b"(5, 4, 0, 2)", "does not have the size of its shape"),
        ("images.npy", b"(5, 4, 3, 2)", b"(5, 4,    6)", "not a valid split \\(uint8 images"),
        ("images.npy", b"(5, 4, 3, 2)", b"(5 4, 3, 2) ", "not a valid split"),
        ("images.npy", b"|u1", b"<f4", "does not have the size of its shape"),
        ("images.npy", b"|u1", b"|O1", "does not have the header of a split"),
        ("images.npy", b"False", b"True ", "does not have the header of a split"),
        ("images.npy", b"NUMPY\1", b"NUMPY\2", "does not have the header of a split"),
        ("labels.npy", b"(5,), }  ", b"(5, 1), }", "not a valid split \\(uint8 images"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(
    member: str, old: bytes, new: bytes, problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.npz"
    splits.write(path, *arrays("raw"))
    path.write_bytes(forged(path.read_bytes(), member, old, new))
    with pytest.raises(StageError, match=problem):
        splits.read(path)


@IN_ONE_FOLDER
@given(header=st.binary(min_size=182, max_size=182))
def test_no_header_with_the_right_checksum_breaks_the_reader(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    splits.write(path, *arrays("raw"))
    content = path.read_bytes()
    place = content.index(b"{'descr'")
    path.write_bytes(forged(content, "images.npy", content[place : place + 182], header))
    with pytest.raises(StageError, match="does not have the header of a split"):
        splits.read(path)


def test_the_command_in_the_message_mends_a_file_that_dvc_trusts(tmp_path: Path) -> None:
    """DVC's cached object is changed, read-only and of the old date, as a bad disk leaves it."""
    folder = tmp_path / "with space"
    folder.mkdir()
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "DVC_SITE_CACHE_DIR": str(tmp_path / "site"),
        "DVC_NO_ANALYTICS": "1",
    }

    def shell(command: str) -> None:
        subprocess.run(command, shell=True, cwd=folder, env=environment, check=True, capture_output=True)

    (folder / "make.py").write_text(
        "import numpy as np; from pathlib import Path; from stages.common import splits\n"
        "splits.write(Path('out put/a.npz'), np.ones((9, 8, 8, 3), np.uint8), np.zeros(9, np.uint8))\n"
    )
    stage = {"cmd": "python make.py", "deps": ["make.py"], "outs": ["out put/a.npz"]}
    (folder / "dvc.yaml").write_text(json.dumps({"stages": {"make": stage}}))
    shell("dvc init -q --no-scm && dvc config cache.type hardlink && dvc repro -q")

    path = folder / "out put" / "a.npz"
    good, before = path.read_bytes(), path.stat()
    path.chmod(0o644)
    with path.open("rb+") as file:
        file.seek(500)
        file.write(b"\0")
    path.chmod(before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    path.unlink()
    shell("dvc checkout -q")

    with pytest.raises(StageError, match="dvc repro") as caught:
        splits.read(path)
    shell(str(caught.value).partition("To rebuild it: ")[2])
    assert path.read_bytes() == good


@pytest.mark.parametrize("kind", ["raw", "processed"])
def test_a_split_without_images_is_read_back(tmp_path: Path, kind: str) -> None:
    images, labels = (array[:0] for array in arrays(kind))
    found = splits.read(tmp_path / "a.npz", splits.write(tmp_path / "a.npz", images, labels))
    np.testing.assert_array_equal(found.images, images, strict=True)
    np.testing.assert_array_equal(found.labels, labels, strict=True)


def test_taken_images_are_copies_of_those_asked_for_in_their_order(written: Written) -> None:
    path, _, images, labels = written
    split, order = splits.read(path), np.array([3, 0, 3, 4])
    taken, given = split.take(order)
    np.testing.assert_array_equal(taken, images[order])
    np.testing.assert_array_equal(given, labels[order])
    assert taken.flags.writeable


def test_a_file_truncated_while_in_use_is_one_line(tmp_path: Path) -> None:
    splits.write(tmp_path / "a.npz", *arrays("raw"))
    split = splits.read(tmp_path / "a.npz")
    os.truncate(tmp_path / "a.npz", 300)
    with pytest.raises(StageError, match="a split was truncated while it was in use; run: dvc repro"):
        split.take(np.array([0, 4]))
