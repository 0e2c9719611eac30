"""`make quick`: the unit tests, and no test that runs DVC, another process, a browser or TensorFlow."""

import subprocess
import sys

import pytest

from tests.project import ROOT


@pytest.fixture(scope="module")
def collected() -> list[str]:
    """The tests that `make quick` runs."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "--collect-only", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if "::" in line]


def test_quick_runs_the_unit_tests_of_every_room(collected: list[str]) -> None:
    rooms = {line.split("/")[1] for line in collected}
    assert {"common", "datasets", "training", "evaluation", "tools"} <= rooms
    assert any("test_scoring.py::" in line for line in collected)


@pytest.mark.parametrize(
    "name",
    [
        "tests/test_pipeline.py::test_a_changed",  # uses the project of a fixture
        "tests/test_quick.py",  # starts a process in a fixture
        "tests/model/test_networks.py",  # loads TensorFlow
        "tests/tools/test_plots.py::test_every_chart",  # opens a browser
        "tests/evaluation/test_scoring.py::test_importing_the_module",  # starts a process itself
    ],
)
def test_quick_leaves_out_what_is_slow(collected: list[str], name: str) -> None:
    assert [line for line in collected if line.startswith(name)] == []
