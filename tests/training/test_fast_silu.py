"""training/fast_silu.py: the gradient of SiLU in fewer passes."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from stages.training import fast_silu
from stages.training.fast_silu import use_fast_silu

pytestmark = pytest.mark.usefixtures("started")


def activation(name: str = "silu") -> keras.Model:
    return keras.Sequential([keras.Input((5,)), keras.layers.Activation(name)])


def gradient(values: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
    inputs = tf.constant(values, dtype)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = fast_silu._silu(inputs)
    found: NDArray[np.float32] = tf.cast(tape.gradient(outputs, inputs), tf.float32).numpy()
    return found


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-6), ("bfloat16", 0.02)])
def test_the_gradient_is_the_derivative_to_rounding(dtype: str, error: float) -> None:
    values = np.array([-300, -20, -5, -1.5, -1, -0.25, 0, 0.25, 1, 2, 5, 20, 300], np.float32)
    sigmoid = 1 / (1 + np.exp(-values.astype(np.float64)))
    wanted = sigmoid * (1 + values * (1 - sigmoid))
    np.testing.assert_allclose(gradient(values, dtype), wanted, atol=error)


def test_outputs_and_the_saved_layer_are_keras_s_own() -> None:
    ours, theirs = activation(), activation()
    use_fast_silu(ours)
    values = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    np.testing.assert_array_equal(ours(values, training=True).numpy(), theirs(values, training=True).numpy())
    assert "call" in vars(ours.layers[0])
    assert ours.get_config()["layers"][1]["config"]["activation"] == "silu"


def test_another_activation_is_left_alone() -> None:
    model = activation("elu")
    use_fast_silu(model)
    assert "call" not in vars(model.layers[0])
