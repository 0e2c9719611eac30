"""dvc.yaml, with real DVC and git: what reruns after a change, and what DVC's commands print."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.project import ROOT, STAGES, Project
from tools.recipe import with_recipe

PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


@pytest.fixture(scope="module")
def baseline(first_run: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with a committed first run."""
    return first_run.copy(tmp_path_factory.mktemp("baseline") / "project")


@pytest.fixture(scope="module")
def changed(baseline: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The same project with a second commit, a run with another learning rate."""
    project = baseline.copy(tmp_path_factory.mktemp("changed") / "project")
    project.choose("train.learning_rate", 0.01)
    assert project.repro() == ["train", "evaluate"]
    project.commit("A higher learning rate")
    return project


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("preprocess.scaling", "standardize", ["preprocess", "train", "evaluate"]),
        # With the split in file order the seed changes nothing, and DVC sees that the outputs are the same.
        ("preprocess.seed", 1, ["preprocess"]),
        ("train.checkpoint_minutes", 7, ["train"]),  # the model comes out the same, so evaluate has nothing to do
    ],
)
def test_the_stages_after_a_changed_one_run_if_its_outputs_changed(
    baseline: Project, tmp_path: Path, key: str, value: Any, expected: list[str]
) -> None:
    project = baseline.copy(tmp_path / "project")
    project.choose(key, value)
    assert project.repro() == expected


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("dataset.cifar10.sha256", "0" * 64, ["download"]),
        ("dataset.folder.pixels", 16, ["download"]),
        ("preprocess.scaling", "standardize", ["preprocess"]),
        ("model.dropout", 0.4, ["train"]),
        ("runtime.cpu_isa", "avx2", ["train", "evaluate"]),
        ("evaluate.top_k", 2, ["evaluate"]),
        ("evaluate.temperature", "validation", ["evaluate"]),
    ],
)
def test_a_changed_key_affects_the_stages_that_read_it(
    baseline: Project, tmp_path: Path, key: str, value: Any, expected: list[str]
) -> None:
    project = baseline.copy(tmp_path / "project")
    project.choose(key, value)
    assert project.affected() == expected


def test_another_recipe_affects_train_and_evaluate_only(baseline: Project, tmp_path: Path) -> None:
    project = baseline.copy(tmp_path / "project")
    path = project.folder / "params.yaml"
    fast = (ROOT / "recipes" / "fast.yaml").read_text(encoding="utf-8")
    path.write_text(with_recipe(path.read_text(encoding="utf-8"), fast), encoding="utf-8")
    assert project.affected() == ["train", "evaluate"]


def test_no_key_has_a_name_that_the_run_cache_ignores() -> None:
    """DVC drops `size` and `nfiles` at any depth, in dvc/stage/cache.py, so a changed value would go unnoticed."""

    def names(value: Any) -> set[str]:
        below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        return set(value if isinstance(value, dict) else ()).union(*map(names, below))

    found = names(yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8")))
    assert "pixels" in found
    assert found.isdisjoint({"size", "nfiles"})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("stages/datasets/digits.py", ["download"]),
        ("stages/evaluation/scoring.py", ["evaluate"]),
        ("stages/training/loop.py", ["train"]),
        ("stages/common/splits.py", STAGES),
        ("params.yaml", []),  # a comment
    ],
)
def test_a_changed_file_affects_the_stages_that_list_its_room(
    baseline: Project, tmp_path: Path, name: str, expected: list[str]
) -> None:
    project = baseline.copy(tmp_path / "project")
    project.touch(name)
    assert project.affected() == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("stages/datasets/faces.py", ["download"]),
        ("stages/evaluation/gain.py", ["evaluate"]),
        ("stages/training/deeper/still.py", ["train"]),
    ],
)
def test_a_new_file_in_a_room_affects_its_stages_without_an_edit_of_dvc_yaml(
    baseline: Project, tmp_path: Path, name: str, expected: list[str]
) -> None:
    project = baseline.copy(tmp_path / "project")
    path = project.folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("", encoding="utf-8")
    assert project.affected() == expected


def test_files_that_python_editors_and_systems_leave_in_a_room_affect_nothing(
    baseline: Project, tmp_path: Path
) -> None:
    project = baseline.copy(tmp_path / "project")
    for name in (
        "__pycache__/loop.cpython-311.pyc",
        "loop.py~",
        "#loop.py#",
        ".#loop.py",
        ".loop.py.swp",
        ".DS_Store",
        "loop.py.orig",
    ):
        for folder in ("common", "datasets", "model", "training", "evaluation"):
            path = project.folder / "stages" / folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"left behind")
    assert project.affected() == []


def test_a_second_repro_runs_nothing(baseline: Project) -> None:
    assert baseline.repro() == []


def test_a_run_changes_only_files_that_git_tracks(baseline: Project) -> None:
    assert baseline.run("git", "status", "--porcelain").stdout == ""


def test_going_back_restores_from_the_run_cache_without_training(changed: Project, tmp_path: Path) -> None:
    project = changed.copy(tmp_path / "project")
    project.choose("train.learning_rate", 0.001)
    (project.folder / "models" / "model.keras").unlink()
    assert project.repro() == []
    before = project.run("git", "show", "HEAD~1:metrics/evaluation.json").stdout
    assert (project.folder / "metrics" / "evaluation.json").read_text(encoding="utf-8") == before


def test_the_record_of_the_machine_names_its_model(baseline: Project) -> None:
    model = json.loads((baseline.folder / "models/model.json").read_bytes())["sha256"]
    for stage in ("train", "evaluate"):
        record = json.loads((baseline.folder / "environment" / f"{stage}.json").read_bytes())
        assert record["model_sha256"] == model


def test_metrics_diff_shows_the_effect_of_a_change(changed: Project) -> None:
    old, new = (
        json.loads(changed.run("git", "show", f"{revision}:metrics/evaluation.json").stdout)
        for revision in ("HEAD~1", "HEAD")
    )
    shown = changed.json("dvc", "metrics", "diff", "HEAD~1", "HEAD", "--json")["metrics/evaluation.json"]
    assert old["accuracy"] != new["accuracy"]
    assert shown["accuracy"] == {
        "old": old["accuracy"],
        "new": new["accuracy"],
        "diff": pytest.approx(new["accuracy"] - old["accuracy"]),
    }


def test_params_diff_names_only_the_changed_key(changed: Project) -> None:
    shown = changed.json("dvc", "params", "diff", "HEAD~1", "HEAD", "--json")
    assert shown == {"params.yaml": {"train.learning_rate": {"old": 0.001, "new": 0.01, "diff": 0.01 - 0.001}}}


@pytest.mark.parametrize("command", [("show",), ("diff", "HEAD~1"), ("diff", "HEAD~1", "--md")])
def test_metrics_fit_100_columns(changed: Project, command: tuple[str, ...]) -> None:
    shown = changed.run("dvc", "metrics", *command).stdout
    assert "metrics/evaluation.json" in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_the_committed_metrics_fit_100_columns_with_the_official_accuracy() -> None:
    shown = subprocess.run(["dvc", "metrics", "show"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "official_accuracy" in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_metrics_show_has_every_figure_of_both_files(changed: Project) -> None:
    shown = changed.json("dvc", "metrics", "show", "--json")[""]["data"]
    for name in ("metrics/train.json", "metrics/evaluation.json"):
        assert shown[name]["data"] == json.loads((changed.folder / name).read_text(encoding="utf-8"))


def test_plots_diff_has_every_chart_of_both_revisions(changed: Project) -> None:
    shown = changed.json("dvc", "plots", "diff", "HEAD~1", "HEAD", "--json")
    assert "errors" not in shown
    charts = {name: charts[0]["revisions"] for name, charts in shown["data"].items()}
    tables = {
        f"metrics/{name}.csv"
        for name in (
            "train",
            "history",
            "evaluation",
            "confusion",
            "per_class",
            "reliability",
            "risk_coverage",
        )
    }
    names = {"Loss", "Accuracy", *tables}
    assert charts == {name: ["HEAD~1", "HEAD"] for name in names}


def test_dag_shows_the_four_stages_in_a_row(changed: Project) -> None:
    edges = set(changed.run("dvc", "dag", "--dot").stdout.replace('"', "").replace(";", "").splitlines())
    assert {"download -> preprocess", "preprocess -> train", "train -> evaluate"} <= {
        edge.strip() for edge in edges
    }


def test_an_experiment_with_another_value_is_run_and_listed(changed: Project, tmp_path: Path) -> None:
    project = changed.copy(tmp_path / "project")
    project.run("dvc", "exp", "run", "--name", "wider", "--set-param", "model.dense=[24]")
    rows = project.run("dvc", "exp", "show", "--csv").stdout
    assert "wider" in rows
    assert "[24]" in rows
    wide = Project(project.folder, {**project.environment, "COLUMNS": "120"})
    shown = wide.run("dvc", "exp", "show", "--only-changed", "--no-pager").stdout
    headings = ["Experiment", "Created", "val_accuracy", "val_loss", "accuracy", "loss", "model.dense", "…"]
    assert shown.splitlines()[1].split() == headings  # the last stands for the hashes of the models
    assert max(map(len, shown.splitlines())) <= 120 - len("official_accuracy")  # which some datasets have too
    assert "model.dense" in project.run("dvc", "params", "diff").stdout
