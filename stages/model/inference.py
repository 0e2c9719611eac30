"""Predicts the probabilities of a whole split in batches."""

import math
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from stages.common.confidence import soften

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
            [self._batch(np.ascontiguousarray(images[part])) for part in _batches(len(images), self._size)]
        )

    def _batch(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        # A single image would be multiplied by another kernel (matrix by vector), which rounds differently.
        padded = np.repeat(images, 2, axis=0) if len(images) == 1 else images
        probabilities: NDArray[np.float32] = self._forward(padded).numpy()
        return soften(probabilities[: len(images)], self._temperature)


def batch_size(shape: tuple[int, ...]) -> int:
    """Return how many images of `shape` (H, W, C) are predicted at a time."""
    return max(8, min(BATCH_SIZE, BATCH_SIZE * PIXELS // math.prod(shape[:-1])))


def mean_of_views(
    predict: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    images: NDArray[np.float32],
    plain: NDArray[np.float32],
    count: int,
) -> dict[int, NDArray[np.float32]]:
    """Return the mean probabilities over 2 and over 6 views of each image, by number of views up to `count`.

    images: float32 (N, H, W, C); plain: what `predict` returns, float32 (N, classes). 2: the image and its
    mirror image. 6: in addition both shifted by one pixel down and right, and by one up and left, with reflected
    borders; the shifted ones count half, as in K. Jordan's airbench (2024).
    """
    if count == 1:
        return {}
    found = {2: (plain + predict(images[:, :, ::-1])) / np.float32(2)}
    if count == 6:
        found[6] = found[2] / np.float32(2)
        for part in _batches(len(images), batch_size(images.shape[1:])):
            padded = np.pad(images[part], ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect")
            for shifted in (padded[:, :-2, :-2], padded[:, 2:, 2:]):
                found[6][part] += (predict(shifted) + predict(shifted[:, :, ::-1])) / np.float32(8)
    return found


def _batches(images: int, size: int) -> Iterator[slice]:
    for start in range(0, images, size):
        yield slice(start, start + size)
