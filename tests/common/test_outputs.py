"""stages/common/outputs.py: whatever happens, an output is the old one or the new one, whole."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.common.failure import StageError, run
from stages.common.outputs import replacing, require_space, write_json
from tests.project import ROOT

KILLED = """
import os, signal, sys
from pathlib import Path
from stages.common.outputs import replacing

with replacing(Path(sys.argv[1])) as partial:
    partial.write_text("half of a much longer text")
    os.kill(os.getpid(), signal.SIGKILL)
"""

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=8,
)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "output.txt"
    path.write_text("old")
    return path


def write(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text)


def files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_the_old_content_stands_until_the_block_has_ended(old: Path) -> None:
    with replacing(old) as partial:
        partial.write_text("new")
        assert old.read_text() == "old"
    assert files(old.parent) == {"output.txt": "new"}


def test_missing_folders_are_made(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b" / "output.txt", "new")
    assert files(tmp_path / "a" / "b") == {"output.txt": "new"}


@pytest.mark.parametrize("reason", [ValueError, StageError, KeyboardInterrupt, SystemExit])
def test_a_block_that_raises_leaves_the_old_content_and_nothing_else(
    old: Path, reason: type[BaseException]
) -> None:
    with pytest.raises(reason), replacing(old) as partial:
        partial.write_text("half")
        raise reason
    assert files(old.parent) == {"output.txt": "old"}


def test_a_block_that_writes_nothing_is_an_error_and_leaves_the_old_content(old: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"output\.txt\.partial"), replacing(old):
        pass
    assert files(old.parent) == {"output.txt": "old"}


def test_a_killed_process_leaves_the_old_content_and_the_next_run_clears_up(old: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(old)], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert old.read_text() == "old"
    write(old, "new")
    assert files(old.parent) == {"output.txt": "new"}


def test_a_full_disk_leaves_the_old_content_and_nothing_else(small_disk: Path) -> None:
    write(small_disk / "output.txt", "old")
    with pytest.raises(OSError, match="No space left"):
        write(small_disk / "output.txt", "new" * 100_000)
    assert files(small_disk) == {"output.txt": "old"}


def test_a_full_disk_is_one_line_that_names_the_output(
    small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", lambda _: write(small_disk / "output.txt", "new" * 100_000), []) == 1
    assert capsys.readouterr().err.startswith(f"train: {small_disk}/output.txt: No space left on device; ")


def test_json_has_sorted_keys_plain_letters_and_a_final_newline(tmp_path: Path) -> None:
    write_json(tmp_path / "metrics.json", {"b": {"z": 1, "ä": 0.5}, "a": None})
    text = (tmp_path / "metrics.json").read_text(encoding="utf-8")
    assert text == '{\n  "a": null,\n  "b": {\n    "z": 1,\n    "ä": 0.5\n  }\n}\n'


@given(content=st.dictionaries(st.text(), JSON, max_size=4))
def test_json_is_read_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, content: dict[str, object]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    write_json(path, content)
    assert json.loads(path.read_text(encoding="utf-8")) == content


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_is_named_and_nothing_is_written(old: Path, value: float) -> None:
    with pytest.raises(StageError, match=rf"output\.txt: classes\[1\]\.f1 is {value}, not a finite number"):
        write_json(old, {"classes": [{"f1": 0.5}, {"f1": value}]})
    assert files(old.parent) == {"output.txt": "old"}


def test_enough_space_is_no_error_and_the_folder_is_made(tmp_path: Path) -> None:
    require_space(tmp_path / "new", 1)
    assert (tmp_path / "new").is_dir()


def test_too_little_space_names_the_folder_and_both_sizes(small_disk: Path) -> None:
    (small_disk / "half").write_bytes(bytes(32_768))
    message = rf"^{small_disk}: not enough disk space \(3 MB needed, 0 MB free\)"
    with pytest.raises(StageError, match=message):
        require_space(small_disk, 3_000_000)


def test_space_is_that_of_the_folders_own_disk(small_disk: Path) -> None:
    require_space(small_disk, 65_536)
    with pytest.raises(StageError, match="not enough disk space"):
        require_space(small_disk, 65_537)
