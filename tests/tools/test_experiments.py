"""tools/report/experiments.py: which experiments the report shows, and how. See also test_sweep.py."""

from pathlib import Path

import pytest

from stages.common.failure import StageError
from tests.project import Project
from tools.report import experiments, results
from tools.report.experiments import Experiment
from tools.report.page import render

FOUND = [
    Experiment("the last commit", "done", {"train.seed": 0, "model.dense": [16]}, {"validation accuracy": 0.9}),
    Experiment("<b>", "done", {"train.seed": 1, "model.dense": [16]}, {"validation accuracy": 0.95}),
    Experiment("broken", "failed", {"train.seed": 2, "model.dense": [16]}, {}),
]


def test_only_params_that_differ_are_shown() -> None:
    assert experiments.changed(FOUND) == ["train.seed"]
    assert "model.dense" not in experiments.section(FOUND)


def test_the_best_validation_accuracy_comes_first_and_failed_experiments_last() -> None:
    page = experiments.section(FOUND)
    places = [page.index(name) for name in ("0.9500", ">the last commit<", "broken")]
    assert places == sorted(places)


def test_a_name_with_markup_is_text() -> None:
    assert "<b>" not in experiments.section(FOUND)


def test_without_experiments_the_page_has_no_section_about_them(first_run: Project) -> None:
    run = results.read(first_run.folder)
    assert run.experiments == []
    assert "xperiments" not in render(run)


def test_experiments_have_a_section_and_a_link_to_it(first_run: Project, tmp_path: Path) -> None:
    project = first_run.copy(tmp_path / "project")
    project.run("dvc", "exp", "run", "--queue", "--name", "wider", "--set-param", "model.dense=[24]")
    page = render(results.read(project.folder))
    assert '<a href="#experiments">' in page
    assert '<section id="experiments">' in page
    row = page[page.index(">wider<") :].partition("</tr>")[0]
    assert ">queued<" in row
    assert ">[24]<" in row


def test_a_folder_inside_a_checkout_does_not_show_its_experiments(first_run: Project, tmp_path: Path) -> None:
    project = first_run.copy(tmp_path / "project")
    project.run("git", "update-ref", "refs/exps/00/11/other", "HEAD")
    (project.folder / "demo").mkdir()
    assert experiments.read(project.folder / "demo") == []


def test_experiments_of_another_commit_are_not_shown(first_run: Project, tmp_path: Path) -> None:
    project = first_run.copy(tmp_path / "project")
    project.run("dvc", "exp", "save", "--name", "saved")
    assert [one.name for one in experiments.read(project.folder)] == ["the last commit", "saved"]
    project.run("git", "commit", "--quiet", "--allow-empty", "--message", "Another")
    assert experiments.read(project.folder) == []


def test_experiments_that_dvc_cannot_read_are_an_error_of_one_line(first_run: Project, tmp_path: Path) -> None:
    project = first_run.copy(tmp_path / "project")
    project.run("git", "update-ref", "refs/exps/00/11/other", "HEAD")
    (project.folder / ".dvc" / "config").write_text("[core", encoding="utf-8")
    with pytest.raises(StageError, match=r"the experiments cannot be read \(.*\); see what says: dvc exp show$"):
        experiments.read(project.folder)
