"""Keras's batch normalization in training, done by TensorFlow's one fused kernel.

Keras 3 writes it as a dozen passes over the activations, in float32 also where these are bfloat16. The kernel's
variance that goes into the running one is the unbiased one, n / (n - 1) times Keras's; else the arithmetic is the
same to rounding.
"""

from functools import partial

import keras
import tensorflow as tf


def fuse_batch_norm(model: keras.Model) -> None:
    """Let the layers of `model` train with the fused kernel; how they predict and are saved stays as it is."""
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
