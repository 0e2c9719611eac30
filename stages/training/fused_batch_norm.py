"""Keras's batch normalization in training mode, computed by TensorFlow's fused kernel.

Keras 3 makes a dozen passes over the activations, in float32 even where they are bfloat16. The kernel updates the
running variance with the unbiased variance, n / (n - 1) times Keras's. Otherwise the result is the same up to
rounding.
"""

from functools import partial

import keras
import tensorflow as tf


def fuse_batch_norm(model: keras.Model) -> None:
    """Make the layers of `model` train with the fused kernel. Prediction and saving do not change."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization) and not layer.scale:
            layer.call = partial(_call, layer, layer.call)


def _call(layer, plain, inputs, training=None, mask=None):  # type: ignore[no-untyped-def]
    if not training:
        return plain(inputs, training=training, mask=mask)
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=tf.ones_like(layer.beta.value),
        offset=tf.convert_to_tensor(layer.beta.value),
        mean=tf.zeros([0]),
        variance=tf.zeros([0]),
        epsilon=layer.epsilon,
        is_training=True,
    )
    for running, found in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
        running.assign(running * layer.momentum + found * (1 - layer.momentum))
    return outputs
