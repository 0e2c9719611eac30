"""stages/training/balance.py: class weights, and the remarks on the sizes of the classes."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from stages.common.failure import StageError
from stages.common.params import load
from stages.training.balance import BalanceParams, as_vector, class_weights, remarks
from stages.training.checkpoints import Checkpoints
from stages.training.cluster import alone
from stages.training.loop import Trainer
from stages.training.params import TrainParams
from tests.training.test_loop import IMAGES, PLAIN, Interrupt, build, split, train, weights

CLASSES, COUNTS = ["cat", "dog", "emu"], [60, 30, 6]


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    labels = np.repeat(np.arange(3), COUNTS)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    found = class_weights(BalanceParams(class_weights="balanced"), CLASSES, COUNTS)
    assert found is not None and list(found.values()) == expected.tolist()


def test_a_class_without_training_images_does_not_change_the_balanced_weights_of_the_others() -> None:
    assert class_weights(BalanceParams(class_weights="balanced"), CLASSES, [60, 30, 0]) == {
        "cat": 0.75,
        "dog": 1.5,
        "emu": 1.0,
    }


def test_classes_that_the_mapping_does_not_name_have_the_weight_1() -> None:
    assert class_weights(BalanceParams(class_weights={"emu": 3.0}), CLASSES, COUNTS) == {
        "cat": 1.0,
        "dog": 1.0,
        "emu": 3.0,
    }


def test_a_weight_for_no_class_is_an_error_with_the_closest_name() -> None:
    with pytest.raises(StageError, match=r"train.class_weights: there is no class 'emus'; did you mean 'emu'\?"):
        class_weights(BalanceParams(class_weights={"emus": 3.0}), CLASSES, COUNTS)


@pytest.mark.parametrize("value", ["balancd", "{cat: 0}", "{cat: much}", "3", "[1, 2]"])
def test_any_other_value_is_an_error_with_the_line(tmp_path: Path, value: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(f"train:\n  class_weights: {value}\n")
    with pytest.raises(
        StageError, match=r"params.yaml:2: train.class_weights: expected none, balanced, or a weight"
    ):
        load(path, "train", BalanceParams)


def test_small_and_unequal_classes_are_reported() -> None:
    assert remarks(BalanceParams(class_weights="none"), CLASSES, COUNTS) == [
        "training images per class: cat 60, dog 30, emu 6",
        "'cat' has more than 2 times as many training images as 'emu'; train.class_weights: balanced gives all "
        "classes the same influence",
        "warning: classes with fewer than 10 training images: emu 6",
    ]


def test_a_thousand_classes_are_summarized_in_short_lines() -> None:
    names = [f"class_{number}" for number in range(1000)]
    lines = remarks(BalanceParams(class_weights="balanced"), names, list(range(1, 1001)))
    assert lines[0] == "training images per class: 1,000 classes, from class_0 with 1 to class_999 with 1,000"
    assert max(map(len, lines)) < 300


def weighted(
    folder: Path, *callbacks: Any, vector: Any = (3.0, 1.0, 0.25), dropout: float = 0.3, **changes: Any
) -> list[Any]:
    model = build(dropout)
    params = TrainParams(**{**PLAIN, **changes})
    vector = None if vector is None else np.array(vector, np.float32)
    trainer = Trainer(
        model, params, split(slice(IMAGES)), split(slice(300)), callbacks, alone(), class_weights=vector
    )
    trainer.run(Checkpoints(folder, "k" * 64))
    return weights(model)


@pytest.mark.usefixtures("started")
def test_weights_of_1_give_the_same_bytes_as_no_weights(tmp_path: Path) -> None:
    model = build()
    train(model, tmp_path / "a", epochs=1)
    for one, other in zip(weights(model), weighted(tmp_path / "b", vector=(1, 1, 1), epochs=1), strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.usefixtures("started")
def test_twice_the_weights_double_the_loss_and_so_an_sgd_step(tmp_path: Path) -> None:
    sgd: dict[str, Any] = {"optimizer": "sgd", "epochs": 1, "batch_size": IMAGES}
    start = weights(build())
    single = weighted(tmp_path / "a", vector=None, **sgd)
    double = weighted(tmp_path / "b", vector=(2, 2, 2), **sgd)
    for before, one, two in zip(start, single, double, strict=True):
        if before.dtype == np.float32:
            np.testing.assert_allclose(two - before, 2 * (one - before), atol=1e-6)


@pytest.mark.usefixtures("started")
def test_a_resumed_run_with_class_weights_gives_the_same_bytes(tmp_path: Path) -> None:
    expected = weighted(tmp_path / "whole", epochs=2)
    with pytest.raises(KeyboardInterrupt):
        weighted(tmp_path / "resumed", Interrupt("on_train_batch_end", 4), epochs=2)
    for one, other in zip(expected, weighted(tmp_path / "resumed", epochs=2), strict=True):
        assert one.tobytes() == other.tobytes()


def test_the_vector_has_the_order_of_the_classes() -> None:
    vector = as_vector({"cat": 0.5, "dog": 2.0})
    assert vector is not None and vector.dtype == np.float32 and vector.tolist() == [0.5, 2.0]


@pytest.mark.usefixtures("started")
def test_a_step_is_that_of_keras_with_the_same_class_weights(tmp_path: Path) -> None:
    model, images = build(dropout=0), split(slice(IMAGES))
    model.compile(keras.optimizers.SGD(0.01), "categorical_crossentropy")
    model.train_on_batch(images.images, images.labels, class_weight={0: 3.0, 1: 1.0, 2: 0.25})
    ours = weighted(tmp_path, dropout=0.0, optimizer="sgd", epochs=1, batch_size=IMAGES)
    for one, other in zip(ours, model.get_weights(), strict=False):
        np.testing.assert_allclose(one, other, atol=1e-6)
