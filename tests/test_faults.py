"""Faults of disk, cache and checkpoints, and two at once, through `dvc repro`: a clear line, and in the end the
bytes of a run that nothing disturbed. Kills are in test_kills.py.

The projects live in a folder with a space and Japanese letters in its name.
"""

import hashlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from tests.project import Project, make_project

STAGES = {"download": "data/raw", "preprocess": "data/processed", "train": "models", "evaluate": "metrics"}
TRAINED = (
    "models/model.keras",
    "models/model.json",
    "metrics/train.csv",
    "metrics/train.json",
    "metrics/history.csv",
)
OUTPUTS = (
    "data/raw/train.npz",
    "data/processed/train.npz",
    *TRAINED,
    "metrics/evaluation.json",
    "metrics/per_class.csv",
    "data/predictions.csv",
    "models/MODEL_CARD.md",
)
NAME = "日本語 の フォルダ"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project before its first run, whose training saves a checkpoint after every call of the steps."""
    project = make_project(tmp_path_factory.mktemp("start") / NAME, tmp_path_factory.mktemp("home"))
    project.choose("train.epochs", 8)
    project.choose("train.checkpoint_minutes", 1e-9)
    return project


@pytest.fixture(scope="module")
def undisturbed(start: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The same project after an undisturbed run."""
    project = start.copy(tmp_path_factory.mktemp("undisturbed") / NAME)
    assert project.repro() == list(STAGES)
    return project


@pytest.fixture
def prepared(undisturbed: Project, tmp_path: Path) -> Project:
    """A copy with processed data, without a model in the workspace or the cache."""
    project = undisturbed.copy(tmp_path / NAME)
    for name in TRAINED:
        forget(project, name)
    return project


@contextmanager
def disk(folder: Path) -> Iterator[Callable[[str], None]]:
    """Mount a separate disk over `folder` with its content; yield a function that remounts it."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    folder.mkdir(parents=True, exist_ok=True)
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        for name, data in content.items():
            (folder / name).write_bytes(data)
        yield lambda options: _mount_again(folder, options)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _mount_again(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Fill the folder's disk except for two pages, so that a stage fails while writing; return the filler."""
    filler = folder / "filler"
    with pytest.raises(OSError, match="No space"), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with filler.open("rb+") as file:
        file.truncate(filler.stat().st_size - 2 * 4096)
    return filler


def test_a_full_disk_in_any_stage_is_one_line_and_free_space_fixes_it(
    start: Project, undisturbed: Project, tmp_path: Path
) -> None:
    project = start.copy(tmp_path / NAME)
    with ExitStack() as disks:
        for stage, output in STAGES.items():
            disks.enter_context(disk(project.folder / output))
            filler = fill(project.folder / output)
            line = first_line(project.run("dvc", "repro", stage, check=False), stage)
            assert output in line
            assert "No space left on device" in line or "not enough disk space" in line, line
            filler.unlink()
            assert project.repro(stage) == [stage]
        same(project, undisturbed)


def test_a_read_only_folder_is_one_line_and_making_it_writable_fixes_it(
    undisturbed: Project, tmp_path: Path
) -> None:
    project = undisturbed.copy(tmp_path / NAME)
    forget(project, "data/processed/test.npz")
    with disk(project.folder / "data/processed") as mount_again:
        mount_again("ro")
        failed = project.run("dvc", "repro", check=False)
        assert failed.returncode != 0
        assert failed.stderr.count("\n") == 1, failed.stderr  # DVC's own, which removes the outputs first
        assert f"Read-only file system: '{project.folder}/data/processed/" in failed.stderr
        mount_again("rw")
        assert project.repro() == ["preprocess"]
        same(project, undisturbed)


def test_a_second_repro_names_the_running_one_which_completes(prepared: Project, undisturbed: Project) -> None:
    with training(prepared) as first:
        trainers = psutil.Process(first.pid).children(recursive=True)
        for each in trainers:
            each.suspend()  # so that it is still running, even on a fast machine
        second = prepared.run("dvc", "repro", check=False)
        for each in trainers:
            each.resume()
        assert second.returncode != 0
        assert "Traceback" not in second.stderr
        assert "is busy, it is being blocked by:" in second.stderr
        assert f"(PID {first.pid}): " in second.stderr
        assert first.wait(timeout=120) == 0
    same(prepared, undisturbed, TRAINED)


def test_a_damaged_checkpoint_does_not_change_the_result(prepared: Project, undisturbed: Project) -> None:
    with training(prepared) as process:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        assert process.wait(timeout=60) != 0
    newest = max(prepared.folder.glob("checkpoints/*.npz"))
    with newest.open("rb+") as file:
        file.truncate(newest.stat().st_size // 2)
    resumed = prepared.run("dvc", "repro", "train").stderr
    assert f"train: checkpoints/{newest.name} is damaged; trying the checkpoint before it" in resumed
    assert "train: resuming after epoch" in resumed
    same(prepared, undisturbed, TRAINED)


def test_a_damaged_object_in_the_cache_is_caught_and_the_command_in_the_message_fixes_it(
    undisturbed: Project, tmp_path: Path
) -> None:
    project = undisturbed.copy(tmp_path / NAME)
    path = project.folder / "data/raw/train.npz"
    damage(cached(project, path))
    path.unlink()
    forget(project, "data/processed/train.npz")
    line = first_line(project.run("dvc", "repro", check=False), "preprocess")
    project.run("bash", "-c", line.partition("To rebuild it: ")[2])
    same(project, undisturbed)
    assert project.repro() == []


@contextmanager
def training(project: Project) -> Iterator["subprocess.Popen[bytes]"]:
    """Yield a running `dvc repro` whose training has saved two checkpoints."""
    process = subprocess.Popen(
        ("dvc", "repro", "train"),
        cwd=project.folder,
        env=project.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while len([*project.folder.glob("checkpoints/*.npz")]) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        yield process
    finally:
        process.kill()
        process.wait()


def first_line(failed: "subprocess.CompletedProcess[str]", stage: str) -> str:
    """Return the line of the stage, which comes before DVC's own."""
    assert failed.returncode != 0
    line, *dvc = failed.stderr.splitlines()
    assert line.startswith(f"{stage}: "), failed.stderr
    assert [line for line in dvc if line] == [line for line in dvc if line.startswith("ERROR: ")], failed.stderr
    return line


def cached(project: Project, path: Path) -> Path:
    """Return the path of the object of `path` in DVC's cache."""
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    return project.folder / ".dvc/cache/files/md5" / md5[:2] / md5[2:]


def forget(project: Project, name: str) -> None:
    """Remove an output from the workspace and the cache."""
    path = project.folder / name
    cached(project, path).unlink()
    path.unlink()


def damage(path: Path) -> None:
    """Change a byte but neither mode nor date, like a bad disk."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    path.chmod(before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def same(project: Project, undisturbed: Project, names: Sequence[str] = OUTPUTS) -> None:
    """Compare the bytes of the outputs."""
    differing = [
        name for name in names if (project.folder / name).read_bytes() != (undisturbed.folder / name).read_bytes()
    ]
    assert differing == []
