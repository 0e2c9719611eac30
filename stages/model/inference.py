"""Predicts the probabilities of a whole split in batches."""

import math
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from stages.common.confidence import soften
from stages.common.splits import Split

# Limits memory: the largest activations of the tutorial's network take 131 kB per image, so 65 MB per batch.
BATCH_SIZE = 500
PIXELS = 32 * 32  # of the images that this holds for; of larger ones, fewer are predicted at a time


class Predictor:
    """The model's forward pass in inference mode, traced once."""

    def __init__(self, model: keras.Model, temperature: float = 1) -> None:
        """Compile the forward pass of `model`; temperature: of `soften`, 1 for its own probabilities."""
        self._temperature = temperature
        shape = (None, *model.input_shape[1:])
        self._size = batch_size(shape[1:])
        self._forward = tf.function(
            lambda images: model(images, training=False),
            input_signature=[tf.TensorSpec(shape, tf.float32)],
        )

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the probabilities, float32 (N, classes), of `images`, float32 (N, H, W, C).

        On one machine they do not depend on the other images of a batch, nor on how many there are.
        """
        return np.concatenate(
            [self._batch(np.ascontiguousarray(images[part])) for part in _batches(0, len(images), self._size)]
        )

    def _batch(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        # A single image would be multiplied by another kernel (matrix by vector), which rounds differently.
        padded = np.repeat(images, 2, axis=0) if len(images) == 1 else images
        probabilities: NDArray[np.float32] = self._forward(padded).numpy()
        return soften(probabilities[: len(images)], self._temperature)


def batch_size(shape: tuple[int, ...]) -> int:
    """Return how many images of `shape` (H, W, C) are predicted at a time."""
    return max(8, min(BATCH_SIZE, BATCH_SIZE * PIXELS // math.prod(shape[:-1])))


Probabilities = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def batches(split: Split, part: slice | None = None) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Yield the positions and the images, float32 (n, H, W, C), of each batch of a split, or of a `part` of it.

    The images are copies: the pages of the file behind them do not stay in memory.
    """
    start, stop, _ = (part or slice(None)).indices(len(split.images))
    for batch in _batches(start, stop, batch_size(split.images.shape[1:])):
        yield batch, split.take(np.arange(batch.start, batch.stop))[0]


def predict_split(predict: Probabilities, split: Split, part: slice | None = None) -> NDArray[np.float32]:
    """Return the probabilities, float32 (N, classes), of the images of a split, or of a `part` of it."""
    return np.concatenate([predict(images) for _, images in batches(split, part)])


def mean_of_views(
    predict: Probabilities, split: Split, plain: NDArray[np.float32], count: int
) -> dict[int, NDArray[np.float32]]:
    """Return the mean probabilities over 2 and over 6 views of each image, by number of views up to `count`.

    plain: what `predict` returns for the images of the split, float32 (N, classes). 2: the image and its mirror
    image. 6: in addition both shifted by one pixel down and right, and by one up and left, with reflected borders;
    the shifted ones count half, as in K. Jordan's airbench (2024).
    """
    found = {views: np.empty_like(plain) for views in (2, 6) if views <= count}
    for batch, images in batches(split) if found else ():
        found[2][batch] = (plain[batch] + predict(images[:, :, ::-1])) / np.float32(2)
        if 6 in found:
            found[6][batch] = found[2][batch] / np.float32(2)
            padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect")
            for shifted in (padded[:, :-2, :-2], padded[:, 2:, 2:]):
                found[6][batch] += (predict(shifted) + predict(shifted[:, :, ::-1])) / np.float32(8)
    return found


def _batches(start: int, stop: int, size: int) -> Iterator[slice]:
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))
