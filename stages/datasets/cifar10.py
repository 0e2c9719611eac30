"""CIFAR-10, the binary edition: 60,000 photographs of 32 x 32 pixels, RGB, 10 classes.

The archive is read as a stream, never extracted or unpickled. A record is one label byte and 3,072 pixel bytes:
the red, green and blue planes one after the other, row by row.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
https://www.cs.toronto.edu/~kriz/cifar.html
"""

import tarfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from stages.common.failure import StageError
from stages.common.fetch import fetch
from stages.common.params import SHA256, Section
from stages.datasets import Dataset, Images

ARCHIVE = "cifar-10-binary.tar.gz"
# The authors' host, then mirrors of Swift for TensorFlow and MindSpore. The SHA-256 is checked, so any will do.
SOURCES = (
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/cifar-10-binary.tar.gz",
    "https://mindspore-website.obs.cn-north-4.myhuaweicloud.com/notebook/datasets/cifar-10-binary.tar.gz",
)
ARCHIVE_BYTES = 170_052_171  # of the official archive

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHAPE = (32, 32, 3)
RECORD = 1 + 32 * 32 * 3
RECORDS = 10_000  # in each file
FOLDER = "cifar-10-batches-bin"
TRAIN = tuple(f"{FOLDER}/data_batch_{number}.bin" for number in range(1, 6))
TEST = f"{FOLDER}/test_batch.bin"
MEMBERS = dict.fromkeys((*TRAIN, TEST), RECORDS * RECORD)  # their sizes in bytes
IGNORED = (f"{FOLDER}/batches.meta.txt", f"{FOLDER}/readme.html")
# Headers, padding and ignored files take 20 kB. No more than this is decompressed.
MARGIN = 1 << 20
CHUNK = 1 << 18  # bytes read at a time

OFFICIAL = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
# Known archives: a description, and how many of their first test images are the official ones.
EDITIONS = {
    OFFICIAL: ("the official archive", RECORDS),
    "091ccb00bab3d8e65f19af4000b6727cce51a80fd9a14cf01a68429f09f430e1": (
        "rebuilt: official training images and first 1,000 test images, the rest from JPEG copies",
        1_000,
    ),
}


class Params(Section):
    """`dataset.cifar10` of params.yaml."""

    sha256: SHA256 = Field(description="of the archive")


def load(params: Params, sources: Sequence[str], cache: Path) -> Dataset:
    """Return CIFAR-10 from the archive with the hash `params.sha256`, fetched unless it is in `cache`.

    `sources` (paths or URLs) are tried before `SOURCES`, in order. Raises `StageError` when no source has the
    archive, or when its content is not that of CIFAR-10.
    """
    archive = fetch(
        [*sources, *SOURCES],
        params.sha256,
        cache / ARCHIVE,
        size=ARCHIVE_BYTES if params.sha256 == OFFICIAL else None,
        hint="set DATASET_SOURCES to a copy or a mirror, or train on the embedded digits: make demo",
    )
    edition, official = EDITIONS.get(params.sha256, ("an unknown archive", 0))
    batches = read_archive(archive)
    train, test = (_split(archive, {name: batches[name] for name in names}) for names in (TRAIN, (TEST,)))
    return Dataset(
        name="cifar10",
        sha256=params.sha256,
        edition=edition,
        classes=CLASSES,
        train=Images(*train, official=len(train[1]) if params.sha256 in EDITIONS else 0),
        test=Images(*test, official=official),
    )


_REFUSED = "none of it was used; correct dataset.cifar10.sha256, or replace the file with an intact one"


def read_archive(path: Path, members: Mapping[str, int] = MEMBERS) -> dict[str, bytes]:
    """Return the content of the .tar.gz file's `members`, a mapping of their names to their sizes in bytes.

    Reads the file once and writes nothing. The archive must consist of `members`, each once and with the given
    size, their folder, and `IGNORED`. Raises `StageError` for any other member (link, device, path), a missing
    member, a damaged or truncated header or gzip stream, data after the end of the tar archive or of the gzip
    stream, and more than `MARGIN` bytes beyond the size of `members`; no more than that is decompressed.
    """
    found: dict[str, bytes] = {}
    try:
        with path.open("rb") as file:
            stream = _Inflated(file, sum(members.values()) + MARGIN)
            # Only tarfile's header decoder is used. Its reader honours extensions (long names, sparse files,
            # PAX) that override names and sizes, and that it reads into memory however large they are.
            while any(block := stream.read(tarfile.BLOCKSIZE)):
                member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
                pax = member.type in (tarfile.XHDTYPE, tarfile.XGLTYPE)  # times and owners: ignored
                problem = "" if pax else _problem(member, members, found)
                if problem:
                    raise StageError(f"{path}: {member.name!r} {problem}; {_REFUSED}")
                content = stream.read(-(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
                if not pax:
                    found[member.name] = content[: member.size]
            stream.finish()
    except (tarfile.TarError, zlib.error) as error:
        raise StageError(f"{path}: not a valid .tar.gz archive: {error}; {_REFUSED}") from None
    missing = [name for name in members if name not in found]
    if missing:
        raise StageError(f"{path}: {missing[0]!r} is missing; {_REFUSED}")
    return {name: found[name] for name in members}


def _problem(member: tarfile.TarInfo, members: Mapping[str, int], found: Mapping[str, bytes]) -> str:
    """Return what is wrong with this member of the archive, or an empty string."""
    if member.name in found:
        return "is duplicated"
    if member.isdir() and member.name == FOLDER and member.size == 0:
        return ""
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):  # isreg() is true of sparse files, too
        return f"is neither a file nor the folder {FOLDER} (type {member.type!r})"
    if member.name not in (*members, *IGNORED):
        return "does not belong to CIFAR-10"
    size = members.get(member.name, member.size)
    if member.size == size:
        return ""
    whole = member.size - member.size % RECORD
    cut = f"; its last record, at offset {whole:,}, is incomplete" if whole != member.size else ""
    return f"has {member.size:,} bytes, expected {size:,}{cut}"


class _Inflated:
    """Decompresses a file that is one gzip stream, up to `limit` bytes."""

    def __init__(self, file: IO[bytes], limit: int) -> None:
        self._file, self._left = file, limit
        self._stream = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)  # gzip: checks CRC and length at the end

    def read(self, size: int) -> bytes:
        """Return exactly `size` bytes; raises `tarfile.ReadError` at the end of the stream or beyond the limit."""
        if not 0 <= size <= self._left:
            raise tarfile.ReadError("more data than the dataset has")
        self._left -= size
        pieces = []
        while size:
            piece = self._next(size)
            if not piece and self._stream.eof:
                raise tarfile.ReadError("the tar archive is truncated")
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def finish(self) -> None:
        """Read the zeros up to the end; raises `tarfile.ReadError` for any other data."""
        while not self._stream.eof:
            piece = self._next(self._left + 1)
            self._left -= len(piece)
            if piece.strip(b"\0") or self._left < 0:
                raise tarfile.ReadError("data after the end of the tar archive")
        if self._stream.unused_data or self._file.read(1):
            raise tarfile.ReadError("data after the end of the gzip stream")

    def _next(self, most: int) -> bytes:
        """Return up to `most` bytes, possibly none; raises `tarfile.ReadError` when the file is truncated."""
        chunk = self._stream.unconsumed_tail or self._file.read(CHUNK)
        if not chunk and not self._stream.eof:
            raise tarfile.ReadError("the gzip stream is truncated")
        return self._stream.decompress(chunk, most)


def _split(archive: Path, batches: Mapping[str, bytes]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the images, uint8 (N, 32, 32, 3), and labels, uint8 (N,), of the batches.

    Raises `StageError` with file and offset for an invalid label.
    """
    records = [np.frombuffer(batch, np.uint8).reshape(-1, RECORD) for batch in batches.values()]
    labels = np.concatenate([batch[:, 0] for batch in records])
    for name, batch in zip(batches, records, strict=True):
        wrong = np.flatnonzero(batch[:, 0] >= len(CLASSES))
        if len(wrong):
            raise StageError(
                f"{archive}: {name!r}: the label at offset {wrong[0] * RECORD:,} is {batch[wrong[0], 0]}, "
                f"expected 0 to {len(CLASSES) - 1}; {_REFUSED}"
            )
    height, width, channels = SHAPE
    images = np.empty((len(labels), *SHAPE), np.uint8)
    # Without `out`, NumPy would return a view with the planes still apart in memory.
    planes = [batch[:, 1:].reshape(-1, channels, height, width) for batch in records]
    np.concatenate([batch.transpose(0, 2, 3, 1) for batch in planes], out=images)
    return images, labels
