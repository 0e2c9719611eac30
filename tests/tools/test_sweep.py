"""Many experiments on the digits with DVC's queue: which stages run, what fails, and what a stop leaves behind."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.project import Project, make_project
from tools.report import experiments

pytestmark = [pytest.mark.slow, pytest.mark.long]

QUEUE = ("dvc", "exp", "run", "--queue", "--set-param", "runtime.threads=1")
BUSY = {"Queued", "Running"}


def watched(project: Project, folder: Path) -> Project:
    """Return the project with a `python` on PATH that logs the name of each stage it runs to `folder`/ran."""
    folder.mkdir()
    real = shutil.which("python", path=project.environment["PATH"])
    script = folder / "python"
    script.write_text(f'#!/bin/sh\necho "$2" >> "{folder}/ran"\nexec "{real}" "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    return Project(project.folder, {**project.environment, "PATH": f"{folder}:{project.environment['PATH']}"})


def stages_run(folder: Path) -> list[str]:
    """Return the stages that a `watched` project ran, sorted, with repetitions."""
    return sorted(line.removeprefix("stages.") for line in (folder / "ran").read_text("utf-8").split())


def states(project: Project) -> dict[str, str]:
    """Return the status of the queued experiments, by name."""
    lines = project.run("dvc", "queue", "status").stdout.split("\n\n")[0].splitlines()[1:]
    return {words[1]: words[-1] for words in map(str.split, lines)}


def shown(project: Project) -> dict[str, dict[str, Any]]:
    """Return the entries of `dvc exp show --json` for the experiments of the last commit."""
    _, commit = project.json("dvc", "exp", "show", "--json")
    return {row["name"]: row | row["revs"][0] for row in commit["experiments"]}


def committed(project: Project, name: str, path: str) -> str:
    """Return a file of an experiment or of HEAD. git knows an experiment by its revision, not its name."""
    revision = name if name == "HEAD" else shown(project)[name]["rev"]
    return project.run("git", "show", f"{revision}:{path}").stdout


def processes(project: Project) -> list[psutil.Process]:
    """Return the processes whose working directory is in the project."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(project.folder):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            continue
    return found


@contextmanager
def workers(project: Project, jobs: int) -> Iterator[None]:
    """Start the queue's workers, and stop all of them in the end, even if the test fails."""
    # Not by `run`: the workers hold on to what `dvc queue start` prints into, and a pipe would end with them.
    command = ["dvc", "queue", "start", "--jobs", str(jobs)]
    subprocess.run(command, cwd=project.folder, env=project.environment, stdout=subprocess.DEVNULL, check=True)
    try:
        yield
    finally:
        for process in processes(project):
            process.kill()


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> None:
    """Poll once a second."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(1)


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the log of the sweep's stages."""
    return tmp_path_factory.mktemp("watch") / "bin"


@pytest.fixture(scope="module")
def sweep(first_run: Project, watch: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project after a sweep with two jobs: two experiments, and one with invalid params."""
    project = watched(first_run.copy(tmp_path_factory.mktemp("sweep") / "project"), watch)
    project.run(*QUEUE, "--name", "batch", "--set-param", "train.batch_size=32,64")
    project.run(*QUEUE, "--name", "broken", "--set-param", "train.momentum=5")
    with workers(project, jobs=2):
        wait_for(lambda: not BUSY & set(states(project).values()))
    return project


def test_every_queued_experiment_runs_and_a_failed_one_does_not_stop_the_others(sweep: Project) -> None:
    assert states(sweep) == {"batch-1": "Success", "batch-2": "Success", "broken": "Failed"}


def test_after_a_committed_run_no_experiment_runs_download_or_preprocess(sweep: Project, watch: Path) -> None:
    assert stages_run(watch) == ["evaluate", "evaluate", "train", "train", "train"]


def test_the_checkout_is_unchanged(sweep: Project) -> None:
    assert sweep.run("git", "status", "--porcelain").stdout == ""


def test_one_table_shows_all_experiments_with_params_and_metrics(sweep: Project) -> None:
    rows = shown(sweep)
    choices = {name: row["data"]["params"]["params.yaml"]["data"] for name, row in rows.items()}
    assert {name: choice["train"]["batch_size"] for name, choice in choices.items()} == {
        "batch-1": 32,
        "batch-2": 64,
        "broken": 32,
    }
    for name in ("batch-1", "batch-2"):
        metrics = json.loads(committed(sweep, name, "metrics/train.json"))
        assert rows[name]["data"]["metrics"]["metrics/train.json"]["data"] == metrics


def test_dvc_s_table_shows_the_metrics_of_the_commit_for_a_failed_experiment(sweep: Project) -> None:
    """So check the state before you sort DVC's table by a metric. The report leaves these metrics out."""
    broken = shown(sweep)["broken"]
    assert broken["executor"]["state"] == "failed"
    metrics = json.loads(committed(sweep, "HEAD", "metrics/train.json"))
    assert broken["data"]["metrics"]["metrics/train.json"]["data"] == metrics


def test_the_log_of_a_failed_experiment_has_the_stage_s_line(sweep: Project) -> None:
    log = sweep.run("dvc", "queue", "logs", "broken").stdout
    assert "\ntrain: params.yaml:37: train.momentum: it should be less than 1, found 5\n" in log


def test_the_report_s_table_has_the_best_first_and_no_metrics_of_a_failed_one(sweep: Project) -> None:
    found = experiments.read(sweep.folder)
    assert {one.name: one.state for one in found} == {
        "the last commit": "done",
        "batch-1": "done",
        "batch-2": "done",
        "broken": "failed",
    }
    assert experiments.changed(found) == ["train.batch_size", "train.momentum", "runtime.threads"]
    figures = {one.name: one.figures for one in found}
    assert figures["broken"] == {}
    evaluation = json.loads(committed(sweep, "batch-2", "metrics/evaluation.json"))
    assert figures["batch-2"]["test accuracy"] == evaluation["accuracy"]


def test_an_experiment_that_runs_beside_another_gives_the_same_bytes_as_alone(
    first_run: Project, sweep: Project, tmp_path: Path
) -> None:
    alone = first_run.copy(tmp_path / "alone")
    alone.choose("runtime.threads", 1)
    assert alone.repro("train") == ["train"]
    metrics = (alone.folder / "metrics" / "train.json").read_text("utf-8")
    assert metrics == committed(sweep, "batch-1", "metrics/train.json")


def test_without_a_committed_run_later_experiments_reuse_the_data_of_the_first(tmp_path: Path) -> None:
    """Through the run cache, which all experiments of a checkout share, even if train fails."""
    project = watched(make_project(tmp_path / "project", tmp_path / "home"), tmp_path / "bin")
    project.run(*QUEUE, "--name", "broken", "--set-param", "train.momentum=5,6")
    with workers(project, jobs=1):
        wait_for(lambda: not BUSY & set(states(project).values()))
    assert stages_run(tmp_path / "bin") == ["download", "preprocess", "train", "train"]
    for stage in ("download", "preprocess"):
        line = f"Stage '{stage}' is cached - skipping run, checking out outputs"
        assert line in project.run("dvc", "queue", "logs", "broken-2").stdout


def test_killing_an_experiment_ends_its_worker_and_leaves_no_process_and_no_checkpoint(
    first_run: Project, tmp_path: Path
) -> None:
    """DVC signals the worker too, so waiting experiments stay queued until `dvc queue start`."""
    project = first_run.copy(tmp_path / "project")
    project.run(*QUEUE, "--name", "long", "--set-param", "train.epochs=10000", "--set-param", "train.seed=1,2,3")
    temporary = project.folder / ".dvc" / "tmp" / "exps"
    with workers(project, jobs=1):
        wait_for(lambda: list(temporary.glob("tmp*/checkpoints/*.npz")))
        project.run("dvc", "queue", "kill", "long-1")
        wait_for(lambda: not processes(project))
    assert states(project) == {"long-1": "Failed", "long-2": "Queued", "long-3": "Queued"}
    assert "\ntrain: stopped by Ctrl-C\n" in project.run("dvc", "queue", "logs", "long-1").stdout
    assert list(temporary.glob("tmp*")) == []

    with workers(project, jobs=1):
        wait_for(lambda: list(temporary.glob("tmp*/checkpoints/*.npz")))
        project.run("dvc", "queue", "stop", "--kill")
        wait_for(lambda: not processes(project))
    assert states(project) == {"long-1": "Failed", "long-2": "Failed", "long-3": "Queued"}
    assert list(temporary.glob("tmp*")) == []
