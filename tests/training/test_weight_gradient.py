"""training/weight_gradient.py: the gradient of a convolution, computed in another way where pixels are few."""

from collections.abc import Iterator
from unittest.mock import Mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from stages.training import weight_gradient
from stages.training.weight_gradient import MOST_POSITIONS, use_fast_weight_gradients

pytestmark = pytest.mark.usefixtures("started")


@pytest.fixture(autouse=True)
def _bfloat16() -> Iterator[None]:
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy("float32")


def convolution(shape: tuple[int, int, int], side: int = 3, **options: object) -> keras.Model:
    keras.utils.set_random_seed(3)
    plain = {"padding": "same", "use_bias": False}
    return keras.Sequential([keras.Input(shape), keras.layers.Conv2D(6, side, **{**plain, **options})])


def trained(model: keras.Model) -> list[NDArray[np.float32]]:
    """The outputs, and the gradients of the images and of the kernel."""
    images = tf.constant(np.random.default_rng(0).normal(size=(40, *model.input_shape[1:])).astype(np.float32))

    @tf.function  # type: ignore[untyped-decorator]
    def step() -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(images)
            outputs = tf.cast(model(images, training=True), tf.float32)
            loss = tf.reduce_sum(tf.sin(outputs))
        return [outputs, *tape.gradient(loss, [images, *(each.value for each in model.trainable_variables)])]

    return [each.numpy() for each in step()]


@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize(("shape", "side"), [((3, 3, 5), 3), ((7, 7, 4), 3), ((2, 6, 8), 5), ((1, 1, 4), 3)])
def test_outputs_and_gradients_are_keras_s_to_rounding(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int], side: int, amx: bool
) -> None:
    monkeypatch.setattr(weight_gradient, "has_amx", lambda: amx)
    quick = Mock(wraps=weight_gradient._with_gradient)
    monkeypatch.setattr(weight_gradient, "_with_gradient", quick)
    ours, theirs = convolution(shape, side), convolution(shape, side)
    use_fast_weight_gradients(ours)
    for found, wanted in zip(trained(ours), trained(theirs), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0.01, atol=0.01 * np.abs(wanted).max())
    assert quick.called


def test_where_pixels_are_many_the_gradient_is_keras_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_gradient, "_with_gradient", None)
    ours, theirs = convolution((5, 10, 4)), convolution((5, 10, 4))
    assert MOST_POSITIONS < 5 * 10
    use_fast_weight_gradients(ours)
    for found, wanted in zip(trained(ours), trained(theirs), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_predictions_and_the_saved_layer_are_keras_s_own() -> None:
    ours, theirs = convolution((4, 4, 3)), convolution((4, 4, 3))
    use_fast_weight_gradients(ours)
    images = np.random.default_rng(1).random((30, 4, 4, 3), np.float32)
    np.testing.assert_array_equal(ours(images, training=False).numpy(), theirs(images, training=False).numpy())
    assert ours.get_config()["layers"][1]["module"] == "keras.layers"


@pytest.mark.parametrize(
    "options",
    [
        {"use_bias": True},
        {"padding": "valid"},
        {"strides": 2},
        {"dilation_rate": 2},
        {"side": 2},
        {"dtype": "float32"},
    ],
)
def test_another_kind_of_convolution_is_left_alone(options: dict[str, object]) -> None:
    model = convolution((6, 6, 4), **options)  # type: ignore[arg-type]
    use_fast_weight_gradients(model)
    assert "convolution_op" not in vars(model.layers[0])
