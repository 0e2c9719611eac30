"""Dropout that draws one random byte for each activation; TensorFlow draws 32 bits and makes a fraction of them.

A rate like 0.25 or 0.5 is a whole number of 256ths, so comparing a byte with it gives exactly that probability.
The seeds come from the layer's generator, which checkpoints hold.
"""

from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf


def use_fast_dropout(model: keras.Model) -> None:
    """Make the dropout layers of `model` use it where the rate allows. Prediction and saving do not change."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dropout) and layer.rate * 256 % 1 == 0 and layer.noise_shape is None:
            layer.call = partial(_call, layer)


def _call(layer: keras.layers.Dropout, inputs: tf.Tensor, training: bool = False) -> Any:
    if not training or not layer.rate:
        return inputs
    seed = tf.cast(layer.seed_generator.next() % tf.int32.max, tf.int32)
    count = tf.size(inputs)
    words = tf.random.stateless_uniform([(count + 3) // 4], seed, minval=None, maxval=None, dtype=tf.uint32)
    drawn = tf.reshape(tf.reshape(tf.bitcast(words, tf.uint8), [-1])[:count], tf.shape(inputs))
    kept = tf.cast(drawn >= np.uint8(layer.rate * 256), inputs.dtype)
    return inputs * (kept * tf.cast(1 / (1 - layer.rate), inputs.dtype))
