"""Scales uint8 pixels to the network's float32 input, and computes the channel statistics for that."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.common.failure import StageError
from stages.common.splits import Split

ByChannel = tuple[Sequence[float], Sequence[float]]  # the mean and standard deviation of each channel


def check_variation(std: Sequence[float]) -> None:
    """Raise `StageError` when the standard deviation of a channel is zero in float32."""
    if not np.asarray(std, np.float32).all():
        raise StageError(
            f"preprocess.scaling: channel {np.argmin(std)} is constant in the training images and cannot be "
            "standardized; use: unit"
        )


def channel_statistics(split: Split, indices: NDArray[np.int64]) -> tuple[list[float], list[float]]:
    """Return the mean and standard deviation of each channel of pixel / 255, over the images at `indices`.

    The sums are exact integers, so they depend neither on the order of summation nor on the machine.
    """
    height, width, channels = split.images.shape[1:]
    totals = np.zeros((2, channels), np.uint64)
    for chunk in split.chunks(indices):
        rows = chunk.reshape(len(chunk), -1)
        # Sum over images first, because NumPy adds long rows fastest: a chunk has at most 2**16 images, whose
        # squares fit uint32. Then sum over the pixels of each channel.
        values = rows.sum(axis=0, dtype=np.uint32)
        squares = np.square(rows, dtype=np.uint16).sum(axis=0, dtype=np.uint32)
        totals += np.stack([values, squares]).reshape(2, -1, channels).sum(axis=1, dtype=np.uint64)
    count = len(indices) * height * width
    pairs = list(zip(*totals.tolist(), strict=True))
    mean = [value / (255 * count) for value, _ in pairs]
    std = [math.sqrt(count * square - value * value) / (255 * count) for value, square in pairs]
    return mean, std


class ScaledImages:
    """Images that are stored as uint8 and scaled when they are used. Indexing gives `ScaledImages` again.

    `np.asarray` returns float32 of the same shape, with the same bytes as images that were scaled before storing:
    each value depends only on its pixel.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, pixels: NDArray[np.uint8], by_channel: ByChannel | None) -> None:
        """Take pixels, uint8 (..., C), and what `scale` takes."""
        self._pixels, self._by_channel = pixels, by_channel

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the pixels."""
        return self._pixels.shape

    @property
    def nbytes(self) -> int:
        """The number of bytes as stored."""
        return self._pixels.nbytes

    def __len__(self) -> int:
        """Return the length of the first axis."""
        return len(self._pixels)

    def __getitem__(self, key: Any) -> ScaledImages:
        """Return what `key` selects; nothing is scaled yet."""
        return ScaledImages(self._pixels[key], self._by_channel)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Return the scaled images, for NumPy's functions."""
        return next(scale([self._pixels], self._by_channel)).astype(dtype or self.dtype, copy=False)


def scale(chunks: Iterable[NDArray[np.uint8]], by_channel: ByChannel | None) -> Iterator[NDArray[np.float32]]:
    """Yield uint8 (n, H, W, C) chunks as float32: x / 255, then, given (mean, std), (x - mean) / std.

    Each step is one float32 operation, which IEEE 754 rounds identically on every machine.
    """
    mean, std = (np.asarray(values, np.float32) for values in by_channel or ((0,), (1,)))
    for chunk in chunks:
        scaled = np.divide(chunk, np.float32(255), dtype=np.float32)
        if by_channel:
            scaled -= mean
            scaled /= std
        yield scaled
