"""Shared fixtures. TensorFlow is loaded only when a test asks for it."""

import importlib
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest
from filelock import FileLock
from playwright.sync_api import Browser, sync_playwright

from stages.common import failure
from stages.model import runtime
from tests.project import Project, RunHere, environment_at, make_project

# What tests use to start other processes, and the fixtures that load TensorFlow, open a browser or mount a disk.
PROCESSES = {"subprocess", "Popen", "make_project", "sync_playwright", "fork"}
SLOW_FIXTURES = {"started", "browser", "small_disk"}

# The files with the longest tests run first, so that no worker is left with one of them at the end.
LONG = (
    "test_train",
    "test_pipeline",
    "test_compare",
    "test_report",
    "test_evaluate",
    "test_runtime",
    "test_loop",
)


# The commands of this environment, also where it is not activated.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

# Processes that a shell starts in the background ignore Ctrl-C, and their children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A new seed for the kills on each run. The workers inherit it.
os.environ.setdefault("KILLS_SEED", str(random.randrange(1_000_000)))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --quick, for `make quick`."""
    parser.addoption(
        "--quick", action="store_true", help="only unit tests: no DVC, processes, browser or training"
    )


def _is_unit_test(item: pytest.Item) -> bool:
    """Return whether neither the test nor its fixtures start a process, open a browser or load TensorFlow."""
    fixtures = item._fixtureinfo.name2fixturedefs if isinstance(item, pytest.Function) else {}
    functions = [getattr(item, "function", None), *(each.func for found in fixtures.values() for each in found)]
    return fixtures.keys().isdisjoint(SLOW_FIXTURES) and not any(
        _starts_process(each, set()) for each in functions
    )


def _starts_process(function: Any, seen: set[Any]) -> bool:
    """Return whether a function, or one of the tests' functions that it calls, uses one of `PROCESSES`."""
    if not isinstance(function, FunctionType) or function in seen or not function.__module__.startswith("tests"):
        return False
    seen.add(function)
    names = set(_names(function.__code__))
    return bool(names & PROCESSES) or any(_starts_process(function.__globals__.get(name), seen) for name in names)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):  # a nested function, a comprehension
            yield from _names(constant)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --quick, deselect all but unit tests. Bring the long files to the front, in the order of `LONG`."""
    if config.getoption("quick"):
        others = [item for item in items if not _is_unit_test(item)]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]
    ranks = {name: rank for rank, name in enumerate(LONG)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(LONG)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many processes each kill hit: a kill that hit none proves nothing."""
    reports = [report for name in ("passed", "failed") for report in terminalreporter.stats.get(name, [])]
    kills = [dict(report.user_properties) for report in reports if report.when == "call"]
    kills = [kill for kill in kills if "killed" in kill]
    if kills:
        hit = sum(kill["hit"] > 0 for kill in kills)
        terminalreporter.write_line(f"KILLS_SEED={os.environ['KILLS_SEED']}: {len(kills)} kills tried, {hit} hit")
        for kill in kills:
            terminalreporter.write_line(f"  {kill['killed']}: {kill['hit']} processes hit")


@pytest.fixture(scope="session")
def started() -> None:
    """TensorFlow with the settings of a stage, which can be set only before the first operation of the process."""
    runtime.start(
        runtime.RuntimeParams(
            threads=2, cpu_isa="native", precision="float32", emulate=False, strategy="single", devices=1
        ),
        seed=0,
    )


@pytest.fixture(autouse=True)
def only_started_tests_compute(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that runs TensorFlow operations without `started`, instead of a later test that has it."""
    context = sys.modules.get("tensorflow.python.eager.context")
    if context is None or "started" in request.fixturenames:
        return
    # Once TensorFlow runs, its settings are fixed, and the functions of earlier tests are deleted at any time.
    if not context.context()._initialized:

        def refuse(_: Any) -> None:
            raise RuntimeError("this test runs TensorFlow operations: it needs the fixture `started`")

        monkeypatch.setattr(context.Context, "ensure_initialized", refuse)


@pytest.fixture(scope="session")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The small project after its first `dvc repro`, committed. Copy it; do not change it."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # one run for all workers
    folder, home = shared / "first-run", shared / "first-run-home"
    with FileLock(shared / "first-run.lock"):
        if not folder.exists():
            project = make_project(shared / "first-run-making", home)
            assert project.repro() == ["download", "preprocess", "train", "evaluate"]
            project.commit("The first run")
            project.folder.rename(folder)
    return Project(folder, environment_at(home))


@pytest.fixture
def run_here(started: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunHere:
    """Run a stage in this process, which has loaded TensorFlow; that takes a process of its own five seconds."""

    def run(project: Project, stage: str) -> "subprocess.CompletedProcess[str]":
        monkeypatch.chdir(project.folder)
        code = failure.run(stage, importlib.import_module(f"stages.{stage}").main, [])
        return subprocess.CompletedProcess(stage, code, *capsys.readouterr())

    return run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a separate disk of 64 kB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The Chromium that is installed on this system."""
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        pytest.skip("Chromium, which opens the pages, is not installed; on Debian: apt install chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=executable)
        yield opened
        opened.close()
