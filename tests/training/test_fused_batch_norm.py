"""stages/training/fused_batch_norm.py: Keras's batch normalization, computed in one piece."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from stages.training.fused_batch_norm import fuse_batch_norm

pytestmark = pytest.mark.usefixtures("started")

INPUTS = np.random.default_rng(0).normal(2, 3, (64, 5, 4, 6)).astype(np.float32)


def network() -> keras.Model:
    return keras.Sequential([keras.Input((5, 4, 6)), keras.layers.BatchNormalization(momentum=0.6, scale=False)])


def trained(model: keras.Model) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The outputs in training, and the gradient of the offsets."""
    offsets = model.trainable_variables[0]
    offsets.assign(np.arange(6))
    with tf.GradientTape() as tape:
        outputs = model(INPUTS, training=True)
        loss = tf.reduce_sum(outputs**2)
    return outputs.numpy(), tape.gradient(loss, offsets.value).numpy()


def test_outputs_gradients_and_running_statistics_are_keras_s() -> None:
    ours, theirs = network(), network()
    fuse_batch_norm(ours)
    for found, wanted in zip(trained(ours), trained(theirs), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    count = INPUTS.size // 6
    (_, mean, variance), (_, keras_mean, keras_variance) = ours.get_weights(), theirs.get_weights()
    np.testing.assert_allclose(mean, keras_mean, rtol=1e-5)
    np.testing.assert_allclose(variance - 0.6, (keras_variance - 0.6) * count / (count - 1), rtol=1e-4)


def test_predictions_and_the_saved_layer_are_keras_s_own() -> None:
    ours, theirs = network(), network()
    fuse_batch_norm(ours)
    trained(ours)
    theirs.set_weights(ours.get_weights())
    np.testing.assert_array_equal(ours(INPUTS, training=False).numpy(), theirs(INPUTS, training=False).numpy())
    assert ours.get_config()["layers"][1]["module"] == "keras.layers"


def test_a_layer_with_a_scale_is_left_alone() -> None:
    model = keras.Sequential([keras.Input((5, 4, 6)), keras.layers.BatchNormalization()])
    fuse_batch_norm(model)
    assert "call" not in vars(model.layers[0])
