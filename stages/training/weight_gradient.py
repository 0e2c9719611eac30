"""The gradient of a convolution's weights on few pixels, in bfloat16, as a convolution of another kind.

On CPUs without AMX oneDNN's own kernel for it takes four times as long as the forward convolution where images
have become 3 x 3. But this gradient is a forward convolution, too, in which the images of the batch play the part
of the channels: the weight [i, j, c, f] gets the sum, over images n and places y, x, of
images[n, y + i, x + j, c] * upstream[n, y, x, f]. Where the places are few that is quicker; the arithmetic is the
same to rounding.
"""

from functools import partial
from typing import Any

import keras
import tensorflow as tf

MOST_PLACES = 49  # up to 7 x 7 it was quicker; in a whole step, benchmarks/ingredients.py tells


def quicken_weight_gradients(model: keras.Model) -> None:
    """Let the convolutions of `model` find their gradient so; how they predict and are saved stays as it is."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D) and layer.compute_dtype == "bfloat16" and _plain(layer):
            layer.convolution_op = partial(_convolve, layer.convolution_op)


def _plain(layer: keras.layers.Conv2D) -> bool:
    every_place = layer.strides == layer.dilation_rate == (1, 1) and layer.padding == "same"
    # Beside this gradient TensorFlow would find that of a bias by adding up in bfloat16, where 256 + 1 is 256.
    return every_place and layer.groups == 1 and not layer.use_bias and all(side % 2 for side in layer.kernel_size)


def _convolve(plain: Any, images: Any, kernel: Any) -> Any:
    if images.shape[1] * images.shape[2] > MOST_PLACES:
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
