"""CIFAR-10, the binary edition: 60,000 photographs of 32 x 32 pixels, RGB, 10 classes.

The archive is read as a stream: never extracted, never unpickled. A record is one label byte and 3,072
pixel bytes, the red, green and blue planes one after the other, row by row.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
https://www.cs.toronto.edu/~kriz/cifar.html
"""

import re
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from stages.common.failure import StageError
from stages.common.params import Section
from stages.datasets import Dataset, Images
from stages.datasets.fetch import fetch

ARCHIVE = "cifar-10-binary.tar.gz"
# The authors' host first; the mirrors were made for Swift for TensorFlow and for MindSpore. Which of them
# serves the bytes does not matter: the SHA-256 decides.
SOURCES = (
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/cifar-10-binary.tar.gz",
    "https://mindspore-website.obs.cn-north-4.myhuaweicloud.com/notebook/datasets/cifar-10-binary.tar.gz",
)
ARCHIVE_BYTES = 170_052_171  # of the official archive

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHAPE = (32, 32, 3)
RECORD = 1 + 32 * 32 * 3
RECORDS = 10_000  # a file
FOLDER = "cifar-10-batches-bin"
TRAIN = tuple(f"{FOLDER}/data_batch_{number}.bin" for number in range(1, 6))
TEST = f"{FOLDER}/test_batch.bin"
MEMBERS = dict.fromkeys((*TRAIN, TEST), RECORDS * RECORD)  # their sizes in bytes
ASIDE = (f"{FOLDER}/batches.meta.txt", f"{FOLDER}/readme.html")  # what else the archive holds; not used
# The archive's headers, padding and what stands aside take 20 kB; more than this is not decompressed.
MARGIN = 1 << 20
CHUNK = 1 << 18  # bytes of the file that are read at once

OFFICIAL = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
# Known archives: what they are, and how many of their first test images are the official ones.
EDITIONS = {
    OFFICIAL: ("the official archive", RECORDS),
    "091ccb00bab3d8e65f19af4000b6727cce51a80fd9a14cf01a68429f09f430e1": (
        "rebuilt: official training images and first 1,000 test images, the rest from JPEG copies",
        1_000,
    ),
}


class Params(Section):
    """`dataset.cifar10` of params.yaml."""

    sha256: str = Field(description="of the archive; another one is refused")

    @field_validator("sha256")
    @classmethod
    def _hexadecimal(cls, sha256: str) -> str:
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise ValueError(f"it should be a SHA-256, 64 digits of 0-9 and a-f, found {sha256!r}")
        return sha256


def load(params: Params, places: Sequence[str], cache: Path) -> Dataset:
    """Return CIFAR-10 from the archive that `params.sha256` pins, fetched unless `cache` has it.

    `places` (file, http or https) are tried before `SOURCES`, in their order. Raises `StageError` when no
    place has the archive or when it is not what this module's facts say.
    """
    archive = fetch(
        [*places, *SOURCES],
        params.sha256,
        cache / ARCHIVE,
        size=ARCHIVE_BYTES if params.sha256 == OFFICIAL else None,
        hint="name a copy or a mirror in DATASET_SOURCES, or train on the embedded digits: make demo",
    )
    edition, official = EDITIONS.get(params.sha256, ("an archive that is not known here", 0))
    batches = read_archive(archive)
    train, test = (_split(archive, {name: batches[name] for name in part}) for part in (TRAIN, (TEST,)))
    return Dataset(
        name="cifar10",
        sha256=params.sha256,
        edition=edition,
        classes=CLASSES,
        train=Images(*train, official=len(train[1]) if params.sha256 in EDITIONS else 0),
        test=Images(*test, official=official),
    )


_REFUSED = "nothing of it is used; correct dataset.cifar10.sha256, or replace the file by a sound one"


def read_archive(path: Path, members: Mapping[str, int] = MEMBERS) -> dict[str, bytes]:
    """Return the content of each of `members` (names in the archive, and sizes in bytes) of a .tar.gz file.

    Nothing is written, and the file is read once. Raises `StageError`, with the name, when the archive holds
    anything but `members`, each once and of its size, their folder, and `ASIDE`: no link, no device, no other
    path; when one of `members` is missing; when the gzip stream or a header is damaged or cut short; when
    anything follows the end of the tar archive or of the gzip stream; and when there is more than
    `MARGIN` bytes besides `members` to decompress, of which no more is decompressed.
    """
    found: dict[str, bytes] = {}
    try:
        with path.open("rb") as file:
            stream = _Inflated(file, sum(members.values()) + MARGIN)
            # Of tarfile only the decoder of one header is used. Its reader follows extensions (long names,
            # sparse files, PAX) that set names and sizes anew and are read into memory whatever their size.
            while any(block := stream.read(tarfile.BLOCKSIZE)):
                member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
                pax = member.type in (tarfile.XHDTYPE, tarfile.XGLTYPE)  # times and owners: passed over
                problem = "" if pax else _problem(member, members, found)
                if problem:
                    raise StageError(f"{path}: {member.name!r} {problem}; {_REFUSED}")
                content = stream.read(-(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
                if not pax:
                    found[member.name] = content[: member.size]
            stream.finish()
    except (tarfile.TarError, zlib.error) as error:
        raise StageError(f"{path}: not a sound .tar.gz archive: {error}; {_REFUSED}") from None
    missing = [name for name in members if name not in found]
    if missing:
        raise StageError(f"{path}: {missing[0]!r} is missing; {_REFUSED}")
    return {name: found[name] for name in members}


def _problem(member: tarfile.TarInfo, members: Mapping[str, int], found: Mapping[str, bytes]) -> str:
    """What speaks against this member of the archive, or nothing."""
    if member.name in found:
        return "is in the archive twice"
    if member.isdir() and member.name == FOLDER and member.size == 0:
        return ""
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):  # isreg() is true of sparse files, too
        return f"is not a file or the folder {FOLDER} (its type is {member.type!r})"
    if member.name not in (*members, *ASIDE):
        return "is no part of CIFAR-10"
    size = members.get(member.name, member.size)
    if member.size == size:
        return ""
    whole = member.size - member.size % RECORD
    cut = f", and from offset {whole:,} on no whole record" if whole != member.size else ""
    return f"has {member.size:,} bytes, {size:,} expected{cut}"


class _Inflated:
    """The content of a file of one gzip stream, of which no more than `limit` bytes are decompressed."""

    def __init__(self, file: IO[bytes], limit: int) -> None:
        self._file, self._left = file, limit
        self._stream = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)  # gzip: checks CRC and length at the end

    def read(self, size: int) -> bytes:
        """Return exactly `size` bytes; raises `tarfile.ReadError` when there are fewer or it is too many."""
        if not 0 <= size <= self._left:
            raise tarfile.ReadError("more to decompress than it can hold")
        self._left -= size
        pieces = []
        while size:
            piece = self._next(size)
            if not piece and self._stream.eof:
                raise tarfile.ReadError("the tar archive is cut short")
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def finish(self) -> None:
        """Read to the end, over zeros only; raises `tarfile.ReadError` for anything else, there or after."""
        while not self._stream.eof:
            piece = self._next(self._left + 1)
            self._left -= len(piece)
            if piece.strip(b"\0") or self._left < 0:
                raise tarfile.ReadError("the tar archive goes on after its end")
        if self._stream.unused_data or self._file.read(1):
            raise tarfile.ReadError("the file goes on after the gzip stream's end")

    def _next(self, most: int) -> bytes:
        """Up to `most` bytes, none at times; raises `tarfile.ReadError` when the file ends too early."""
        chunk = self._stream.unconsumed_tail or self._file.read(CHUNK)
        if not chunk and not self._stream.eof:
            raise tarfile.ReadError("the gzip stream is cut short")
        return self._stream.decompress(chunk, most)


def _split(archive: Path, batches: Mapping[str, bytes]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the images, uint8 (N, 32, 32, 3), and the labels, uint8 (N,), of whole records.

    Raises `StageError` with file and offset for a label that names no class.
    """
    records = [np.frombuffer(batch, np.uint8).reshape(-1, RECORD) for batch in batches.values()]
    labels = np.concatenate([batch[:, 0] for batch in records])
    for name, batch in zip(batches, records, strict=True):
        wrong = np.flatnonzero(batch[:, 0] >= len(CLASSES))
        if len(wrong):
            raise StageError(
                f"{archive}: {name!r}: the label at offset {wrong[0] * RECORD:,} is {batch[wrong[0], 0]}, "
                f"0 to {len(CLASSES) - 1} expected; {_REFUSED}"
            )
    height, width, channels = SHAPE
    images = np.empty((len(labels), *SHAPE), np.uint8)
    # Without `out`, NumPy would keep the planes apart in memory and only call them (N, H, W, C).
    planes = [batch[:, 1:].reshape(-1, channels, height, width) for batch in records]
    np.concatenate([batch.transpose(0, 2, 3, 1) for batch in planes], out=images)
    return images, labels
