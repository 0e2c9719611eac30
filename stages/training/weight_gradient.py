"""A faster weight gradient for bfloat16 convolutions on small feature maps.

On CPUs without AMX, oneDNN's kernel for the weight gradient takes four times as long as the forward convolution on
3 x 3 feature maps. But this gradient is itself a convolution, with the batch as its channels: the gradient of
weight [i, j, c, f] is the sum over images n and positions y, x of images[n, y + i, x + j, c] * upstream[n, y, x,
f]. On small feature maps TensorFlow's forward convolution computes it faster. The result is the same up to
rounding.
"""

from functools import partial
from typing import Any

import keras
import tensorflow as tf

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
        border = [[0, 0], *([side // 2] * 2 for side in kernel.shape[:2]), [0, 0]]
        # (C, H, W, n) and (H, W, n, filters) make (C, h, w, filters).
        of_kernel = tf.nn.conv2d(
            tf.transpose(images, [3, 1, 2, 0]), tf.transpose(upstream, [1, 2, 0, 3]), strides=1, padding=border
        )
        return of_images, tf.transpose(of_kernel, [1, 2, 0, 3])

    return tf.nn.conv2d(images, kernel, strides=1, padding="SAME"), gradients
