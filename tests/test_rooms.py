"""The rooms of stages/ and the walls between them: what a stage imports, and what dvc.yaml says that it does."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter

import pytest
import yaml

from tests.project import ROOT

STAGES = ["download", "preprocess", "train", "evaluate"]
# The rooms that each room may import from, apart from itself.
KNOWN = {
    "common": set(),
    "model": {"common"},
    "datasets": {"common", "model"},
    "training": {"common", "model"},
    "evaluation": {"common", "model"},
}
DEPS = {
    name: [dep for dep in stage["deps"] if dep.startswith("stages/")]
    for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"].items()
}


def all_modules() -> list[str]:
    paths = (path.relative_to(ROOT).with_suffix("") for path in (ROOT / "stages").rglob("*.py"))
    return sorted(".".join(path.parts) for path in paths if path.name != "__init__")


def room(module: str) -> str:
    """Return the room of a module, or the name of the module if it is a stage."""
    return module.split(".")[1]


@cache
def imported(module: str) -> frozenset[str]:
    """Return the modules of stages/ that a module imports: when it loads, when it runs, for type checking."""
    path = ROOT.joinpath(*module.split("."))
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    known = {*all_modules(), *(f"stages.{name}" for name in KNOWN)}
    return frozenset(names & known)


def reached(module: str) -> set[str]:
    """Return all modules of stages/ that a module imports, directly or indirectly."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        new = imported(waiting.pop()) - found
        found |= new
        waiting += new
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_lists_its_module_and_exactly_the_rooms_that_it_reaches(stage: str) -> None:
    rooms = {room(module) for module in reached(f"stages.{stage}")}
    assert DEPS[stage] == [*(f"stages/{name}" for name in sorted(rooms)), f"stages/{stage}.py"]


@pytest.mark.parametrize("module", [name for name in all_modules() if room(name) in KNOWN])
def test_a_module_imports_only_from_the_rooms_allowed_for_its_room(module: str) -> None:
    assert {room(name) for name in imported(module)} <= KNOWN[room(module)] | {room(module)}


def test_no_imports_run_in_a_circle() -> None:
    TopologicalSorter({module: imported(module) - {module} for module in all_modules()}).prepare()


def test_every_file_of_stages_is_in_a_room_or_is_a_stage() -> None:
    assert {room(module) for module in all_modules()} == {*KNOWN, *STAGES}


def test_the_package_stages_has_no_code_because_no_stage_lists_it() -> None:
    body = ast.parse((ROOT / "stages/__init__.py").read_text(encoding="utf-8")).body
    assert [type(node) for node in body] == [ast.Expr]


@pytest.mark.parametrize("stage", ["download", "preprocess"])
def test_a_stage_before_training_never_imports_tensorflow(stage: str) -> None:
    script = (
        "import runpy, sys\n"
        f"sys.argv = ['{stage}', '--help']\n"
        "try:\n"
        f"    runpy.run_module('stages.{stage}', run_name='__main__')\n"
        "except SystemExit:\n"
        "    pass\n"
        "print(sorted({'tensorflow', 'keras', 'pandas', 'sklearn'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
