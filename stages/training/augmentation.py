"""Data augmentation: flips, shifts and image sizes, which depend only on the seed and the step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from stages.common.failure import StageError
from stages.common.params import Section
from stages.model.networks import ModelParams, check_smaller

if TYPE_CHECKING:
    import tensorflow as tf


class AugmentationParams(Section):
    """The part of `train` in params.yaml that describes augmentation."""

    # Horizontally: true flips each image with probability 1/2, alternate in every second epoch.
    flip: Literal[False, True, "alternate"]
    shift: int = Field(ge=0)  # maximum translation in pixels, in each direction; the border is reflected
    # Image sizes as fractions of the full size, each for an equal part of the epochs.
    scales: list[Annotated[float, Field(gt=0, le=1)]] = Field(min_length=1)


def augments(params: AugmentationParams) -> bool:
    """Return whether the network sees changed training images. A key that is false or 0 changes nothing."""
    off = {"scales": [1]}
    return any(getattr(params, key) != off.get(key, False) for key in AugmentationParams.model_fields)


def check_image_size(params: AugmentationParams, network: ModelParams, shape: tuple[int, int, int]) -> None:
    """Raise `StageError` when images of `shape` (H, W, C) are too small for the shift or for one of the scales.

    Called before training: an error raised inside the graph would carry TensorFlow's traceback.
    """
    height, width, channels = shape
    if params.shift >= min(height, width):
        raise StageError(
            f"train.shift: {params.shift} is too far for images of {height} x {width} pixels; use at most "
            f"{min(height, width) - 1}"
        )
    for scale in params.scales:
        check_smaller(network, shape, (*scaled_size(scale, height, width), channels))


def alternate_flips(seed: int, epoch: int, images: int) -> NDArray[np.bool_]:
    """Return which of the training images `flip: alternate` flips in an epoch, bool (images,).

    A random half in the first epoch, the other half in the next, and so on. Two epochs show each image in both
    orientations; with independent flips, half of the images appear in only one (K. Jordan 2024).
    """
    words = np.random.Philox(key=[seed, 2**63]).random_raw(images)  # no epoch's order has this key
    first: NDArray[np.bool_] = words >> np.uint64(63) == 1
    return first ^ bool(epoch % 2)


def scaled_size(scale: float, height: int, width: int) -> tuple[int, int]:
    """Return the height and width of images at one of `train.scales`, in whole pixels."""
    return max(1, round(scale * height)), max(1, round(scale * width))


def scale_of(params: AugmentationParams, epoch: int, epochs: int) -> float:
    """Return the scale of an epoch, counted from 0. The last epoch has the last of `train.scales`."""
    return params.scales[len(params.scales) - 1 - (epochs - 1 - epoch) * len(params.scales) // epochs]


def augment(
    params: AugmentationParams,
    images: tf.Tensor,
    seed: int,
    step: tf.Tensor,
    positions: tf.Tensor,
    batch: int,
    size: tuple[int, int],
) -> tf.Tensor:
    """Return a replica's images of a batch, augmented: float32 (n, *size, C).

    images: float32 (n, H, W, C); positions: their indices in the whole batch of `batch` images, int32 (n,). The
    random numbers are stateless and drawn for the whole batch, so a step repeated after a kill draws the same
    numbers, and so do several replicas together.
    """
    import tensorflow as tf  # here, because importing this module must not load it before `runtime.start`

    height, width = images.shape[1], images.shape[2]
    step = tf.cast(step, tf.int32)
    if params.flip is True:
        flipped = tf.random.stateless_uniform([batch, 1, 1, 1], [2 * seed, step]) < 0.5
        images = tf.where(tf.gather(flipped, positions), tf.reverse(images, [2]), images)
    if params.shift:
        most = params.shift
        padded = tf.pad(images, [[0, 0], [most, most], [most, most], [0, 0]], mode="REFLECT")
        offsets = tf.random.stateless_uniform(
            [batch, 2], [2 * seed + 1, step], minval=0, maxval=2 * most + 1, dtype=tf.int32
        )
        offsets = tf.gather(offsets, positions)
        rows = offsets[:, :1] + tf.range(height)
        columns = offsets[:, 1:] + tf.range(width)
        images = tf.gather(padded, rows, axis=1, batch_dims=1)
        images = tf.gather(images, columns, axis=2, batch_dims=1)
    if size != (height, width):
        # Antialiasing averages all pixels that an output pixel covers; without it, most would be ignored.
        images = tf.image.resize(images, size, antialias=True)
    return images
