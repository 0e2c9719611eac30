"""Scales uint8 pixels to the network's float32 input, and computes the channel statistics for that."""

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from stages.common.failure import StageError
from stages.common.splits import Split


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


def scale(
    chunks: Iterable[NDArray[np.uint8]], by_channel: tuple[Sequence[float], Sequence[float]] | None
) -> Iterator[NDArray[np.float32]]:
    """Yield uint8 (n, H, W, C) chunks as float32: x / 255, then, given (mean, std), (x - mean) / std.

    Each step is one float32 operation, which IEEE 754 rounds identically on every machine. Raises `StageError`
    when a standard deviation is zero.
    """
    mean, std = (np.asarray(values, np.float32) for values in by_channel or ((0,), (1,)))
    if not std.all():
        raise StageError(
            f"preprocess.scaling: channel {std.argmin()} is constant in the training images and cannot be "
            "standardized; use: unit"
        )
    for chunk in chunks:
        scaled = np.divide(chunk, np.float32(255), dtype=np.float32)
        if by_channel:
            scaled -= mean
            scaled /= std
        yield scaled
