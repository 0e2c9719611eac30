"""Reads and writes a split's .npz file: written as a stream, memory-mapped, and verified on every read.

The file is an uncompressed zip of `images.npy` and `labels.npy`, which `numpy.load` and any unzip can read. The
data of both arrays is aligned to 64 bytes, so that memory-mapped arrays are as fast as arrays in memory. Equal
arrays give equal bytes: dates, modes and array headers are fixed here, independent of the versions of Python and
NumPy. The digest of a split is the SHA-256 of both members, headers included: `unzip -p train.npz | sha256sum`
prints it.

Formats: PKWARE's APPNOTE.TXT 6.3 (zip) and numpy.lib.format 1.0 (npy).
"""

import hashlib
import math
import mmap
import os
import re
import shlex
import struct
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from stages.common.failure import StageError
from stages.common.outputs import replacing

MEMBERS = ("images.npy", "labels.npy")
# The dtype and number of dimensions of the images, then of the labels: class numbers or one-hot vectors.
LAYOUTS = {("|u1", 4, "|u1", 1), ("|u1", 4, "<u2", 1), ("|u1", 4, "<f4", 2), ("<f4", 4, "<f4", 2)}
CHUNK = 1 << 18  # bytes: large enough for few calls; four times as much, as float32, still fits a core's cache
ALIGNMENT = 64  # bytes: a cache line, and the widest vector register

# The npy header has a fixed length, so that the position of an array follows from that of its zip entry.
_HEADER_SIZE = 192
_HEADER = re.compile(
    rb"\x93NUMPY\x01\0\xb6\0{'descr': '(\|u1|<u2|<f4)', 'fortran_order': False, 'shape': \(([\d, ]+)\), } *\n"
)
# A zip entry starts with 30 bytes, the name, 64-bit sizes (always, so that large and small files have the same
# layout), and padding for the alignment in an extra field with zipalign's ID, which readers skip.
_LOCAL_SIZE, _ZIP64_SIZE, _PADDING_ID = 30, 20, 0xD935


@dataclass(frozen=True, eq=False)
class ChunkedArray:
    """An array that is produced in chunks along its first axis; `shape` is the shape of the whole."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: Iterable[NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Split:
    """A memory-mapped, read-only split.

    images: uint8 or float32 (N, H, W, C); labels: uint8 or uint16 (N,), or one-hot float32 (N, classes); no axis
    but the first is ever empty; sha256: the digest of both; scaled: makes float32 of images that are stored
    as uint8, where `images` does.
    """

    images: NDArray[Any]
    labels: NDArray[Any]
    sha256: str
    _map: mmap.mmap = field(repr=False)
    _images_offset: int | None = field(default=None, repr=False)  # bytes into the file; None: elsewhere in memory
    _file: int = field(default=-1, repr=False)
    scaled: Callable[[NDArray[np.uint8]], NDArray[np.float32]] | None = field(default=None, repr=False)

    def chunks(self, indices: NDArray[np.int64]) -> Iterator[NDArray[Any]]:
        """Yield copies of the images at `indices` in chunks of about `CHUNK` bytes and at most 2**16 images."""
        step = min(2**16, max(1, CHUNK // self.images[0].nbytes))
        for start in range(0, len(indices), step):
            chunk = np.asarray(self.images[indices[start : start + step]])
            self._release()
            yield chunk

    def take(self, indices: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return copies of the images and labels at `indices`, int64 (n,), in any order."""
        if self._images_offset is None:
            return np.asarray(self.images[indices]), self.labels[indices]
        size = self.images[:1].nbytes
        starts = (self._images_offset + size * indices).tolist()
        self._prefetch(starts, size)
        images = np.empty((len(indices), *self.images.shape[1:]), np.uint8 if self.scaled else self.images.dtype)
        # Not through the map: around each image, the system may make megabytes part of this process's memory.
        for image, start in zip(images, starts, strict=True):
            if os.preadv(self._file, [image], start) != size:
                raise StageError("a split was truncated while it was in use; run: dvc repro")
        labels = self.labels[indices]
        self._release()
        return self.scaled(images) if self.scaled else images, labels

    def _prefetch(self, starts: list[int], size: int) -> None:
        """Ask the system to read these images at once, and nothing else.

        By default it reads each image when it is first accessed, and with it as much as the disk's read-ahead,
        which can be megabytes an image.
        """
        for start in starts:
            page = start - start % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, page, start + size - page)

    def _release(self) -> None:
        # Pages read through the map count as memory of this process until they are released.
        self._map.madvise(mmap.MADV_DONTNEED)


def write(path: Path, images: NDArray[Any] | ChunkedArray, labels: NDArray[Any] | ChunkedArray) -> str:
    """Write a split, shapes and dtypes as in `Split`, and return its digest.

    Chunks must not change once yielded. Chunks of images may fill in `labels`, which are written last. Raises
    `ValueError`, a bug in the caller, for arrays that do not form a split.
    """
    images, labels = (_chunked(array) for array in (images, labels))
    layout = (images.dtype.str, len(images.shape), labels.dtype.str, len(labels.shape))
    if layout not in LAYOUTS or images.shape[0] != labels.shape[0]:
        found = f"{images.dtype} images {images.shape} and {labels.dtype} labels {labels.shape}"
        raise ValueError(f"{path}: {found} do not form a split")
    with (
        replacing(path) as partial,
        partial.open("wb") as file,
        zipfile.ZipFile(file, "w") as archive,
        ThreadPoolExecutor(2) as helpers,
    ):
        digest = _Digest(helpers)
        synced = helpers.submit(os.fsync, file.fileno())
        for name, array in zip(MEMBERS, (images, labels), strict=True):
            member = zipfile.ZipInfo(name)  # dated 1980-01-01, the earliest date of a zip
            member.create_system, member.external_attr = 3, 0o644 << 16  # Unix, on every system
            member.extra = _padding(file.tell(), name)
            header = _header(array.dtype, array.shape)
            rows = 0
            with archive.open(member, "w", force_zip64=True) as stream:
                digest.update(header)
                stream.write(header)
                for chunk in array.chunks:
                    if chunk.dtype != array.dtype or chunk.shape[1:] != array.shape[1:]:
                        raise ValueError(f"{path}: {chunk.dtype} {chunk.shape} in {array.dtype} {array.shape}")
                    rows += len(chunk)
                    content = np.ascontiguousarray(chunk).data
                    digest.update(content)
                    stream.write(content)
                    if synced.done():  # sync while writing, not everything at the end
                        synced.result()  # the system reports a disk error only once: here
                        synced = helpers.submit(os.fsync, file.fileno())
            if rows != array.shape[0]:
                raise ValueError(f"{path}: {rows} rows in {array.shape}")
        synced.result()
        return digest.hexdigest()


def read(path: Path, sha256: str | None = None) -> Split:
    """Memory-map the split at `path` after one pass over its bytes, which verifies the checksums.

    Raises `StageError` when the file is missing, was not written by `write`, or does not match the digest
    `sha256`, if given.
    """
    arrays = []
    try:
        with path.open("rb") as file, ThreadPoolExecutor(1) as helper:
            digest = _Digest(helper)
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
            if tuple(member.filename for member in members) != MEMBERS:
                raise ValueError(f"expected the members {' and '.join(MEMBERS)}")
            end = 0
            for name, member in zip(MEMBERS, members, strict=True):
                start = end + _LOCAL_SIZE + len(name) + _ZIP64_SIZE + len(_padding(end, name))
                end = start + member.file_size
                arrays.append((*_verify(file, start, member, digest), start + _HEADER_SIZE))
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            number = os.dup(file.fileno())
            weakref.finalize(mapped, os.close, number)
    except FileNotFoundError:
        raise StageError(f"{path}: no such file; run: dvc repro") from None
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise damaged(path, f"not a valid split ({error})") from None
    images, labels = (
        np.frombuffer(mapped, dtype, math.prod(shape), offset).reshape(shape) for dtype, shape, offset in arrays
    )
    if (images.dtype.str, images.ndim, labels.dtype.str, labels.ndim) not in LAYOUTS or len(images) != len(labels):
        found = f"{images.dtype} images {images.shape}, {labels.dtype} labels {labels.shape}"
        raise damaged(path, f"not a valid split ({found})")
    found = digest.hexdigest()
    if sha256 not in (None, found):
        raise damaged(path, f"checksum mismatch (expected {str(sha256)[:8]}…, found {found[:8]}…)")
    return Split(images, labels, found, mapped, arrays[0][2], number)


def damaged(path: Path, problem: str) -> StageError:
    """Return the error for an output that has changed since it was written, with the command that rebuilds it.

    Removing the file is not enough: DVC trusts read-only objects in its cache without hashing them, and links
    their bytes again, even over what `dvc repro --force` has just written. Objects that are writable and have a
    new modification time it hashes, and drops if they do not match.
    """
    folder = shlex.quote(str(path.parent))
    return StageError(
        f'{path}: {problem}. To rebuild it: find {folder} "$(dvc cache dir)" -type f '
        "-exec chmod u+w {} + -exec touch {} + ; dvc repro"
    )


def _chunked(array: NDArray[Any] | ChunkedArray) -> ChunkedArray:
    return array if isinstance(array, ChunkedArray) else ChunkedArray(array.shape, array.dtype, [array])


class _Digest:
    """SHA-256 in a helper thread, because it takes as long as the rest of the work and releases the GIL."""

    def __init__(self, helper: ThreadPoolExecutor) -> None:
        self._sha256 = hashlib.sha256()
        self._helper = helper
        self._last = helper.submit(self._sha256.update, b"")

    def update(self, block: bytes | memoryview) -> None:
        """Start hashing `block` once the previous one is done."""
        self._last.result()
        self._last = self._helper.submit(self._sha256.update, block)

    def hexdigest(self) -> str:
        self._last.result()
        return self._sha256.hexdigest()


def _header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    length = _HEADER_SIZE - 10
    text = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': {shape}, }}".ljust(length - 1)
    return b"\x93NUMPY\1\0" + length.to_bytes(2, "little") + text.encode() + b"\n"


def _padding(offset: int, name: str) -> bytes:
    """Return the extra field that aligns the array of the zip entry at `offset`."""
    zeros = -(offset + _LOCAL_SIZE + len(name) + _ZIP64_SIZE + 6) % ALIGNMENT
    return struct.pack("<HHH", _PADDING_ID, 2 + zeros, ALIGNMENT) + bytes(zeros)


def _verify(file: BinaryIO, start: int, member: zipfile.ZipInfo, digest: _Digest) -> tuple[str, tuple[int, ...]]:
    """Add a member's bytes to `digest` and return its dtype and shape; raises `ValueError` if it is damaged."""
    file.seek(start)
    header = file.read(_HEADER_SIZE)
    checksum, left, block = zlib.crc32(header), member.file_size - len(header), header
    digest.update(header)
    while left > 0 and (block := file.read(min(left, CHUNK))):
        checksum = zlib.crc32(block, checksum)
        digest.update(block)
        left -= len(block)
    if left or checksum != member.CRC:
        raise ValueError(f"{member.filename} is truncated or damaged")
    fields = _HEADER.fullmatch(header)
    if fields is None:
        raise ValueError(f"{member.filename} does not have the header of a split")
    dtype, shape = fields[1].decode(), tuple(int(size) for size in fields[2].split(b",") if size.strip())
    if math.prod(shape) * int(dtype[2:]) != member.file_size - _HEADER_SIZE or 0 in shape[1:]:
        raise ValueError(f"{member.filename} does not have the size of its shape {shape}")
    return dtype, shape
