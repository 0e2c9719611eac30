"""stages/common/exclusive.py: one writer a folder, whatever became of the one before."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stages.common.exclusive import exclusive
from stages.common.failure import StageError
from tests.project import ROOT

HOLDER = """
import sys
from pathlib import Path
from stages.common.exclusive import exclusive

with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that writes into `folder` until its standard input ends or it is killed."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_process_is_refused_and_told_which_one_to_stop(tmp_path: Path) -> None:
    message = rf"^{tmp_path}/ is locked by process (\d+), .* stop it: kill \1$"
    with holder(tmp_path) as first, pytest.raises(StageError, match=message) as refused, exclusive(tmp_path):
        pass
    assert f"process {first.pid}," in str(refused.value)


def test_a_killed_holder_is_no_obstacle(tmp_path: Path) -> None:
    with holder(tmp_path) as first:
        first.kill()
        first.wait()
        with exclusive(tmp_path):
            pass


def test_a_holder_that_ended_is_no_obstacle(tmp_path: Path) -> None:
    with holder(tmp_path) as first:
        first.communicate()
        assert first.returncode == 0
        with exclusive(tmp_path):
            pass


def test_the_holder_that_is_named_is_the_living_one(tmp_path: Path) -> None:
    tmp_path.joinpath(".lock").write_text("12345678901234567890")  # of a dead process, and longer
    with holder(tmp_path) as second:
        message = f"locked by process {second.pid},"
        with pytest.raises(StageError, match=message), exclusive(tmp_path):
            pass


def test_a_block_that_raises_gives_the_right_back(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="defect"), exclusive(tmp_path):
        raise ValueError("defect")
    with exclusive(tmp_path):
        pass


def test_another_folder_is_free(tmp_path: Path) -> None:
    with holder(tmp_path / "a"), exclusive(tmp_path / "b"):
        pass


def test_another_name_of_the_same_folder_is_not_free(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    with holder(tmp_path / "folder"), pytest.raises(StageError), exclusive(tmp_path / "link"):
        pass


def test_a_disk_that_is_full_to_the_last_byte_is_named(small_disk: Path) -> None:
    with pytest.raises(OSError, match="No space"), (small_disk / "filler").open("wb", buffering=0) as filler:
        while filler.write(bytes(4096)):
            pass
    with pytest.raises(OSError, match=rf"No space left on device: '{small_disk}/\.lock'$"), exclusive(small_disk):
        pass
