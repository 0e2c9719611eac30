"""The graph that every format stores: uint8 pixels in, float32 probabilities out, with the scaling inside."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from stages.common.scaling import ByChannel

INPUT, OUTPUT = "images", "probabilities"
Graph = Callable[[Any], dict[str, Any]]


def float32_twin(model: keras.Model) -> keras.Model:
    """Return the same network with the same weights, computing in float32.

    A model that computes in bfloat16 becomes an ONNX file that ONNX Runtime refuses, and a LiteRT file that needs
    TensorFlow's own operators.
    """
    twin: keras.Model = keras.models.clone_model(model, clone_function=_in_float32)
    twin.set_weights(model.get_weights())
    return twin


def _in_float32(layer: keras.layers.Layer) -> keras.layers.Layer:
    if isinstance(layer, keras.Model):  # the backbone of a pretrained network
        return keras.models.clone_model(layer, clone_function=_in_float32)
    # Of a plain operation, such as the addition of two tensors, the dtype follows from its inputs.
    own = {"dtype": "float32"} if isinstance(layer, keras.layers.Layer) else {}
    return type(layer).from_config({**layer.get_config(), **own})


def from_pixels(network: keras.Model, by_channel: ByChannel | None, temperature: float = 1) -> Graph:
    """Return the function from images, uint8 (N, H, W, C), to {"probabilities": float32 (N, classes)}.

    by_channel: mean and standard deviation of each channel, when the network was trained on standardized pixels.
    temperature: of the probabilities, see `stages.common.confidence.soften`.
    """

    def graph(images: Any) -> dict[str, Any]:
        scaled = tf.cast(images, tf.float32) / _kept(255)
        if by_channel:
            scaled = (scaled - tf.constant(by_channel[0], tf.float32)) / _kept(by_channel[1])
        # Not left to Keras: after a layer such as Resizing it would call the network in training mode.
        probabilities = network(scaled, training=False)
        if temperature != 1:
            powers = tf.pow(probabilities, tf.constant(1 / temperature, tf.float32))
            probabilities = powers / tf.reduce_sum(powers, axis=1, keepdims=True)
        return {OUTPUT: probabilities}

    return graph


def from_files(pixels: Graph, shape: Sequence[int]) -> Graph:
    """Return the function from the bytes of JPEG or PNG files, string (N,), to what `pixels` returns for them.

    shape: (H, W, C) of the network's images. The resize comes close to that of stages/common/pictures.py, which
    no format can store; EXIF orientation and transparency are ignored.
    """
    height, width, channels = shape

    def decode(content: Any) -> Any:
        # Also decodes PNG. Pillow decodes JPEG with this transform, TensorFlow with a faster one unless told.
        picture = tf.io.decode_jpeg(content, channels=channels, dct_method="INTEGER_ACCURATE")
        resized = tf.image.resize(picture, (height, width), "bicubic", antialias=True)
        return tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)

    def graph(files: Any) -> dict[str, Any]:
        spec = tf.TensorSpec((height, width, channels), tf.uint8)
        return pixels(tf.map_fn(decode, files, fn_output_signature=spec))

    return graph


def _kept(divisor: float | Sequence[float]) -> Any:
    """A constant that TensorFlow does not fold: it would replace the division by a product with the reciprocal."""
    return tf.compat.v1.placeholder_with_default(np.asarray(divisor, np.float32), np.shape(divisor))
