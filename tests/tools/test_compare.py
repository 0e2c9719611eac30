"""tools/compare, on invented runs, and on real ones with git and DVC."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages.common.failure import StageError
from stages.common.figures import parse_figures
from stages.evaluation import scoring
from tests.project import ROOT, Project
from tools.compare import comparison
from tools.compare.gate import Pair
from tools.compare.runs import Run, read_run

CLASSES = ["cat", "dog", "a|b"]
FILES = ("metrics/evaluation.csv", "metrics/train.csv", "data/predictions.csv")


def made_up(name: str, labels: Sequence[int], predicted: Sequence[int]) -> Run:
    probabilities = (np.eye(3)[predicted] * 0.7 + 0.1).astype(np.float32)
    figures = scoring.score(np.array(labels), probabilities, 2)
    metrics = {f"evaluate.{metric}": value for metric, value in figures.items()}
    return Run(name, metrics, 2, "a" * 64, CLASSES, np.array(labels), probabilities)


def test_a_flip_is_gained_lost_or_wrong_in_both() -> None:
    found = comparison.compare(
        made_up("old", [0, 0, 1, 2, 2], [0, 1, 1, 0, 1]), made_up("new", [0, 0, 1, 2, 2], [0, 0, 2, 1, 1])
    )
    assert found.flips == [
        {"image": 1, "label": "cat", "a": "dog", "b": "cat", "flip": "gained"},
        {"image": 2, "label": "dog", "a": "dog", "b": "a|b", "flip": "lost"},
        {"image": 3, "label": "a|b", "a": "cat", "b": "dog", "flip": "wrong in both"},
    ]
    assert [list(row.values()) for row in found.classes] == [
        ["cat", 2, 1, 2, 1, 0],
        ["dog", 1, 1, 0, 0, 1],
        ["a|b", 2, 0, 0, 0, 0],
    ]
    assert (found.gained, found.lost, found.p_value) == (1, 1, 1.0)


@pytest.mark.parametrize(
    ("gained", "lost", "verdict", "sentence"),
    [
        (
            6,
            0,
            "better",
            "new is better than old on 20 images (6 gained, 0 lost, exact McNemar p = 0.031).",
        ),
        (0, 6, "worse", "new is worse than old on 20 images (0 gained, 6 lost, exact McNemar p = 0.031)."),
        (5, 0, "not significant", "No significant difference between old and new on 20 images (5 gained, 0 lost"),
        (0, 0, "not significant", "No significant difference between old and new on 20 images (0 gained, 0 lost"),
        (7, 7, "not significant", "(7 gained, 7 lost, exact McNemar p = 1)"),
    ],
)
def test_the_verdict_is_mcnemar_s_at_5_percent(gained: int, lost: int, verdict: str, sentence: str) -> None:
    old = made_up("old", [0] * 20, [1] * gained + [0] * (20 - gained))
    new = made_up("new", [0] * 20, [0] * gained + [1] * lost + [0] * (20 - gained - lost))
    found = comparison.compare(old, new)
    assert found.verdict == verdict
    assert sentence in found.sentence


def test_without_flips_there_is_no_difference() -> None:
    run = made_up("old", [0, 1, 2], [0, 1, 1])
    found = comparison.compare(run, run)
    assert found.flips == []
    assert all(pair.difference == 0 for pair in found.metrics.values())
    assert found.metrics["evaluate.accuracy"].low == found.metrics["evaluate.accuracy"].high == 0
    assert "Images lost: 0" in list(comparison.report(found, markdown=False))


def test_one_image_is_not_significant() -> None:
    found = comparison.compare(made_up("old", [0], [0]), made_up("new", [0], [1]))
    assert found.verdict == "not significant"
    assert "on 1 image (0 gained, 1 lost" in found.sentence
    assert found.metrics["evaluate.accuracy"] == Pair(1.0, 0.0, -1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"dataset_sha256": "b" * 64},
            "old and new were evaluated on different test images: dataset_sha256 differs",
        ),
        ({"labels": np.array([0, 1, 1])}, r"different test images: labels in data/predictions\.csv differ"),
        ({"labels": np.array([0, 1])}, "different test images: labels"),
        ({"classes": ["cat", "dog", "bird"]}, "different test images: labels"),
    ],
)
def test_runs_on_different_test_images_are_not_compared(change: dict[str, Any], message: str) -> None:
    old = made_up("old", [0, 1, 2], [0, 1, 1])
    with pytest.raises(StageError, match=message):
        comparison.compare(old, replace(old, name="new", **change))


def test_a_metric_of_only_one_run_has_no_difference() -> None:
    old = made_up("old", [0, 1, 2], [0, 1, 1])
    new = replace(old, name="new", metrics={**old.metrics, "evaluate.novel": 0.5})
    found = comparison.compare(old, new)
    assert found.metrics["evaluate.novel"] == Pair(None, 0.5)
    assert comparison.compare(new, old).metrics["evaluate.novel"] == Pair(0.5, None)
    assert re.search(
        r"^evaluate\.novel +- +0\.5000 +- +-$", "\n".join(comparison.report(found, False)), re.MULTILINE
    )


def test_a_top_k_accuracy_with_different_k_has_no_interval() -> None:
    old = made_up("old", [0, 1, 2], [0, 1, 1])
    metrics = {name.replace("top_2", "top_1"): value for name, value in old.metrics.items()}
    found = comparison.compare(old, replace(old, name="new", top_k=1, metrics=metrics)).metrics
    assert found["evaluate.top_2_accuracy"].low is found["evaluate.top_1_accuracy"].low is None


def test_long_lists_of_images_are_truncated_in_tables_only() -> None:
    found = comparison.compare(made_up("old", [0] * 30, [0] * 30), made_up("new", [0] * 30, [1] * 30))
    assert len(found.flips) == 30
    *_, title, table, gained = comparison.report(found, markdown=False)
    assert (title, gained) == (
        "Images lost: 30 (first 10; --json lists all)",
        "Images gained: 0",
    )
    assert len(table.splitlines()) == 1 + comparison.SHOWN


def test_markdown_tables_are_rectangular_for_any_class_names() -> None:
    found = comparison.compare(made_up("old", [0, 1, 2], [0, 1, 1]), made_up("new", [0, 1, 2], [0, 1, 2]))
    tables = [part.splitlines() for part in comparison.report(found, markdown=True) if part.startswith("|")]
    assert len(tables) == 3  # metrics, classes, images gained
    for lines in tables:
        assert set(lines[1]) == set("| -")
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


@pytest.fixture(scope="module")
def runs(first_run: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A commit `first`, an experiment `longer`, applied to the workspace, and its branch `second`."""
    project = first_run.copy(tmp_path_factory.mktemp("runs") / "project")
    project.run("git", "tag", "first")
    shutil.copyfile(project.folder / "data/predictions.csv", project.folder.parent / "first.csv")
    project.run("dvc", "exp", "run", "--name", "longer", "--set-param", "train.epochs=2")
    project.run("dvc", "exp", "branch", "longer", "second")
    shutil.copyfile(project.folder / "data/predictions.csv", project.folder.parent / "second.csv")
    return project


def call(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tools.compare", *arguments],
        cwd=project.folder,
        env={**project.environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_two_commits_are_compared_by_their_predictions(runs: Project) -> None:
    done = call(runs, "first", "second", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    old, new = (pd.read_csv(runs.folder.parent / f"{name}.csv", dtype=str) for name in ("first", "second"))
    expected = pd.DataFrame({"label": old["label"], "a": old["prediction"], "b": new["prediction"]})
    expected = expected[expected["a"] != expected["b"]]
    assert [flip["image"] for flip in found["flips"]] == expected.index.tolist()
    assert [[flip[key] for key in ("label", "a", "b")] for flip in found["flips"]] == expected.to_numpy().tolist()
    assert found["gained"] == (expected["b"] == expected["label"]).sum()
    assert found["lost"] == (expected["a"] == expected["label"]).sum()
    for revision, side in (("first", "a"), ("second", "b")):
        shown = runs.run("git", "show", f"{revision}:metrics/evaluation.csv").stdout
        figures = parse_figures(shown.encode(), revision)
        assert found["metrics"]["evaluate.loss"][side] == figures["loss"]
    assert found["metrics"]["evaluate.loss"]["low"] < found["metrics"]["evaluate.loss"]["difference"]
    assert found["metrics"]["evaluate.loss"]["high"] > found["metrics"]["evaluate.loss"]["difference"]


def test_an_experiment_is_named_by_its_name(runs: Project) -> None:
    done = call(runs, "longer", "workspace", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["flips"] == []
    assert found["metrics"]["train.epoch"]["a"] == 2


def test_the_last_commit_and_the_workspace_are_the_defaults(runs: Project) -> None:
    done = call(runs)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^metric +HEAD +workspace +difference", done.stdout, re.MULTILINE)
    assert re.search(r"^train\.epoch +3 +2 +-1 +-$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        ("evaluate: {accuracy: {floor: 0}}", 0),
        ("evaluate: {accuracy: {floor: 1}}", 1),
        ("train: {val_loss: {drop: 1, significant: true}}", 2),
        ("evaluate: {acuracy: {floor: 0}}", 2),
    ],
)
def test_the_result_of_the_gate_is_the_exit_code(runs: Project, tmp_path: Path, limits: str, code: int) -> None:
    path = tmp_path / "gate.yaml"
    path.write_text(limits, encoding="utf-8")
    done = call(runs, "--gate", str(path))
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) == ("acuracy" in limits)


@pytest.mark.parametrize(
    ("revision", "message"),
    [
        ("nowhere", "compare: nowhere: metrics/evaluation.csv: unknown Git revision 'nowhere'"),
        ("", "compare: empty revision; give a commit, an experiment or workspace"),
        ("first~1", "compare: first~1: metrics/evaluation.csv not found in the commit"),
    ],
)
def test_a_revision_without_a_run_is_one_line_and_exit_code_2(runs: Project, revision: str, message: str) -> None:
    done = call(runs, revision, "workspace")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == 1


def test_predictions_missing_from_the_cache_are_one_line_and_exit_code_2(runs: Project, tmp_path: Path) -> None:
    project = runs.copy(tmp_path / "project")
    shutil.rmtree(project.folder / ".dvc" / "cache")
    done = call(project, "first")
    assert done.returncode == 2
    assert done.stderr.startswith("compare: first: data/predictions.csv not found in the commit")
    assert "dvc pull, or dvc repro" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture
def workspace(runs: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the workspace's files, to damage."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(runs.folder / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_probabilities_are_read_to_the_last_bit(workspace: Path) -> None:
    run = read_run("workspace")
    figures = scoring.score(run.labels, run.probabilities, run.top_k)
    assert {f"evaluate.{name}": value for name, value in figures.items()}.items() <= run.metrics.items()


def test_a_class_name_may_look_like_a_missing_value_or_a_number(workspace: Path) -> None:
    path = workspace / "data/predictions.csv"
    table = pd.read_csv(path, dtype=str).replace({"0": "NA", "7": "007"})
    table = table.rename(columns={"probability_0": "probability_NA", "probability_7": "probability_007"})
    before = read_run("workspace")
    path.unlink()
    table.to_csv(path, index=False)
    after = read_run("workspace")
    assert after.classes == ["NA", *"123456", "007", "8", "9"]
    np.testing.assert_array_equal(after.labels, before.labels)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(workspace: Path, name: str) -> None:
    (workspace / name).unlink()
    with pytest.raises(StageError, match=rf"workspace: {re.escape(name)} not found in the commit"):
        read_run("workspace")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[1]", b"label,probability_0\n7,1\n"])
def test_a_damaged_file_is_named(workspace: Path, name: str, content: bytes) -> None:
    (workspace / name).write_bytes(content)
    with pytest.raises(StageError, match=rf"workspace: {re.escape(name)}: ") as caught:
        read_run("workspace")
    assert "run: dvc repro" in str(caught.value)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("name", ["accuracy", "brier"])
def test_a_metric_that_is_not_finite_is_refused(workspace: Path, name: str, value: str) -> None:
    path = workspace / "metrics/evaluation.csv"
    path.write_text(
        re.sub(rf"^{name},.*", f"{name},{value}", path.read_text("utf-8"), flags=re.M), encoding="utf-8"
    )
    with pytest.raises(StageError, match=rf"workspace: evaluate\.{name} is (nan|-?inf), not a finite number"):
        read_run("workspace")


def test_metrics_of_another_run_than_the_predictions_are_refused(runs: Project, workspace: Path) -> None:
    shutil.copyfile(runs.folder.parent / "first.csv", workspace / "data/predictions.csv")
    with pytest.raises(StageError, match="from different runs; run: dvc checkout"):
        read_run("workspace")


def test_truncated_predictions_are_refused(workspace: Path) -> None:
    path = workspace / "data/predictions.csv"
    lines = path.read_text("utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:-100]), encoding="utf-8")
    with pytest.raises(StageError, match="from different runs"):
        read_run("workspace")
    path.write_text("".join(lines)[:-50], encoding="utf-8")
    with pytest.raises(StageError, match=r"data/predictions\.csv: cannot be read"):
        read_run("workspace")


@pytest.mark.parametrize("value", ["", "nan", "x", "-1"])
def test_an_invalid_probability_is_refused(workspace: Path, value: str) -> None:
    path = workspace / "data/predictions.csv"
    path.write_text(re.sub(r",[0-9][^,]*\n", f",{value}\n", path.read_text("utf-8")), encoding="utf-8")
    with pytest.raises(StageError, match=r"data/predictions\.csv: cannot be read"):
        read_run("workspace")
