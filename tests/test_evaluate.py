"""stages/evaluate.py: figures that hold together, and no model but the one trained here."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from stages.common.figures import parse_figures
from stages.common.splits import read
from tests.project import Project, RunHere

COMMAND = (sys.executable, "-m", "stages.evaluate")


@pytest.fixture
def project(first_run: Project, tmp_path: Path) -> Project:
    return first_run.copy(tmp_path / "project")


def figures(project: Project) -> dict[str, Any]:
    return parse_figures((project.folder / "metrics/evaluation.csv").read_bytes(), "evaluation.csv")


def trained(project: Project) -> dict[str, Any]:
    return parse_figures((project.folder / "metrics/train.csv").read_bytes(), "train.csv")


def predict(project: Project, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """What Keras itself says of the images."""
    import keras

    model = keras.saving.load_model(project.folder / "models/model.keras")
    probabilities: NDArray[np.float32] = model.predict(images, verbose=0)
    return probabilities


@pytest.mark.usefixtures("started")
def test_the_predictions_are_those_that_keras_makes(first_run: Project) -> None:
    expected = predict(first_run, np.array(read(first_run.folder / "data/processed/test.npz").images))
    table = pd.read_csv(first_run.folder / "data/predictions.csv")
    np.testing.assert_allclose(table.filter(like="probability_").to_numpy(), expected, atol=1e-5)


def test_the_tables_and_the_figures_agree(first_run: Project) -> None:
    table = pd.read_csv(first_run.folder / "data/predictions.csv", dtype={"label": str, "prediction": str})
    counts = pd.read_csv(first_run.folder / "metrics/confusion.csv", dtype={"label": str, "predicted": str})
    classes = pd.read_csv(first_run.folder / "metrics/per_class.csv")
    accuracy = figures(first_run)["accuracy"]
    assert accuracy == (table["label"] == table["prediction"]).mean()
    assert accuracy == counts.loc[counts["label"] == counts["predicted"], "count"].sum() / len(table)
    assert figures(first_run)["f1_macro"] == pytest.approx(classes["f1"].mean())
    assert figures(first_run)["test_images"] == len(table) == counts["count"].sum() == classes["support"].sum()


def test_the_figures_name_the_dataset_and_the_model(first_run: Project) -> None:
    record = json.loads((first_run.folder / "models/model.json").read_bytes())
    assert figures(first_run)["dataset"] == trained(first_run)["dataset"] == record["dataset"]["name"] == "digits"
    assert figures(first_run)["model_sha256"] == trained(first_run)["model_sha256"] == record["sha256"]


def test_the_metrics_are_a_few_of_the_figures(first_run: Project) -> None:
    for name, found in (("evaluation", figures(first_run)), ("train", trained(first_run))):
        metrics = json.loads((first_run.folder / f"metrics/{name}.json").read_bytes())
        assert len(metrics) == 2
        assert metrics.items() <= found.items()


def test_the_history_has_a_row_an_epoch_and_ends_in_the_train_figures(first_run: Project) -> None:
    history = pd.read_csv(first_run.folder / "metrics/history.csv")
    assert history["epoch"].tolist() == [1, 2, 3]
    assert {name: trained(first_run)[name] for name in history.columns} == history.iloc[-1].to_dict()


def test_a_model_from_elsewhere_is_refused(project: Project) -> None:
    path = project.folder / "models/model.keras"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes() + b"\0")
    failed = project.run(*COMMAND, check=False)
    assert failed.returncode == 1
    assert "not the model that the stage train wrote" in failed.stderr
    assert len(failed.stderr.splitlines()) == 1


@pytest.mark.parametrize("content", ["", "[]", "{}", "3"])
def test_a_damaged_record_of_the_model_is_one_line_with_the_remedy(
    project: Project, run_here: RunHere, content: str
) -> None:
    path = project.folder / "models/model.json"
    path.chmod(0o644)
    path.write_text(content, encoding="utf-8")
    failed = run_here(project, "evaluate")
    assert failed.returncode == 1
    assert failed.stderr.startswith("evaluate: models/model.json: ")
    assert "dvc repro" in failed.stderr
    assert len(failed.stderr.splitlines()) == 1


def test_a_model_of_other_data_is_refused(project: Project, run_here: RunHere) -> None:
    path = project.folder / "models/model.json"
    path.chmod(0o644)
    record = json.loads(path.read_bytes())
    path.write_text(json.dumps({**record, "std": [2.0]}), encoding="utf-8")
    failed = run_here(project, "evaluate")
    expected = "evaluate: the model was trained on other data (std differs); run: dvc repro\n"
    assert (failed.returncode, failed.stderr) == (1, expected)


@pytest.mark.parametrize("name", ["models/model.json", "models/model.keras"])
def test_a_missing_input_is_one_line_with_the_remedy(project: Project, run_here: RunHere, name: str) -> None:
    (project.folder / name).unlink()
    failed = run_here(project, "evaluate")
    assert (failed.returncode, failed.stderr) == (1, f"evaluate: {name}: no such file; run: dvc repro\n")


@pytest.mark.parametrize("k", [10, 11])
def test_every_image_is_a_hit_among_as_many_classes_as_there_are(
    project: Project, run_here: RunHere, k: int
) -> None:
    project.choose("evaluate.top_k", k)
    done = run_here(project, "evaluate")
    assert done.returncode == 0
    assert (
        f"evaluate: evaluate.top_k is {k}, but there are only 10 classes: every image counts as correct\n"
        in done.stderr
    )
    assert figures(project)[f"top_{k}_accuracy"] == 1


def test_views_add_figures_and_change_none(project: Project, run_here: RunHere) -> None:
    plain = figures(project)
    project.choose("evaluate.views", 6)
    assert run_here(project, "evaluate").returncode == 0
    found = figures(project)
    two, six = (
        {name.removeprefix(prefix): found.pop(name) for name in list(found) if name.startswith(prefix)}
        for prefix in ("views_2.", "views_6.")
    )
    assert found == plain
    images = np.array(read(project.folder / "data/processed/test.npz").images)
    labels = read(project.folder / "data/processed/test.npz").labels.argmax(axis=1)
    forward, back = (np.roll(images, step, axis=(1, 2)) for step in (1, -1))
    forward[:, 0], back[:, -1] = forward[:, 2], back[:, -3]
    forward[:, :, 0], back[:, :, -1] = forward[:, :, 2], back[:, :, -3]

    def mirrored(images: NDArray[np.float32]) -> Any:
        return (predict(project, images) + predict(project, images[:, :, ::-1])) / 2

    mean = mirrored(images)
    for figure, expected in (two, mean), (six, mean / 2 + mirrored(forward) / 4 + mirrored(back) / 4):
        assert figure["accuracy"] == (expected.argmax(axis=1) == labels).mean()
        assert figure["loss"] == pytest.approx(-np.log(expected[np.arange(len(labels)), labels]).mean(), rel=1e-4)
    assert len({plain["loss"], two["loss"], six["loss"]}) == 3


def test_calibration_lowers_the_loss_on_validation_and_only_the_probabilities_change(
    project: Project, run_here: RunHere
) -> None:
    plain = figures(project)
    project.choose("evaluate.temperature", "validation")
    assert run_here(project, "evaluate").returncode == 0
    both = figures(project)
    assert (both["accuracy"], both["temperature"]) == (plain["accuracy"], plain["temperature"])
    assert (plain["loss"], both["loss"]) == (plain["uncalibrated.loss"], plain["calibrated.loss"])
    record = json.loads((project.folder / "models/confidence.json").read_bytes())
    assert (record["model_sha256"], record["temperature"]) == (both["model_sha256"], both["temperature"])


def test_the_threshold_answers_the_images_that_the_figures_count(first_run: Project) -> None:
    table = pd.read_csv(first_run.folder / "data/predictions.csv", dtype={"label": str, "prediction": str})
    record = json.loads((first_run.folder / "models/confidence.json").read_bytes())
    answered = table.filter(like="probability_").max(axis=1) >= record["threshold"]
    assert figures(first_run)["abstain.coverage"] == pytest.approx(answered.mean())
    right = (table["label"] == table["prediction"])[answered]
    assert figures(first_run)["abstain.accuracy"] == pytest.approx(right.mean())


def test_the_bins_of_the_reliability_table_hold_all_test_images(first_run: Project) -> None:
    bins = pd.read_csv(first_run.folder / "metrics/reliability.csv")
    assert list(bins.columns) == ["confidence", "accuracy", "images"]
    assert bins["images"].sum() == figures(first_run)["test_images"]
    assert (bins["images"] * bins["accuracy"]).sum() == pytest.approx(360 * figures(first_run)["accuracy"])
    assert bins["confidence"].is_monotonic_increasing


def test_the_model_card_is_of_this_evaluation(first_run: Project) -> None:
    card = (first_run.folder / "models/MODEL_CARD.md").read_text("utf-8")
    assert f"| accuracy | {figures(first_run)['accuracy']:.4f} |" in card
    assert figures(first_run)["model_sha256"] in card


def test_a_second_evaluation_writes_the_same_bytes(project: Project) -> None:
    names = [
        "metrics/evaluation.csv",
        "metrics/evaluation.json",
        "metrics/per_class.csv",
        "metrics/confusion.csv",
        "metrics/reliability.csv",
        "metrics/risk_coverage.csv",
        "models/confidence.json",
        "data/predictions.csv",
        "models/MODEL_CARD.md",
    ]
    before = [(project.folder / name).read_bytes() for name in names]
    for name in names:
        (project.folder / name).unlink()
    project.run(*COMMAND)
    assert [(project.folder / name).read_bytes() for name in names] == before
