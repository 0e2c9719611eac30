"""training/fast_dropout.py: dropout with one random byte for each activation."""

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from stages.training.fast_dropout import use_fast_dropout

pytestmark = pytest.mark.usefixtures("started")

ONES = np.ones((300, 7, 11), np.float32)


def network(rate: float, dtype: str = "float32") -> keras.Model:
    model = keras.Sequential([keras.Input((7, 11)), keras.layers.Dropout(rate, seed=5, dtype=dtype)])
    use_fast_dropout(model)
    return model


def dropped(model: keras.Model) -> NDArray[np.float32]:
    return np.asarray(model(ONES, training=True)).astype(np.float32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rate", [0.25, 0.5, 0.75])
def test_the_rate_is_kept_and_what_is_left_scaled(rate: float, dtype: str) -> None:
    found = dropped(network(rate, dtype))
    np.testing.assert_allclose(np.unique(found), [0, 1 / (1 - rate)], rtol=0.005)
    deviation = (rate * (1 - rate) / found.size) ** 0.5
    assert abs((found == 0).mean() - rate) < 4 * deviation


def test_neighbours_and_steps_are_independent() -> None:
    model = network(0.5)
    first, second = (dropped(model) == 0 for _ in range(2))
    for one, other in ((first, second), (first[1:], first[:-1]), (first[..., 1:], first[..., :-1])):
        assert abs((one == other).mean() - 0.5) < 4 * 0.5 / one.size**0.5


def test_the_same_seed_drops_the_same() -> None:
    np.testing.assert_array_equal(dropped(network(0.5)), dropped(network(0.5)))


def test_predictions_and_the_saved_layer_are_keras_s_own() -> None:
    model = network(0.25)
    np.testing.assert_array_equal(model(ONES, training=False), ONES)
    assert model.get_config()["layers"][1]["module"] == "keras.layers"


def test_a_rate_between_two_256ths_is_left_to_keras() -> None:
    assert "call" not in vars(network(0.3).layers[0])
    assert "call" in vars(network(0.25).layers[0])
