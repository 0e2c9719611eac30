"""stages/model/inference.py: the probabilities are those of the model, whatever the number of images."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from stages.common import splits
from stages.model.inference import BATCH_SIZE, Predictor, batch_size, mean_of_views, predict_split
from stages.model.networks import Block, TutorialParams, build_model

pytestmark = pytest.mark.usefixtures("started")

IMAGES = np.random.default_rng(0).random((2 * BATCH_SIZE + 3, 6, 6, 1), np.float32)


@pytest.fixture
def model() -> keras.Model:
    params = TutorialParams(
        network="tutorial",
        blocks=[Block(filters=4, layers=1, pool=2, dropout=0.5)],
        kernel=3,
        padding="same",
        activation="relu",
        head="flatten",
        dense=[8],
        dropout=0.5,
    )
    keras.utils.set_random_seed(0)
    return build_model(params, (6, 6, 1), 3)


@pytest.mark.parametrize("number", [1, BATCH_SIZE - 1, BATCH_SIZE, BATCH_SIZE + 1, len(IMAGES)])
def test_every_image_gets_the_models_probabilities_in_order(model: keras.Model, number: int) -> None:
    found = Predictor(model)(IMAGES[:number])
    assert found.shape == (number, 3)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, model(IMAGES[:number], training=False).numpy(), rtol=1e-5)


@pytest.mark.parametrize("number", [1, 2, 3, 8, 31, 100, BATCH_SIZE - 1])
def test_the_probabilities_of_an_image_do_not_depend_on_its_batch(model: keras.Model, number: int) -> None:
    predict = Predictor(model)
    whole = predict(IMAGES[:BATCH_SIZE])
    np.testing.assert_array_equal(predict(IMAGES[:number]), whole[:number])
    np.testing.assert_array_equal(predict(IMAGES[BATCH_SIZE - number : BATCH_SIZE]), whole[-number:])


def test_fewer_large_images_are_predicted_at_a_time() -> None:
    assert [batch_size((side, side, 3)) for side in (1, 32, 64, 224, 4096)] == [500, 500, 125, 10, 8]


def test_dropout_is_off(model: keras.Model) -> None:
    predict = Predictor(model)
    np.testing.assert_array_equal(predict(IMAGES[:10]), predict(IMAGES[:10]))


def test_weights_that_changed_meanwhile_count(model: keras.Model) -> None:
    predict = Predictor(model)
    predict(IMAGES[:10])
    model.get_layer("probabilities").bias.assign([100, 0, 0])
    np.testing.assert_allclose(predict(IMAGES[:10])[:, 0], 1)


def test_the_model_is_traced_once_for_batches_of_any_size() -> None:
    traces = []

    class Traced(keras.layers.Layer):
        def call(self, images: Any) -> Any:
            traces.append(images.shape)
            return images

    inputs = keras.Input((2,))
    model = keras.Model(inputs, Traced()(inputs))
    traces.clear()
    predict = Predictor(model)
    for number in (1, 2, BATCH_SIZE + 1):
        predict(np.zeros((number, 2), np.float32))
    assert traces == [(None, 2)]


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux says which pages are in memory")
def test_a_split_is_predicted_without_keeping_its_pages_in_memory(model: keras.Model, tmp_path: Path) -> None:
    path = tmp_path / "test.npz"
    images = np.repeat(IMAGES, 10, axis=0)
    splits.write(path, images, np.zeros((len(images), 3), np.float32))
    split, predict = splits.read(path), Predictor(model)
    resident: list[int] = []

    def watched(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        resident.append(_resident(path))
        return predict(batch)

    np.testing.assert_array_equal(predict_split(watched, split), predict(images))
    np.testing.assert_array_equal(predict_split(predict, split, slice(500, 1203)), predict(images[500:1203]))
    views = mean_of_views(watched, split, predict(images), 6)
    np.testing.assert_array_equal(views[2], (predict(images) + predict(images[:, :, ::-1])) / 2)
    assert list(views) == [2, 6]
    assert max(resident) < path.stat().st_size / 4


def _resident(path: Path) -> int:
    """The bytes of the mapped file that count as memory of this process."""
    maps = Path("/proc/self/smaps").read_text().split(str(path))
    return sum(1024 * int(each.split("Rss:")[1].split()[0]) for each in maps[1:])
