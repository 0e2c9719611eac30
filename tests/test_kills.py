"""SIGKILL at random moments of `dvc repro`: the next one gives the same bytes as an undisturbed run.

KILLS says how many, spread evenly over the stages; a few by default, and by hand: KILLS=60 make faults. KILLS_SEED
repeats a campaign; it is another one each time, and printed at the end with what was hit (tests/conftest.py).
"""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from stages.common.failure import StageError
from tests.project import ROOT, STAGES, Project, make_project
from tools.rwlock import remove_unreadable_rwlock

KILLS = int(os.environ.get("KILLS", "2"))
SEED = int(os.environ["KILLS_SEED"])
VICTIMS = ("dvc", "stage", "both")  # both: as when the power fails
OUTPUTS = ("data", "models", "metrics")
# What DVC names what it is writing, and leaves when it is killed: no output, and nothing that is ever read.
DVC_TEMPORARY = re.compile(r"\.[\w-]{22}\.tmp")
PATIENCE = 120  # seconds to wait for the processes that a killed `dvc` left behind

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project before its first run, whose training saves a checkpoint after every call of the steps."""
    project = make_project(tmp_path_factory.mktemp("start") / "project", tmp_path_factory.mktemp("home"))
    project.choose("train.epochs", 20)
    project.choose("train.checkpoint_minutes", 1e-9)
    return project


@pytest.fixture(scope="module")
def undisturbed(
    start: Project, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, bytes], dict[str, float]]:
    """The outputs of an undisturbed run, and the seconds that each stage took."""
    project = start.copy(tmp_path_factory.mktemp("undisturbed") / "project")
    began: dict[str, float] = {}
    with _repro(project) as process:
        for stage in _stages_begun(process):
            began[stage] = time.monotonic()
    assert process.returncode == 0
    ends = [*list(began.values())[1:], time.monotonic()]
    seconds = {stage: end - begin for (stage, begin), end in zip(began.items(), ends, strict=True)}
    assert list(seconds) == STAGES
    return _outputs(project), seconds


@pytest.mark.parametrize("kill", range(KILLS))
def test_a_killed_repro_ends_with_the_bytes_of_an_undisturbed_one(
    start: Project,
    undisturbed: tuple[dict[str, bytes], dict[str, float]],
    tmp_path: Path,
    kill: int,
    record_property: Callable[[str, object], None],
) -> None:
    expected, seconds = undisturbed
    draw = random.Random(f"{SEED} {kill}")
    stage, victim = STAGES[(SEED + kill) % len(STAGES)], draw.choice(VICTIMS)
    moment = draw.uniform(0, seconds[stage])
    project = start.copy(tmp_path / "project")
    with _repro(project) as process:
        next(begun for begun in _stages_begun(process) if begun == stage)
        time.sleep(moment)
        hit = _kill(process, victim)
    what = f"{victim} killed {moment:.2f} s into {stage}"
    record_property("killed", what)
    record_property("hit", hit)

    errors = _repro_until_done(project)
    context = f"KILLS_SEED={SEED}: {what}\n{errors}"
    assert "Traceback" not in errors, context
    found = _outputs(project)
    assert found.keys() == expected.keys(), context
    assert [name for name in expected if found[name] != expected[name]] == [], context
    assert project.repro() == [], context
    assert not (project.folder / "checkpoints").exists(), context


def _repro(project: Project) -> "subprocess.Popen[str]":
    """Start `dvc repro` and capture what it prints."""
    return subprocess.Popen(
        ("dvc", "repro"),
        cwd=project.folder,
        env={**project.environment, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def _stages_begun(process: "subprocess.Popen[str]") -> Iterator[str]:
    assert process.stdout is not None
    for line in process.stdout:
        if begun := re.match(r"Running stage '(\w+)'", line):
            yield begun[1]
    process.wait()


def _kill(process: "subprocess.Popen[str]", victim: str) -> int:
    """Kill and return the number of processes hit: 0 if the run or the stage had already ended."""
    hit = 0
    try:
        dvc = psutil.Process(process.pid)
        children = dvc.children(recursive=True)
    except psutil.NoSuchProcess:
        return hit
    for each in [*([dvc] if victim != "stage" else []), *(children if victim != "dvc" else [])]:
        try:
            each.send_signal(signal.SIGKILL)
            hit += 1
        except psutil.NoSuchProcess:
            continue
    return hit


def _repro_until_done(project: Project) -> str:
    """Run `dvc repro`, and repeat it while processes of the killed one are still running, as users would."""
    errors = ""
    deadline = time.monotonic() + PATIENCE
    while True:
        done = project.run("dvc", "repro", check=False)
        errors += done.stderr
        if done.returncode == 0:
            return errors
        if "'./dvc.lock'" in done.stderr:  # DVC was killed while it wrote that file, in place
            with_tools = Project(project.folder, {**project.environment, "PYTHONPATH": str(ROOT)})
            checked = with_tools.run(sys.executable, "-m", "tools.check", check=False).stderr
            assert "dvc.lock: incomplete" in checked, checked
            (project.folder / "dvc.lock").unlink()  # what it says to do where no commit has the file
            continue
        if "Unable to read RWLock-file" in done.stderr:  # DVC was killed while it wrote that file, in place
            with_tools = Project(project.folder, {**project.environment, "PYTHONPATH": str(ROOT)})
            checked = with_tools.run(sys.executable, "-m", "tools.check", check=False).stderr
            assert "rwlock: unreadable, as after a kill of dvc; removed" in checked, checked
            continue
        assert "is locked by process" in done.stderr, errors
        assert time.monotonic() < deadline, errors
        time.sleep(0.5)


def _outputs(project: Project) -> dict[str, bytes]:
    return {
        str(path.relative_to(project.folder)): path.read_bytes()
        for folder in OUTPUTS
        for path in sorted((project.folder / folder).rglob("*"))
        if path.is_file() and path.name not in (".lock", ".gitignore") and not DVC_TEMPORARY.fullmatch(path.name)
    }


def test_temporary_files_of_a_killed_dvc_are_no_outputs(start: Project, tmp_path: Path) -> None:
    project = start.copy(tmp_path / "project")
    before = _outputs(project)
    (project.folder / "data").mkdir(exist_ok=True)
    (project.folder / "data/.tiDczSFE0BAUVtFqZBvNfg.tmp").write_bytes(b"half")
    assert _outputs(project) == before


def test_a_kill_that_hits_no_process_is_counted_as_such() -> None:
    with subprocess.Popen(["sleep", "60"], text=True) as process:
        assert _kill(process, "stage") == 0  # it has no child
        assert _kill(process, "dvc") == 1
    assert _kill(process, "both") == 0


def test_a_half_written_lock_is_fixed_by_the_command_in_the_message(
    start: Project, undisturbed: tuple[dict[str, bytes], dict[str, float]], tmp_path: Path
) -> None:
    project = start.copy(tmp_path / "project")
    project.repro()
    lock = project.folder / "dvc.lock"
    lock.write_bytes(lock.read_bytes()[:9])
    assert "'./dvc.lock' is invalid" in _repro_until_done(project)
    assert _outputs(project) == undisturbed[0]


@pytest.mark.parametrize("content", ["", '{"write": {'])
def test_an_unreadable_rwlock_is_removed_by_the_check(
    start: Project, undisturbed: tuple[dict[str, bytes], dict[str, float]], tmp_path: Path, content: str
) -> None:
    project = start.copy(tmp_path / "project")
    project.repro("download")
    (project.folder / ".dvc/tmp/rwlock").write_text(content, encoding="utf-8")
    assert "Unable to read RWLock-file" in _repro_until_done(project)
    assert _outputs(project) == undisturbed[0]


def test_an_unreadable_rwlock_stays_while_dvc_runs(start: Project, tmp_path: Path) -> None:
    project = start.copy(tmp_path / "project")
    rwlock = project.folder / ".dvc/tmp/rwlock"
    with _repro(project) as process:
        next(_stages_begun(process))
        rwlock.write_text("", encoding="utf-8")
        with pytest.raises(StageError, match=rf"unreadable, but dvc is running \(process {process.pid}\)"):
            remove_unreadable_rwlock(project.folder)
        assert rwlock.exists()
        _kill(process, "both")
