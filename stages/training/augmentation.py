"""Data augmentation: random changes of the training images, which depend only on the seed and the step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from stages.common.failure import StageError
from stages.common.params import Section
from stages.model.networks import ModelParams, check_smaller

if TYPE_CHECKING:
    from collections.abc import Callable

    import tensorflow as tf


ASPECTS = 3 / 4, 4 / 3  # of a random crop, relative to that of the image
MIXING_DRAWS = 32  # at least half of them are accepted, so it is certain that one is


class AugmentationParams(Section):
    """The part of `train` in params.yaml that describes augmentation."""

    # Horizontally: true flips each image with probability 1/2, alternate in every second epoch.
    flip: Literal[False, True, "alternate"]
    shift: int = Field(ge=0)  # maximum translation in pixels, in each direction; the border is reflected
    resized_crop: float = Field(ge=0, lt=1)  # smallest area of a random crop, as a fraction; 0: no crops
    rotation: float = Field(ge=0, le=180)  # maximum angle in degrees, in each direction; the border is reflected
    color_jitter: float = Field(ge=0, lt=1)  # brightness, contrast and saturation change by up to this fraction
    cutout: int = Field(ge=0)  # side in pixels of a square that is replaced by the image's mean color
    mixup: float = Field(ge=0, le=1)  # alpha of the Beta distribution of the mixing weight; 0: off
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
    if params.cutout >= min(height, width):
        raise StageError(
            f"train.cutout: a square of {params.cutout} pixels covers images of {height} x {width} pixels; use a "
            "smaller one"
        )
    for scale in params.scales:
        check_smaller(network, shape, (*scaled_size(scale, height, width), channels))


def check_color_jitter(params: AugmentationParams, scaling: str) -> None:
    """Raise `StageError` unless the images have the range 0 to 1 that color jitter needs."""
    if params.color_jitter and scaling != "unit":
        raise StageError(
            f"train.color_jitter: needs pixels from 0 to 1, but preprocess.scaling is {scaling}; use scaling: unit"
        )


def alternate_flips(seed: int, epoch: int, images: int) -> NDArray[np.bool_]:
    """Return which of the training images `flip: alternate` flips in an epoch, bool (images,).

    A random half in the first epoch, the other half in the next, and so on. Two epochs show each image in both
    orientations; with independent flips, half of the images appear in only one (K. Jordan 2024).
    """
    words = np.random.Philox(key=[seed, 2**63]).random_raw(images)  # no epoch's order has this key
    first: NDArray[np.bool_] = words >> np.uint64(63) == 1
    return first ^ bool(epoch % 2)


def mixing_weights(params: AugmentationParams, step: int, batch: int, seed: int) -> NDArray[np.float32]:
    """Return the weight of each image of a batch in its mixture with another, float32 (batch,), from 0 to 1.

    Drawn from Beta(alpha, alpha) (Zhang et al. 2018) by Jöhnk's method (1964), because NumPy's own stream may
    change between versions. Rounded, because the last bit of a power depends on the processor.
    """
    words = np.random.Philox(key=[seed, 2**62 + step]).random_raw(batch * MIXING_DRAWS * 2)
    uniform = ((words >> np.uint64(11)) + 0.5) / 2**53
    x, y = np.moveaxis(uniform.reshape(batch, MIXING_DRAWS, 2) ** (1 / params.mixup), 2, 0)
    accepted = (x + y <= 1) & (x + y > 0)
    chosen = np.arange(batch), accepted.argmax(axis=1)
    weights = np.where(accepted.any(axis=1), x[chosen] / np.maximum(x + y, 1e-300)[chosen], 0.5)
    rounded: NDArray[np.float32] = (np.round(weights * 1024) / 1024).astype(np.float32)
    return rounded


def mixed(
    weights: NDArray[np.float32], arrays: NDArray[np.float32], others: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return weight * array + (1 - weight) * other for each image or label, float32 (n, ...)."""
    weights = weights.reshape(-1, *[1] * (arrays.ndim - 1))
    return weights * arrays + (1 - weights) * others


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

    def draw(stream: int, count: int) -> tf.Tensor:
        """Return `count` numbers from 0 to 1 for each image of the whole batch, float32 (batch, count)."""
        key = [tf.constant(2 * seed + (stream << 32), tf.int64), tf.cast(step, tf.int64)]
        return tf.random.stateless_uniform([batch, count], key)

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
    if params.resized_crop or params.rotation:
        # Computed for the whole batch: the last bit of a cosine depends on its place in the vector.
        transforms = _transforms(params, height, width, draw)
        images = tf.raw_ops.ImageProjectiveTransformV3(
            images=images,
            transforms=tf.gather(transforms, positions),
            output_shape=[height, width],
            interpolation="BILINEAR",
            fill_mode="REFLECT",
            fill_value=0.0,
        )
    if params.color_jitter:
        images = _jittered(params.color_jitter, images, tf.gather(draw(3, 3), positions))
    if params.cutout:
        images = _cut_out(params.cutout, images, tf.gather(draw(4, 2), positions))
    if size != (height, width):
        # Antialiasing averages all pixels that an output pixel covers; without it, most would be ignored.
        images = tf.image.resize(images, size, antialias=True)
    return images


def _transforms(
    params: AugmentationParams, height: int, width: int, draw: Callable[[int, int], tf.Tensor]
) -> tf.Tensor:
    """Return a rotation, then a crop enlarged to the whole size, of each image of a batch, float32 (batch, 8).

    In the form of TensorFlow's ImageProjectiveTransform. Area, aspect and place of the crop are drawn as by
    torchvision's RandomResizedCrop (after Szegedy et al. 2015), but a side longer than the image's becomes that.
    """
    import tensorflow as tf

    angle = (2 * draw(2, 1)[:, 0] - 1) * (params.rotation * math.pi / 180)
    wide = high = tf.ones_like(angle)
    left = top = tf.zeros_like(angle)
    if params.resized_crop:
        area, aspect, x, y = tf.unstack(draw(1, 4), axis=1)
        area = params.resized_crop + (1 - params.resized_crop) * area
        narrow, broad = (math.log(each) for each in ASPECTS)
        aspect = tf.exp(narrow + (broad - narrow) * aspect)
        wide, high = tf.minimum(tf.sqrt(area * aspect), 1.0), tf.minimum(tf.sqrt(area / aspect), 1.0)
        left, top = x * (1 - wide) * width, y * (1 - high) * height
    # The center of the crop relative to that of the image, in pixels; then rotated about the latter.
    x, y = left + wide / 2 - width / 2, top + high / 2 - height / 2
    cos, sin = tf.cos(angle), tf.sin(angle)
    across = [cos * wide, -sin * high, cos * x - sin * y + (width - 1) / 2]
    down = [sin * wide, cos * high, sin * x + cos * y + (height - 1) / 2]
    return tf.stack([*across, *down, 0 * angle, 0 * angle], axis=1)


def _jittered(strength: float, images: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
    """Return the images, 0 to 1, with brightness, contrast and saturation changed by up to `strength`."""
    import tensorflow as tf

    brightness, contrast, saturation = tf.unstack(1 + strength * (2 * uniform[:, :, None, None, None] - 1), axis=1)
    images = tf.clip_by_value(images * brightness, 0.0, 1.0)
    mean = tf.reduce_mean(images, axis=[1, 2, 3], keepdims=True)
    images = tf.clip_by_value(mean + (images - mean) * contrast, 0.0, 1.0)
    grey = tf.reduce_mean(images, axis=3, keepdims=True)
    return tf.clip_by_value(grey + (images - grey) * saturation, 0.0, 1.0)


def _cut_out(side: int, images: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
    """Return the images with a square in their mean color, its center anywhere (DeVries and Taylor 2017)."""
    import tensorflow as tf

    height, width = images.shape[1], images.shape[2]
    centers = tf.floor(uniform * [float(height), float(width)])
    starts = centers - side // 2
    rows = tf.range(height, dtype=tf.float32) - starts[:, :1]
    columns = tf.range(width, dtype=tf.float32) - starts[:, 1:]
    in_rows, in_columns = ((places >= 0) & (places < side) for places in (rows, columns))
    inside = (in_rows[:, :, None] & in_columns[:, None, :])[..., None]
    return tf.where(inside, tf.reduce_mean(images, axis=[1, 2], keepdims=True), images)
