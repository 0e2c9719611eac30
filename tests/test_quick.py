"""`make quick`: the unit tests, and no test that runs DVC, another process, a browser or TensorFlow."""

import subprocess
import sys

import pytest

from tests.project import ROOT

ROOMS = ("common", "datasets", "evaluation", "training")
SLOW = [
    ("test_pipeline", "test_a_changed"),  # uses the project of a fixture
    ("test_quick", ""),  # starts a process in a fixture
    ("model/test_networks", ""),  # loads TensorFlow
    ("tools/test_plots", "test_every_chart"),  # opens a browser
    ("evaluation/test_scoring", "test_importing_the_module"),  # starts a process itself
]


@pytest.fixture(scope="module")
def collected() -> list[str]:
    """The tests of some rooms and files that `make quick` runs."""
    paths = [f"tests/{room}" for room in ROOMS] + [f"tests/{file}.py" for file, _ in SLOW[:4]]
    command = [sys.executable, "-m", "pytest", "-n", "0", "--collect-only", "--quick", *paths]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if "::" in line]


def test_quick_runs_the_unit_tests_of_every_room(collected: list[str]) -> None:
    assert {line.split("/")[1] for line in collected} >= {*ROOMS, "tools"}
    assert any("test_scoring.py::" in line for line in collected)


@pytest.mark.parametrize(("file", "test"), SLOW)
def test_quick_leaves_out_what_is_slow(collected: list[str], file: str, test: str) -> None:
    assert [line for line in collected if line.startswith(f"tests/{file}.py::{test}")] == []
