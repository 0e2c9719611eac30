"""stages/training/transfer.py: what each phase changes in a `pretrained` network, and the file of features."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from stages.common import splits
from stages.common.splits import Split
from stages.model.inference import Predictor
from stages.model.networks import build_model
from stages.model.pretrained import backbone_of
from stages.training import transfer
from stages.training.checkpoints import Checkpoints
from stages.training.cluster import alone
from stages.training.params import TrainParams
from tests.model.test_pretrained import SMALL
from tests.model.weights import weights_file
from tests.training.test_loop import PLAIN

pytestmark = pytest.mark.usefixtures("started")

IMAGES = np.random.default_rng(0).random((21, 32, 32, 3), np.float32)
IMAGES[::2] /= 4


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    path = tmp_path_factory.mktemp("split") / "train.npz"
    splits.write(path, IMAGES, np.eye(2, dtype=np.float32)[np.arange(21) % 2])
    return splits.read(path)


@pytest.fixture(scope="module")
def build(started: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], keras.Model]:
    weights = weights_file(tmp_path_factory.mktemp("weights") / "small.h5")

    def new() -> keras.Model:
        keras.utils.set_random_seed(0)
        return build_model(SMALL.model_copy(update={"dropout": 0.0}), (32, 32, 3), 2, weights=weights)

    return new


def train(
    model: keras.Model, split: Split, folder: Path, fine_tune: int, **changes: Any
) -> list[dict[str, float]]:
    network = SMALL.model_copy(update={"fine_tune_epochs": fine_tune, "fine_tune_rate": 1e-3})
    params = TrainParams(**{**PLAIN, "batch_size": 8, "epochs": 2, **changes})
    checkpoints = Checkpoints(folder, "k" * 64)
    return transfer.train(model, network, params, split, split, [], alone(), checkpoints, [])[0]


def values(model: keras.Model) -> tuple[list[Any], list[Any], list[Any]]:
    """The backbone's batch normalization, its other weights, and those of the last layer."""
    weights = [(weight.path.rpartition("/")[2], weight.numpy()) for weight in backbone_of(model).weights]
    norms = [value for name, value in weights if name in ("gamma", "beta", "moving_mean", "moving_variance")]
    others = [value for name, value in weights if name == "kernel"]
    return norms, others, model.get_layer("probabilities").get_weights()


def equal(some: list[Any], others: list[Any]) -> list[bool]:
    return [np.array_equal(one, other) for one, other in zip(some, others, strict=True)]


@pytest.mark.parametrize("flip", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_first_phase_trains_the_last_layer_alone(
    build: Callable[[], keras.Model], split: Split, tmp_path: Path, flip: bool
) -> None:
    model = build()
    before = values(model)
    assert len(train(model, split, tmp_path, 0, flip=flip)) == 2
    after = values(model)
    assert all(equal(before[0], after[0]) + equal(before[1], after[1]))
    assert not any(equal(before[2], after[2]))
    assert (tmp_path / "features").exists() is not flip


@pytest.mark.slow
def test_the_second_phase_trains_all_but_batch_normalization(
    build: Callable[[], keras.Model], split: Split, tmp_path: Path
) -> None:
    model = build()
    before = values(model)
    assert len(train(model, split, tmp_path, 1)) == 3
    after = values(model)
    assert len(before[0]) > 50
    assert all(equal(before[0], after[0]))
    assert not any(equal(before[1], after[1]) + equal(before[2], after[2]))


@pytest.mark.slow
def test_training_on_features_is_training_on_images_with_the_backbone_frozen(
    build: Callable[[], keras.Model], split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_features, on_images = build(), build()
    rows = train(on_features, split, tmp_path / "a", 0)
    monkeypatch.setattr(transfer, "augments", lambda params: True)
    for row, expected in zip(rows, train(on_images, split, tmp_path / "b", 0), strict=True):
        assert list(row.values()) == pytest.approx(list(expected.values()), rel=1e-3)
    np.testing.assert_allclose(Predictor(on_features)(IMAGES), Predictor(on_images)(IMAGES), atol=1e-4)


@pytest.mark.slow
def test_a_damaged_file_of_features_is_computed_again(
    build: Callable[[], keras.Model], split: Split, tmp_path: Path
) -> None:
    expected = transfer.backbone_features(build(), split, tmp_path, "train", []).images.copy()
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    found = transfer.backbone_features(build(), split, tmp_path, "train", [])
    np.testing.assert_array_equal(found.images, expected)
    assert found.images.shape == (21, 1, 1, 576)


@pytest.mark.parametrize(
    "changes",
    [pytest.param({}, id="features"), pytest.param({"flip": True}, id="augmented", marks=pytest.mark.slow)],
)
def test_without_validation_images_both_phases_run(
    build: Callable[[], keras.Model], split: Split, tmp_path: Path, changes: dict[str, Any]
) -> None:
    splits.write(tmp_path / "none.npz", IMAGES[:0], np.zeros((0, 2), np.float32))
    network = SMALL.model_copy(update={"fine_tune_epochs": 1, "fine_tune_rate": 1e-3})
    params = TrainParams(**{**PLAIN, "batch_size": 8, "epochs": 2, **changes})
    none, checkpoints = splits.read(tmp_path / "none.npz"), Checkpoints(tmp_path, "k" * 64)
    rows, saved = transfer.train(build(), network, params, split, none, [], alone(), checkpoints, [])
    assert (saved, [sorted(row) for row in rows]) == (2, [["accuracy", "loss"]] * 3)
