"""A final fit, `preprocess.validation_fraction: 0`, end to end on the digits: stages, DVC, and the tools."""

import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from stages.common.figures import parse_figures
from tests.project import ROOT, Project

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def final(first_run: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose last commit is a final fit, and the commit before it a run with validation images."""
    folder = first_run.copy(tmp_path_factory.mktemp("final") / "project").folder
    project = Project(folder, {**first_run.environment, "PYTHONPATH": str(ROOT)})
    project.choose("preprocess.validation_fraction", 0)
    project.choose("evaluate.abstain", 0)
    assert project.repro() == ["preprocess", "train", "evaluate"]
    project.commit("A final fit")
    return project


@pytest.fixture
def project(final: Project, tmp_path: Path) -> Project:
    return final.copy(tmp_path / "project")


def tool(project: Project, *arguments: str) -> str:
    return project.run(sys.executable, "-m", *arguments).stdout


def test_no_output_has_validation_figures(final: Project) -> None:
    metrics = final.folder / "metrics"
    assert (metrics / "history.csv").read_text().splitlines()[0] == "epoch,loss,accuracy"
    assert not any("val_" in name for name in parse_figures((metrics / "train.csv").read_bytes(), "train.csv"))
    assert json.loads((metrics / "train.json").read_bytes()) == {}
    evaluation = parse_figures((metrics / "evaluation.csv").read_bytes(), "evaluation.csv")
    assert not any(re.search("temperature|calibrated|abstain", name) for name in evaluation)
    confidence = json.loads((final.folder / "models/confidence.json").read_bytes())
    assert confidence == {
        "model_sha256": evaluation["model_sha256"],
        "schema_version": 1,
        "temperature": 1.0,
        "threshold": None,
        "validation_sha256": None,
    }


def test_dvc_shows_the_metrics_and_the_other_plots(final: Project, tmp_path: Path) -> None:
    shown = final.json("dvc", "metrics", "show", "--json")
    assert shown[""]["data"]["metrics/evaluation.json"]["data"]["accuracy"] > 0
    plots = final.json("dvc", "plots", "diff", "--json", "-o", str(tmp_path), "HEAD~1", "HEAD")["data"]
    assert plots["metrics/confusion.csv"]


@pytest.mark.parametrize("key", ["train.early_stopping", "evaluate.abstain"])
def test_what_needs_validation_is_refused_by_the_first_stage(first_run: Project, tmp_path: Path, key: str) -> None:
    project = first_run.copy(tmp_path / "project")
    project.choose("evaluate.abstain", 0)
    project.choose("preprocess.validation_fraction", 0)
    project.choose(key, 0.5 if key == "evaluate.abstain" else 2)
    failed = project.run("dvc", "repro", check=False)
    assert re.findall(r"Running stage '(\w+)'", failed.stdout) == ["preprocess"]
    assert failed.returncode
    expected = f"preprocess: params.yaml: {key} needs validation images, but preprocess.validation_fraction is 0; "
    assert expected + f"set {key}: 0, or a fraction above 0\n" in failed.stderr


@pytest.mark.parametrize(
    ("key", "value", "stage"),
    [
        ("train.early_stopping", 2, "train"),
        ("evaluate.temperature", "validation", "evaluate"),
        ("evaluate.abstain", 0.1, "evaluate"),
    ],
)
def test_a_key_that_is_set_later_is_refused_by_its_stage(
    project: Project, key: str, value: object, stage: str
) -> None:
    project.choose(key, value)
    failed = project.run("dvc", "repro", check=False)
    assert re.findall(r"Running stage '(\w+)'", failed.stdout) == [stage]
    assert f"{stage}: params.yaml: {key} needs validation images" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_the_report_draws_the_training_curves_and_leaves_out_validation(final: Project) -> None:
    tool(final, "tools.report")
    page = (final.folder / "report/index.html").read_text(encoding="utf-8")
    assert "A final fit on all training images (preprocess.validation_fraction: 0)" in page
    assert "on the training images." in page
    assert "Validation accuracy</span>" not in page
    assert "fitted on validation" not in page


def test_compare_shows_what_one_of_the_runs_lacks(final: Project, tmp_path: Path) -> None:
    found = json.loads(tool(final, "tools.compare", "HEAD~1", "HEAD", "--json"))
    assert found["metrics"]["train.val_accuracy"]["b"] is None
    assert found["metrics"]["evaluate.accuracy"]["difference"] is not None
    gate = tmp_path / "gate.yaml"
    gate.write_text("train: {val_accuracy: {floor: 0.1}}\nevaluate: {accuracy: {floor: 0.01}}\n")
    command = ("tools.compare", "HEAD~1", "HEAD", "--gate", str(gate))
    undecided = final.run(sys.executable, "-m", *command, check=False)
    assert undecided.returncode == 2
    assert re.search(r"train\.val_accuracy +any +missing in B +undecided", undecided.stdout)


def test_verify_rebuilds_it(final: Project) -> None:
    assert json.loads(tool(final, "tools.verify", "--json"))["result"] == "identical"


def test_the_audit_has_the_test_labels_only(final: Project) -> None:
    lines = tool(final, "tools.audit", "labels")
    assert "There are no validation images to audit (preprocess.validation_fraction: 0)\n" in lines
    found = json.loads((final.folder / "audit/labels.json").read_bytes())
    assert "audited_train" not in found
    assert found["audited_test"] == 360


def test_a_picture_is_predicted(final: Project, tmp_path: Path) -> None:
    Image.new("L", (8, 8), 90).save(tmp_path / "gray.png")
    rows = tool(final, "tools.predict", "--csv", "--exact", str(tmp_path / "gray.png")).splitlines()
    assert [row.rpartition(",")[2] for row in rows] == ["certain", "true"]


def test_figures_say_why_there_are_no_curves(final: Project, tmp_path: Path) -> None:
    failed = final.run(sys.executable, "-m", "tools.figures", str(tmp_path), check=False)
    expected = (
        "figures: there is nothing to draw for Accuracy; run: make repro, with preprocess.validation_fraction"
    )
    assert failed.stderr.splitlines()[-1].startswith(expected)
