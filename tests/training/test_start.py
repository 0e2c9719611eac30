"""stages/training/start.py: the weights of an earlier model, checked, and a run that goes on from its end."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest

from stages.common.failure import StageError
from stages.common.params import load
from stages.common.pictures import Decoding
from stages.common.records import DatasetRecord, ModelRecord, SplitRecord, Statistics
from stages.model.archive import read_state, save_model
from stages.model.classifier import Classifier
from stages.training.checkpoints import Checkpoints
from stages.training.cluster import alone
from stages.training.loop import Trainer
from stages.training.params import TrainParams
from stages.training.results import history_table
from stages.training.start import Earlier, take_weights
from tests.model.test_classifier import png
from tests.project import Project
from tests.training.test_loop import IMAGES, PLAIN, Interrupt, build, split, weights

pytestmark = pytest.mark.usefixtures("started")

DATASET = DatasetRecord(name="dots", edition="made here", sha256="0" * 64)
SPLIT = SplitRecord(images=1, shape=[6, 6, 2], class_counts=[1, 0, 0], official=0, sha256="0" * 64)
ABC = ["a", "b", "c"]


def statistics(classes: list[str] = ABC, scaling: str = "unit") -> Statistics:
    return Statistics(
        dataset=DATASET, classes=classes, scaling=scaling, mean=[0.0] * 2, std=[1.0] * 2, splits={"train": SPLIT}
    )


def earlier(model: keras.Model, classes: list[str] = ABC) -> Earlier:
    record = ModelRecord(
        sha256="1" * 64,
        dataset=DATASET,
        classes=classes,
        decoding=Decoding(height=6, width=6, channels=2),
        scaling="unit",
        mean=[0.0] * 2,
        std=[1.0] * 2,
        epoch=4,
        parameters=1,
    )
    return Earlier({layer.name: layer.get_weights() for layer in model.layers if layer.weights}, record, b"")


def trainer(model: keras.Model, *callbacks: keras.callbacks.Callback, first: int = 0, **changes: Any) -> Trainer:
    params = TrainParams(**{**PLAIN, **changes})
    return Trainer(model, params, split(slice(IMAGES)), split(slice(300)), callbacks, alone(), first=first)


def changed(model: keras.Model) -> keras.Model:
    model.set_weights([weight + 1 for weight in model.get_weights()])
    return model


def test_all_weights_of_the_earlier_model_are_taken() -> None:
    model, other = build(), changed(build())
    assert take_weights(model, earlier(other), statistics(), continued=True).epochs == 4
    for found, wanted in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_the_last_layer_is_replaced_when_the_classes_differ(capsys: pytest.CaptureFixture[str]) -> None:
    model, other, initial = build(), changed(build()), build()
    origin = take_weights(model, earlier(other, ["a", "b", "d"]), statistics(), continued=False)
    assert origin.epochs == 0
    assert "the classes differ: probabilities starts with random weights" in capsys.readouterr().err
    for layer in model.layers:
        source = initial if layer.name == "probabilities" else other
        for found, wanted in zip(layer.get_weights(), source.get_layer(layer.name).get_weights(), strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_what_does_not_fit_is_refused() -> None:
    other = earlier(build())
    with pytest.raises(StageError, match=r"^preprocess\.scaling: standardize, but .* trained with unit"):
        take_weights(build(), other, statistics(scaling="standardize"), continued=False)
    with pytest.raises(StageError, match=r"^train\.continue: the earlier model has other classes"):
        take_weights(build(), other, statistics(["a", "b"]), continued=True)
    other.weights["dense1"] = [np.zeros((5, 8)), np.zeros(8)]
    with pytest.raises(
        StageError, match=r"^train\.start_from: layer dense1 has the shapes 36 x 8, 8, .* model 5 x 8, 8; use"
    ):
        take_weights(build(), other, statistics(), continued=False)
    del other.weights["dense1"]
    with pytest.raises(StageError, match="but in the earlier model there is none"):
        take_weights(build(), other, statistics(), continued=False)


@pytest.mark.parametrize("optimizer", [{}, {"optimizer": "sgd", "momentum": 0.9}])
def test_two_epochs_and_a_third_with_the_state_kept_are_three_epochs(
    tmp_path: Path, optimizer: dict[str, Any]
) -> None:
    whole = build()
    rows, _ = trainer(whole, epochs=3, **optimizer).run(Checkpoints(tmp_path / "a", "a" * 64))
    begun = build()
    first = trainer(begun, epochs=2, **optimizer)
    first.run(Checkpoints(tmp_path / "b", "b" * 64))
    save_model(begun, tmp_path / "model.keras", first.state())

    model = build()
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False, safe_mode=True)
    take_weights(model, earlier(loaded), statistics(), continued=True)
    second = trainer(model, first=2, epochs=1, **optimizer)
    second.go_on_from(read_state(tmp_path / "model.keras"))
    history, saved = second.run(Checkpoints(tmp_path / "c", "c" * 64))
    assert history == rows[2:]
    assert saved == 0
    assert history_table(history, first=2)["epoch"].tolist() == [3]
    for found, wanted in zip(weights(model), weights(whole), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_an_interrupted_continued_run_ends_as_one_that_was_not(tmp_path: Path) -> None:
    state = trainer(changed(build())).state()

    def continued(folder: Path, *callbacks: keras.callbacks.Callback) -> tuple[Any, list[Any]]:
        model = build()
        run = trainer(model, *callbacks, first=5, epochs=2)
        run.go_on_from(state)
        return run.run(Checkpoints(folder, "k" * 64)), weights(model)

    rows, expected = continued(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        continued(tmp_path / "b", Interrupt("on_train_batch_end", 5))
    found_rows, found = continued(tmp_path / "b")
    assert found_rows == rows
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_state_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    state = trainer(build()).state()
    with pytest.raises(StageError, match=r"^train\.continue: .* is that of another optimizer; use the same"):
        trainer(build(), optimizer="sgd", momentum=0.9).go_on_from(state)


def test_a_continued_run_stops_early_by_its_own_epochs(tmp_path: Path) -> None:
    training = trainer(build(), first=7, epochs=4, early_stopping=1, learning_rate=3.0)
    rows, saved = training.run(Checkpoints(tmp_path, "k" * 64))
    assert len(rows) < 4
    assert saved == min(range(len(rows)), key=lambda row: rows[row]["val_loss"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start_sha256": "abc"}, r"train\.start_sha256: it should be a SHA-256"),
        ({"continue": True}, r"continue needs the model to go on from; set start_from"),
        ({"continues": True}, r"train\.continues: unknown key; did you mean 'continue'\?"),
    ],
)
def test_mistakes_in_the_keys_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(f"train: { ({**PLAIN, **changes}) }".replace("True", "true").replace("False", "false"))
    with pytest.raises(StageError, match=message):
        load(path, "train", TrainParams)


@pytest.mark.slow
def test_a_committed_run_is_continued_by_revision_and_its_card_says_so(first_run: Project, tmp_path: Path) -> None:
    project = first_run.copy(tmp_path / "project")
    project.choose("train.start_from", "HEAD")
    failed = project.run("dvc", "repro", check=False)
    pin = Classifier(first_run.folder / "models/model.keras").record.sha256
    assert f"train: train.start_sha256: the model of HEAD: not set; it is {pin}; set the key" in failed.stderr
    project.choose("train.start_sha256", pin)
    project.choose("train.continue", True)
    project.choose("train.epochs", 2)
    assert project.repro() == ["train", "evaluate"]
    assert pd.read_csv(project.folder / "metrics/history.csv")["epoch"].tolist() == [4, 5]
    card = (project.folder / "models/MODEL_CARD.md").read_text(encoding="utf-8")
    assert "It continues the training of an earlier model after epoch 3." in card
    assert f"| the weights that training began with | {pin} |" in card
    classifier = Classifier(project.folder / "models/model.keras")
    assert classifier.record.epoch == 5
    classifier([png(np.zeros((8, 8, 1), np.uint8))])

    project.choose("train.start_from", "models/model.keras")
    failed = project.run("dvc", "repro", check=False)
    assert "no such file; DVC deletes this pipeline's own model before training" in failed.stderr
    project.choose("train.start_from", str(first_run.folder / "models/model.keras"))
    project.choose("train.start_sha256", "0" * 64)
    failed = project.run("dvc", "repro", check=False)
    assert f"expected {'0' * 64}, found {pin}" in failed.stderr
