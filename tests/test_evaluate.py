"""stages/evaluate.py as a process: figures that hold together, and no model but the one trained here."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stages.splits import read
from tests.project import Project, make_project

COMMAND = (sys.executable, "-m", "stages.evaluate")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project after a whole run."""
    project = make_project(tmp_path_factory.mktemp("evaluated") / "project", tmp_path_factory.mktemp("home"))
    project.choose("train.epochs", 3)
    project.repro()
    return project


@pytest.fixture
def project(evaluated: Project, tmp_path: Path) -> Project:
    return evaluated.copy(tmp_path / "project")


def figures(project: Project) -> dict[str, float | str]:
    loaded: dict[str, float | str] = json.loads((project.folder / "metrics/evaluation.json").read_text("utf-8"))
    return loaded


@pytest.mark.usefixtures("started")
def test_the_predictions_are_those_that_keras_makes(evaluated: Project) -> None:
    import keras

    model = keras.saving.load_model(evaluated.folder / "models/model.keras")
    expected = model.predict(np.array(read(evaluated.folder / "data/processed/test.npz").images), verbose=0)
    table = pd.read_csv(evaluated.folder / "data/predictions.csv")
    np.testing.assert_allclose(table.filter(like="probability_").to_numpy(), expected, atol=1e-5)


def test_the_tables_and_the_figures_agree(evaluated: Project) -> None:
    table = pd.read_csv(evaluated.folder / "data/predictions.csv", dtype={"label": str, "prediction": str})
    counts = pd.read_csv(evaluated.folder / "metrics/confusion.csv", dtype={"label": str, "predicted": str})
    classes = pd.read_csv(evaluated.folder / "metrics/per_class.csv")
    accuracy = figures(evaluated)["accuracy"]
    assert accuracy == (table["label"] == table["prediction"]).mean()
    assert accuracy == counts.loc[counts["label"] == counts["predicted"], "count"].sum() / len(table)
    assert figures(evaluated)["f1_macro"] == pytest.approx(classes["f1"].mean())
    assert figures(evaluated)["test_images"] == len(table) == counts["count"].sum() == classes["support"].sum()


def test_the_figures_name_the_dataset_and_the_model(evaluated: Project) -> None:
    trained = json.loads((evaluated.folder / "metrics/train.json").read_text("utf-8"))
    assert figures(evaluated)["dataset"] == "digits"
    assert figures(evaluated)["model_sha256"] == trained["model_sha256"]


def test_the_history_has_a_row_an_epoch_and_ends_in_the_train_figures(evaluated: Project) -> None:
    history = pd.read_csv(evaluated.folder / "metrics/history.csv")
    trained = json.loads((evaluated.folder / "metrics/train.json").read_text("utf-8"))
    assert history["epoch"].tolist() == [1, 2, 3]
    assert {name: trained[name] for name in history.columns} == history.iloc[-1].to_dict()


def test_a_model_from_elsewhere_is_refused(project: Project) -> None:
    path = project.folder / "models/model.keras"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes() + b"\0")
    failed = project.run(*COMMAND, check=False)
    assert failed.returncode == 1
    assert "not the model that the stage train wrote" in failed.stderr
    assert len(failed.stderr.splitlines()) == 1


@pytest.mark.parametrize("content", ["", "[]", "{}", "3"])
def test_a_damaged_metrics_file_is_one_line_with_the_remedy(project: Project, content: str) -> None:
    (project.folder / "metrics/train.json").write_text(content, encoding="utf-8")
    failed = project.run(*COMMAND, check=False)
    assert failed.returncode == 1
    assert failed.stderr == (
        "evaluate: metrics/train.json: not what the stage train writes; run: dvc repro --force train\n"
    )


@pytest.mark.parametrize("name", ["metrics/train.json", "models/model.keras"])
def test_a_missing_input_is_one_line_with_the_remedy(project: Project, name: str) -> None:
    (project.folder / name).unlink()
    failed = project.run(*COMMAND, check=False)
    assert (failed.returncode, failed.stderr) == (1, f"evaluate: {name}: no such file; run: dvc repro\n")


def test_more_classes_than_there_are_cannot_be_the_top_ones(project: Project) -> None:
    project.choose("evaluate.top_k", 11)
    failed = project.run(*COMMAND, check=False)
    assert failed.returncode == 1
    assert failed.stderr.startswith("evaluate: evaluate.top_k: 11 of 10 classes; use less")


def test_a_second_evaluation_writes_the_same_bytes(project: Project) -> None:
    names = ["metrics/evaluation.json", "metrics/per_class.csv", "metrics/confusion.csv", "data/predictions.csv"]
    before = [(project.folder / name).read_bytes() for name in names]
    for name in names:
        (project.folder / name).unlink()
    project.run(*COMMAND)
    assert [(project.folder / name).read_bytes() for name in names] == before
