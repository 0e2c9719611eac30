"""A faster weight gradient for bfloat16 convolutions on small feature maps.

oneDNN's kernel for the weight gradient takes four times as long as the forward convolution on 3 x 3 feature maps.
The gradient of weight [i, j, c, f] is the sum over images n and positions y, x of images[n, y + i, x + j, c] *
upstream[n, y, x, f]. That is a convolution with the batch as its channels, and also a matrix product for each row
i of the kernel. On small feature maps the first is faster than oneDNN's kernel on CPUs without AMX, the second on
CPUs with it. The result is the same up to rounding.
"""

from functools import partial
from typing import Any

import keras
import tensorflow as tf

from stages.model.runtime import has_amx

MOST_POSITIONS = 49  # faster up to 7 x 7; benchmarks/ingredients.py measures it in a whole step


def use_fast_weight_gradients(model: keras.Model) -> None:
    """Make the convolutions of `model` use it. Prediction and saving do not change."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D) and layer.compute_dtype == "bfloat16" and _plain(layer):
            layer.convolution_op = partial(_convolve, layer.convolution_op)


def _plain(layer: keras.layers.Conv2D) -> bool:
    every_place = layer.strides == layer.dilation_rate == (1, 1) and layer.padding == "same"
    # TensorFlow would then sum the bias gradient in bfloat16, where 256 + 1 is 256.
    return every_place and layer.groups == 1 and not layer.use_bias and all(side % 2 for side in layer.kernel_size)


def _convolve(plain: Any, images: Any, kernel: Any) -> Any:
    if images.shape[1] * images.shape[2] > MOST_POSITIONS:
        return plain(images, kernel)
    return _with_gradient(images, tf.convert_to_tensor(kernel))


@tf.custom_gradient  # type: ignore[untyped-decorator]
def _with_gradient(images: tf.Tensor, kernel: tf.Tensor) -> Any:
    """images: (n, H, W, C); kernel: (h, w, C, filters)."""

    def gradients(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        of_images = tf.raw_ops.Conv2DBackpropInput(
            input_sizes=tf.shape(images), filter=kernel, out_backprop=upstream, strides=[1] * 4, padding="SAME"
        )
        of_kernel = _by_products if has_amx() else _by_convolution
        return of_images, of_kernel(images, upstream, kernel.shape)

    return tf.nn.conv2d(images, kernel, strides=1, padding="SAME"), gradients


def _by_convolution(images: tf.Tensor, upstream: tf.Tensor, shape: tf.TensorShape) -> tf.Tensor:
    """Return the gradient of a kernel of `shape`. (C, H, W, n) and (H, W, n, filters) make (C, h, w, filters)."""
    padding = _border(shape)
    found = tf.nn.conv2d(tf.transpose(images, [3, 1, 2, 0]), tf.transpose(upstream, [1, 2, 0, 3]), 1, padding)
    return tf.transpose(found, [1, 2, 0, 3])


def _by_products(images: tf.Tensor, upstream: tf.Tensor, shape: tf.TensorShape) -> tf.Tensor:
    """Return the same. (n H W, w C)' and (n H W, filters) make a row of the kernel, (w C, filters)."""
    padded = tf.pad(images, _border(shape))
    rows, columns = images.shape[1:3]
    shifted = tf.concat([padded[:, :, column : column + columns] for column in range(shape[1])], axis=-1)
    upstream = tf.reshape(upstream, (-1, shape[3]))
    found = [
        tf.matmul(tf.reshape(shifted[:, row : row + rows], (-1, shape[1] * shape[2])), upstream, transpose_a=True)
        for row in range(shape[0])
    ]
    return tf.reshape(tf.stack(found), shape)


def _border(shape: tf.TensorShape) -> list[list[int]]:
    return [[0, 0], *([side // 2] * 2 for side in shape[:2]), [0, 0]]
