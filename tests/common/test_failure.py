"""stages/common/failure.py: what a person sees of a failure, and the exit code."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from stages.common.failure import StageError, run
from tests.project import ROOT

Main = Callable[[Sequence[str]], None]


def mendable(_: Sequence[str]) -> None:
    raise StageError("params.yaml:3: no such key;\n  use another")


def test_success_is_exit_code_0_and_silent(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", lambda arguments: None, []) == 0
    assert capsys.readouterr() == ("", "")


def test_the_arguments_reach_main_without_debug() -> None:
    received: list[str] = []
    run("train", received.extend, ["--out", "x", "--debug"])
    assert received == ["--out", "x"]


def test_what_a_user_can_mend_is_exit_code_1_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", mendable, []) == 1
    assert capsys.readouterr() == ("", "train: params.yaml:3: no such key; use another\n")


@pytest.mark.parametrize(("arguments", "variable"), [(["--debug"], ""), ([], "1")])
def test_debug_shows_the_traceback_before_the_line(
    arguments: list[str], variable: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGES_DEBUG", variable)
    assert run("train", mendable, arguments) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback (most recent call last)")
    assert shown.endswith("\ntrain: params.yaml:3: no such key; use another\n")


@pytest.mark.parametrize("variable", ["", "0"])
def test_debug_in_the_environment_can_be_switched_off(
    variable: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGES_DEBUG", variable)
    run("train", mendable, [])
    assert "Traceback" not in capsys.readouterr().err


def test_a_system_error_names_the_path_and_the_systems_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "nowhere.npz"
    assert run("train", lambda _: missing.touch(exist_ok=missing.read_bytes() == b""), []) == 1
    assert capsys.readouterr().err == (
        f"train: {missing}: {os.strerror(errno.ENOENT)}; fix that, then run again\n"
    )


def test_too_little_memory_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", lambda _: print(bytearray(1 << 62)), []) == 1
    assert capsys.readouterr().err.startswith("train: out of memory; ")


@pytest.mark.usefixtures("started")
def test_too_little_memory_for_tensorflow_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    import tensorflow as tf

    def main(_: Sequence[str]) -> None:
        tf.zeros((1 << 21, 1 << 21))

    assert run("train", main, []) == 1
    assert (
        capsys.readouterr().err == "train: out of memory; close other programs or use a smaller train.batch_size\n"
    )


def test_ctrl_c_is_exit_code_130_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", lambda _: signal.raise_signal(signal.SIGINT), []) == 130
    assert capsys.readouterr().err == "train: stopped by Ctrl-C\n"


@pytest.mark.parametrize("defect", [ZeroDivisionError("a defect"), OSError("an error without a number")])
def test_a_defect_of_the_stage_is_not_swallowed(defect: Exception) -> None:
    def main(_: Sequence[str]) -> None:
        raise defect

    with pytest.raises(type(defect), match=str(defect)):
        run("train", main, [])


def test_a_stage_started_from_a_shell_fails_with_one_line_and_exit_code_1(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stages.preprocess", "--params", str(tmp_path / "no.yaml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        f"preprocess: {tmp_path}/no.yaml: no such file; run from the repository's root, or pass --params\n"
    )


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_who_has_seen_enough_is_no_failure(lines: int) -> None:
    """The output of many lines breaks while it is written, that of one when it is flushed at the end."""
    program = (
        f"import sys; from stages.common.failure import run; sys.exit(run('x', lambda _: print('a\\n' * {lines})))"
    )
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as output:
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=output, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (141, b"")
