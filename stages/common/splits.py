"""The .npz file of a split: written as a stream, read through a memory map, checked on every read.

Not run by itself. A split is `images.npy` and `labels.npy` in an uncompressed zip, which `numpy.load` and
any unzip read; the data of both start at multiples of 64 bytes, so that a map of them is as fast as memory.
The same arrays give the same bytes, however they are cut into parts: dates, modes and array headers are
fixed here, not left to the versions of Python and NumPy. The digest of a split is the SHA-256 of its two
members, dtypes and shapes included, one after the other: `unzip -p train.npz | sha256sum` prints it.

Formats: PKWARE's APPNOTE.TXT 6.3 (zip) and numpy.lib.format 1.0 (npy).
"""

import hashlib
import math
import mmap
import os
import re
import shlex
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from stages.common.failure import StageError
from stages.common.outputs import replacing

MEMBERS = ("images.npy", "labels.npy")
# Of each dtype, the dimensions of images and labels: raw splits, and processed ones with one-hot labels.
DIMENSIONS = {"|u1": (4, 1), "<f4": (4, 2)}
CHUNK = 1 << 18  # bytes at a time: few calls, and as float32, four times as many, they stay in a core's cache
ALIGNMENT = 64  # bytes: a cache line, and the widest vector register

# An array's header has one length, so that its place in the file follows from the member's.
_HEADER_SIZE = 192
_HEADER = re.compile(
    rb"\x93NUMPY\x01\0\xb6\0{'descr': '(\|u1|<f4)', 'fortran_order': False, 'shape': \(([\d, ]+)\), } *\n"
)
# Before it in the zip: 30 bytes, the name, sizes in 64 bits (always, so that 5 GB are written no differently
# from 5 kB), and a field that readers skip, by zipalign's ID, as long as the alignment needs.
_LOCAL_SIZE, _ZIP64_SIZE, _PADDING_ID = 30, 20, 0xD935


@dataclass(frozen=True, eq=False)
class Parts:
    """An array that comes in parts along its first axis; `shape` is that of the whole."""

    shape: tuple[int, ...]
    parts: Iterable[NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Split:
    """A split in a read-only memory map.

    images: uint8 or float32 (N, H, W, C); labels: uint8 (N,) or one-hot float32 (N, classes), N and all
    other sizes at least 1; sha256: the digest of both.
    """

    images: NDArray[Any]
    labels: NDArray[Any]
    sha256: str
    _map: mmap.mmap = field(repr=False)
    _images_at: int | None = field(default=None, repr=False)  # bytes from the map's start; None: not in it

    def chunks(self, indices: NDArray[np.int64]) -> Iterator[NDArray[Any]]:
        """Yield copies of the images at `indices`, about `CHUNK` bytes and at most 2**16 images at a time."""
        step = min(2**16, max(1, CHUNK // self.images[0].nbytes))
        for start in range(0, len(indices), step):
            chunk = self.images[indices[start : start + step]]
            self._give_back()
            yield chunk

    def take(self, indices: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return copies of the images and labels at `indices`, int64 (n,), which may be in any order."""
        self._ask_for(indices)
        taken = self.images[indices], self.labels[indices]
        self._give_back()
        return taken

    def _ask_for(self, indices: NDArray[np.int64]) -> None:
        """Have the system read these images, all at once and nothing else.

        Left alone it reads one after another, when they are touched, and much around each: Linux as much as the
        disk's read-ahead, which can be megabytes an image.
        """
        if self._images_at is None:
            return
        size = self.images[0].nbytes
        for start in (self._images_at + size * indices).tolist():
            page = start - start % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, page, start + size - page)

    def _give_back(self) -> None:
        # The pages that a map has read count as this process's memory until they are given back.
        self._map.madvise(mmap.MADV_DONTNEED)


def write(path: Path, images: NDArray[Any] | Parts, labels: NDArray[Any]) -> str:
    """Write a split, shapes and dtypes as in `Split`, and return its digest.

    The parts of images must stay as they are once given; they may fill in `labels`, which is read after them.
    Raises `ValueError` for arrays that are not a split, a defect of the caller.
    """
    if isinstance(images, np.ndarray):
        images = Parts(images.shape, [images])
    dtype = labels.dtype
    if DIMENSIONS.get(dtype.str) != (len(images.shape), labels.ndim) or images.shape[0] != len(labels):
        raise ValueError(f"{path}: images {images.shape} and {dtype} labels {labels.shape} are no split")
    with (
        replacing(path) as partial,
        partial.open("wb") as file,
        zipfile.ZipFile(file, "w") as archive,
        ThreadPoolExecutor(2) as helpers,
    ):
        digest = _Digest(helpers)
        synced = helpers.submit(os.fsync, file.fileno())
        for name, array in zip(MEMBERS, (images, Parts(labels.shape, [labels])), strict=True):
            member = zipfile.ZipInfo(name)  # dated 1980-01-01, where zip's calendar starts
            member.create_system, member.external_attr = 3, 0o644 << 16  # Unix, whatever the system
            member.extra = _padding(file.tell(), name)
            header = _header(dtype, array.shape)
            rows = 0
            with archive.open(member, "w", force_zip64=True) as stream:
                digest.update(header)
                stream.write(header)
                for part in array.parts:
                    if part.dtype != dtype or part.shape[1:] != array.shape[1:]:
                        raise ValueError(f"{path}: {part.dtype} {part.shape} in {dtype} {array.shape}")
                    rows += len(part)
                    content = np.ascontiguousarray(part).data
                    digest.update(content)
                    stream.write(content)
                    if synced.done():  # the disk is to work meanwhile, not all at the end
                        synced.result()  # an error of the disk is told once only: here
                        synced = helpers.submit(os.fsync, file.fileno())
            if rows != array.shape[0]:
                raise ValueError(f"{path}: {rows} rows came for {array.shape}")
        synced.result()
        return digest.hexdigest()


def read(path: Path, sha256: str | None = None) -> Split:
    """Map the split at `path`, after one pass over its bytes for zip's checksums and the digest.

    Raises `StageError` when the file is missing, is not one that `write` wrote, or has another digest than
    `sha256`, if that is given.
    """
    arrays = []
    try:
        with path.open("rb") as file, ThreadPoolExecutor(1) as helper:
            digest = _Digest(helper)
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
            if tuple(member.filename for member in members) != MEMBERS:
                raise ValueError(f"{' and '.join(MEMBERS)} expected in it")
            end = 0
            for name, member in zip(MEMBERS, members, strict=True):
                start = end + _LOCAL_SIZE + len(name) + _ZIP64_SIZE + len(_padding(end, name))
                end = start + member.file_size
                arrays.append((*_verify(file, start, member, digest), start + _HEADER_SIZE))
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise StageError(f"{path}: no such file; run: dvc repro") from None
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        # zipfile's words for bytes that it cannot make sense of, or those of _verify.
        raise changed(path, f"not a whole split: {error}") from None
    images, labels = (
        np.frombuffer(mapped, dtype, math.prod(shape), offset).reshape(shape) for dtype, shape, offset in arrays
    )
    if (
        images.dtype != labels.dtype
        or DIMENSIONS[images.dtype.str] != (images.ndim, labels.ndim)
        or len(images) != len(labels)
    ):
        raise changed(path, f"not a split: {images.dtype} {images.shape}, {labels.dtype} {labels.shape}")
    found = digest.hexdigest()
    if sha256 not in (None, found):
        raise changed(path, f"SHA-256 of the content {sha256} expected, {found} found")
    return Split(images, labels, found, mapped, arrays[0][2])


def changed(path: Path, problem: str) -> StageError:
    """The error for a stage's output that is not as it was written, with the command that mends it.

    Removing the file is not enough. DVC takes a read-only object of its cache for good, without hashing it,
    and links its bytes again, even over what `dvc repro --force` has just made. One that is writable and
    touched it does hash, and drops when the hash is wrong.
    """
    folder = shlex.quote(str(path.parent))
    return StageError(
        f"{path}: {problem}; let DVC look at its copies again and make what is wrong: "
        f'find {folder} "$(dvc cache dir)" -type f -exec chmod u+w {{}} + -exec touch {{}} + ; dvc repro'
    )


class _Digest:
    """SHA-256 in a helper thread: it takes as long as the rest of the work, and holds no lock of Python's."""

    def __init__(self, helper: ThreadPoolExecutor) -> None:
        self._sha256 = hashlib.sha256()
        self._helper = helper
        self._last = helper.submit(self._sha256.update, b"")

    def update(self, block: bytes | memoryview) -> None:
        """Start hashing `block`, after waiting for the one before."""
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
    """The extra field that aligns the array of the member whose entry starts at `offset`."""
    zeros = -(offset + _LOCAL_SIZE + len(name) + _ZIP64_SIZE + 6) % ALIGNMENT
    return struct.pack("<HHH", _PADDING_ID, 2 + zeros, ALIGNMENT) + bytes(zeros)


def _verify(file: BinaryIO, start: int, member: zipfile.ZipInfo, digest: _Digest) -> tuple[str, tuple[int, ...]]:
    """Add a member's bytes to `digest`, return its dtype and shape; ValueError when they are not right."""
    file.seek(start)
    header = file.read(_HEADER_SIZE)
    checksum, left, block = zlib.crc32(header), member.file_size - len(header), header
    digest.update(header)
    while left > 0 and (block := file.read(min(left, CHUNK))):
        checksum = zlib.crc32(block, checksum)
        digest.update(block)
        left -= len(block)
    if left or checksum != member.CRC:
        raise ValueError(f"{member.filename} is cut short or has changed bytes")
    fields = _HEADER.fullmatch(header)
    if fields is None:
        raise ValueError(f"{member.filename} has not the header of a split")
    dtype, shape = fields[1].decode(), tuple(int(size) for size in fields[2].split(b",") if size.strip())
    if math.prod(shape) * int(dtype[2:]) != member.file_size - _HEADER_SIZE or 0 in shape:
        raise ValueError(f"{member.filename} has not the size of its shape {shape}")
    return dtype, shape
