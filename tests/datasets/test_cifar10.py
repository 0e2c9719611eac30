"""stages/datasets/cifar10.py: the records become images, and no archive but a sound one is read.

The whole archive is read too, where a copy lies in ../shared/data beside the repository.
"""

import gzip
import hashlib
import io
import tarfile
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.common.failure import StageError
from stages.datasets import cifar10
from stages.datasets.cifar10 import FOLDER, RECORD, TEST, TRAIN
from tests.project import ROOT

REBUILT = ROOT.parent / "shared" / "data" / "cifar-10-binary-rebuilt.tar.gz"
REBUILT_SHA256 = "091ccb00bab3d8e65f19af4000b6727cce51a80fd9a14cf01a68429f09f430e1"
OFFICIAL_TRAIN_SHA256 = (
    "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
)

MEMBERS = {TRAIN[0]: 3 * RECORD, TEST: 2 * RECORD}  # the real ones have 10,000 records each
BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK)


def records(count: int, seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (count, RECORD), np.uint8)
    noise[:, 0] %= 10
    return noise.tobytes()


CONTENT = {TRAIN[0]: records(3, seed=0), TEST: records(2, seed=1)}


def member(name: str, content: bytes = b"", **fields: object) -> bytes:
    """A tar header and its content; `fields` set or falsify what the header says."""
    header = tarfile.TarInfo(name)
    header.size = len(content)
    for field, value in fields.items():
        setattr(header, field, value)
    return header.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % BLOCK)


SOUND = b"".join(member(name, content) for name, content in CONTENT.items())


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return tmp_path / "cifar.tar.gz"


def read(archive: Path, content: bytes) -> dict[str, bytes]:
    archive.write_bytes(content)
    return cifar10.read_archive(archive, MEMBERS)


def refused(archive: Path, tar: bytes, match: str) -> None:
    with pytest.raises(StageError, match=match) as error:
        read(archive, gzip.compress(tar, 1))
    assert str(error.value).startswith(f"{archive}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_an_archive_in_each_of_tars_formats_gives_its_members(archive: Path, form: int) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=form) as tar:
        folder = tarfile.TarInfo(FOLDER)
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in {f"{FOLDER}/readme.html": b"<p>", **CONTENT}.items():
            header = tarfile.TarInfo(name)
            header.size, header.mtime = (
                len(content),
                1244073600.5,
            )  # a fraction makes PAX write its own header
            tar.addfile(header, io.BytesIO(content))
    assert read(archive, buffer.getvalue()) == CONTENT


def test_the_members_come_in_the_order_asked_for(archive: Path) -> None:
    tar = b"".join(member(name, CONTENT[name]) for name in reversed(CONTENT)) + END
    assert list(read(archive, gzip.compress(tar))) == list(MEMBERS)


@pytest.mark.parametrize(
    "name",
    [f"../{TEST}", f"/{TEST}", f"{FOLDER}/../{TEST}", f"./{TEST}", f"{FOLDER}/x.bin", "/etc/passwd", ""],
)
def test_a_member_of_another_name_is_refused(archive: Path, name: str) -> None:
    refused(archive, SOUND + member(name, b"x") + END, match="does not belong to CIFAR-10")


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
        tarfile.CONTTYPE,
        tarfile.GNUTYPE_SPARSE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
        tarfile.SOLARIS_XHDTYPE,
        b"V",
    ],
)
def test_a_member_that_is_no_file_is_refused_even_under_a_known_name(archive: Path, kind: bytes) -> None:
    link = member(TEST, type=kind, linkname="/etc/passwd", size=MEMBERS[TEST])
    refused(archive, link + SOUND + END, match="is neither a file nor the folder")


def test_another_folder_is_refused(archive: Path) -> None:
    refused(
        archive, SOUND + member("elsewhere", type=tarfile.DIRTYPE) + END, match="'elsewhere' is neither a file"
    )


def test_a_folder_with_content_is_refused(archive: Path) -> None:
    refused(archive, SOUND + member(FOLDER, b"x", type=tarfile.DIRTYPE) + END, match="is neither a file nor the")


@pytest.mark.parametrize("name", [TEST, f"{FOLDER}/readme.html", FOLDER])
def test_a_member_that_comes_twice_is_refused(archive: Path, name: str) -> None:
    kind = tarfile.DIRTYPE if name == FOLDER else tarfile.REGTYPE
    twice = member(name, CONTENT.get(name, b""), type=kind) * 2
    refused(archive, twice + END, match=f"'{name}' is duplicated")


def test_a_member_too_few_is_refused(archive: Path) -> None:
    refused(archive, member(TEST, CONTENT[TEST]) + END, match=f"'{TRAIN[0]}' is missing")


def test_a_file_of_another_number_of_records_is_refused(archive: Path) -> None:
    refused(archive, member(TEST, records(3, seed=0)) + END, match=r"has 9,219 bytes, expected 6,146;")


def test_a_file_that_ends_within_a_record_is_refused_with_the_offset_of_that_record(archive: Path) -> None:
    refused(
        archive,
        member(TEST, CONTENT[TEST][:-1]) + END,
        match=f"'{TEST}' has 6,145 bytes, expected 6,146; its last record, at offset 3,073, is incomplete",
    )


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.REGTYPE])
@pytest.mark.parametrize("size", [1 << 24, 1 << 62])
def test_a_bomb_is_refused_before_it_is_decompressed(archive: Path, kind: bytes, size: int) -> None:
    bomb = member(f"{FOLDER}/readme.html", type=kind, size=size) + bytes(1 << 24)
    archive.write_bytes(gzip.compress(bomb + END, 1))
    tracemalloc.start()
    try:
        with pytest.raises(StageError, match="more data than the dataset has"):
            cifar10.read_archive(archive, MEMBERS)
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()


def test_a_bomb_of_many_small_headers_is_refused(archive: Path) -> None:
    refused(archive, member("times", type=tarfile.XHDTYPE) * 2500 + SOUND + END, match="more data than")


def test_a_bomb_of_zeros_after_the_tars_end_is_refused(archive: Path) -> None:
    refused(archive, SOUND + END + bytes(1 << 24), match="data after the end of the tar archive")


def test_zeros_that_fill_the_last_tape_block_are_no_fault(archive: Path) -> None:
    assert read(archive, gzip.compress(SOUND + END + bytes(20 * BLOCK))) == CONTENT


def test_a_member_after_the_tars_end_is_refused(archive: Path) -> None:
    refused(archive, SOUND + END + member(f"{FOLDER}/readme.html"), match="data after the end of the tar archive")


# Without the time in its header, which would be another in each process that collects the tests.
@pytest.mark.parametrize("tail", [b"\0", b"x", gzip.compress(b"", mtime=0), gzip.compress(SOUND + END, mtime=0)])
def test_anything_after_the_gzip_stream_is_refused(archive: Path, tail: bytes) -> None:
    with pytest.raises(StageError, match="data after the end of the gzip stream"):
        read(archive, gzip.compress(SOUND + END) + tail)


def test_anything_after_a_gzip_stream_that_fills_the_last_read_is_refused(archive: Path) -> None:
    plain = gzip.compress(SOUND + END)
    # A gzip header may hold a file name (flag 8): here one that makes the file as long as is read at once.
    name = b"x" * (cifar10.CHUNK - len(plain) - 1) + b"\0"
    filled = plain[:3] + b"\x08" + plain[4:10] + name + plain[10:]
    assert read(archive, filled) == CONTENT
    with pytest.raises(StageError, match="data after the end of the gzip stream"):
        read(archive, filled + b"x")


@pytest.mark.parametrize("end", [0, 1, 9, 10, 11, 1000, -9, -8, -4, -1])
def test_a_gzip_stream_cut_anywhere_is_refused(archive: Path, end: int) -> None:
    with pytest.raises(StageError, match="the gzip stream is truncated"):
        read(archive, gzip.compress(SOUND + END)[:end])


@pytest.mark.parametrize("size", [0, 1, BLOCK, BLOCK + 1, len(SOUND) - 1, len(SOUND), len(SOUND) + 1])
def test_a_tar_archive_cut_anywhere_is_refused(archive: Path, size: int) -> None:
    refused(archive, SOUND[:size] if size <= len(SOUND) else SOUND + b"\0", match="tar archive is truncated")


@pytest.mark.parametrize(("place", "what"), [(-8, "incorrect data check"), (-4, "incorrect length check")])
def test_a_wrong_checksum_or_length_at_the_very_end_is_refused(archive: Path, place: int, what: str) -> None:
    content = bytearray(gzip.compress(SOUND + END))
    content[place] ^= 1
    with pytest.raises(StageError, match=f"not a valid .tar.gz archive: .*{what}"):
        read(archive, bytes(content))


@pytest.mark.parametrize("content", [SOUND + END, zlib.compress(SOUND + END), b"<!DOCTYPE html><p>not here"])
def test_what_is_not_gzip_is_refused(archive: Path, content: bytes) -> None:
    with pytest.raises(StageError, match="incorrect header check"):
        read(archive, content)


def test_a_header_with_a_wrong_checksum_is_refused(archive: Path) -> None:
    refused(archive, b"x" + SOUND[1:] + END, match="not a valid .tar.gz archive: bad checksum")


def test_a_name_with_a_line_break_stays_in_one_line(archive: Path) -> None:
    refused(archive, member("a\nb\udcff", b"x") + END, match=r"'a\\nb\\udcff' does not belong")


# Whatever the file holds: the content asked for, or the one error; any other exception fails the test.


def read_or_refuse(folder: Path, content: bytes) -> None:
    try:
        found = read(folder / "cifar.tar.gz", content)
    except StageError as error:
        assert "none of it was used" in str(error)
    else:
        assert {name: len(content) for name, content in found.items()} == MEMBERS


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("fuzzed")


fuzzed = settings(max_examples=300, deadline=None)
edits = st.lists(
    st.tuples(st.integers(0, len(SOUND) + len(END)), st.integers(0, 600), st.binary(max_size=8)),
    min_size=1,
    max_size=4,
)


def edited(content: bytes, places: list[tuple[int, int, bytes]]) -> bytes:
    for start, length, new in places:
        content = content[:start] + new + content[start + length :]
    return content


@fuzzed
@given(content=st.binary(max_size=2000))
def test_any_bytes_give_the_content_or_the_error(folder: Path, content: bytes) -> None:
    read_or_refuse(folder, content)
    read_or_refuse(folder, b"\x1f\x8b\x08" + content)


@fuzzed
@given(places=edits)
def test_any_edit_of_the_gzip_file_gives_the_content_or_the_error(
    folder: Path, places: list[tuple[int, int, bytes]]
) -> None:
    read_or_refuse(folder, edited(gzip.compress(SOUND + END, 1), places))


@fuzzed
@given(places=edits)
def test_any_edit_of_the_tar_archive_gives_the_content_or_the_error(
    folder: Path, places: list[tuple[int, int, bytes]]
) -> None:
    read_or_refuse(folder, gzip.compress(edited(SOUND + END, places), 1))


headers = st.builds(
    member,
    name=st.sampled_from([*MEMBERS, FOLDER, "../x", f"{FOLDER}/readme.html"]) | st.text(max_size=120),
    content=st.sampled_from([b"", *CONTENT.values()]) | st.binary(max_size=1100),
    type=st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.XHDTYPE]) | st.binary(min_size=1, max_size=1),
    size=st.sampled_from([*MEMBERS.values()]) | st.integers(-(256**11), 256**11 - 1),
    linkname=st.text(max_size=120),
)


@fuzzed
@given(before=st.lists(headers, max_size=3), after=st.lists(headers, max_size=3))
def test_any_members_with_sound_headers_give_the_content_or_the_error(
    folder: Path, before: list[bytes], after: list[bytes]
) -> None:
    read_or_refuse(folder, gzip.compress(b"".join([*before, SOUND, *after, END]), 1))


# From records to images.


def whole_archive(path: Path, batches: dict[str, bytes]) -> str:
    """Write an archive of the real size to `path` and return its SHA-256."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        for name, content in batches.items():
            file.write(member(name, content))
        file.write(END)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_whole_archive_becomes_two_splits_of_images(archive: Path) -> None:
    batches = {name: records(1, seed) * 10_000 for seed, name in enumerate((*TRAIN, TEST))}
    params = cifar10.Params(sha256=whole_archive(archive, batches))
    dataset = cifar10.load(params, [str(archive)], archive.parent / "cache")
    assert (dataset.name, dataset.sha256) == ("cifar10", params.sha256)
    assert dataset.train.images.shape == (50_000, 32, 32, 3)
    assert dataset.test.images.shape == (10_000, 32, 32, 3)
    for split in (dataset.train, dataset.test):
        assert split.images.dtype == split.labels.dtype == np.uint8
        assert split.images.flags.c_contiguous
        assert split.labels.flags.c_contiguous
        assert split.official == 0
    for position, name in enumerate(TRAIN):
        image = dataset.train.images[position * 10_000 + 77]
        assert dataset.train.labels[position * 10_000 + 77] == batches[name][0]
        # Byte 1 + 1024 * channel + 32 * row + column of a record, as the authors' page has it.
        assert image[2, 3, 1] == batches[name][1 + 1024 * 1 + 32 * 2 + 3]
        assert image[31, 0, 2] == batches[name][1 + 1024 * 2 + 32 * 31]
    assert dataset.test.labels[9_999] == batches[TEST][0]


def test_a_label_that_names_no_class_is_refused_with_its_file_and_offset(archive: Path) -> None:
    batches = {name: bytes(10_000 * RECORD) for name in (*TRAIN, TEST)}
    wrong = bytearray(batches[TRAIN[3]])
    wrong[7 * RECORD] = 10
    batches[TRAIN[3]] = bytes(wrong)
    params = cifar10.Params(sha256=whole_archive(archive, batches))
    with pytest.raises(StageError, match=f"'{TRAIN[3]}': the label at offset 21,511 is 10, expected 0 to 9"):
        cifar10.load(params, [str(archive)], archive.parent / "cache")


@pytest.mark.parametrize("wrong", ["", "c4a3", "C" * 64, "g" * 64, "a" * 65])
def test_a_sha256_of_another_form_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="it should be a SHA-256, 64 digits of 0-9 and a-f, found"):
        cifar10.Params(sha256=wrong)


@pytest.mark.skipif(not REBUILT.exists(), reason=f"needs a copy of CIFAR-10 at {REBUILT}")
def test_the_training_files_of_the_rebuilt_archive_are_the_official_ones(tmp_path: Path) -> None:
    dataset = cifar10.load(cifar10.Params(sha256=REBUILT_SHA256), [str(REBUILT)], tmp_path)
    assert (dataset.train.official, dataset.test.official) == (50_000, 1_000)
    assert np.bincount(dataset.train.labels).tolist() == [5_000] * 10
    assert np.bincount(dataset.test.labels).tolist() == [1_000] * 10
    planes = dataset.train.images.transpose(0, 3, 1, 2).reshape(-1, RECORD - 1)
    again = np.concatenate([dataset.train.labels[:, None], planes], axis=1)
    found = [
        hashlib.sha256(again[start : start + 10_000].tobytes()).hexdigest() for start in range(0, 50_000, 10_000)
    ]
    assert tuple(found) == OFFICIAL_TRAIN_SHA256
