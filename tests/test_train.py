"""stages/train.py as a process: the same bytes twice, killed or not, and one line for each failure."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from stages.training.identity import code_files
from tests.project import ROOT, Project, RunHere, make_project
from tools.recipe import with_recipe

OUTPUTS = (
    "models/model.keras",
    "models/model.json",
    "metrics/train.csv",
    "metrics/train.json",
    "metrics/history.csv",
)
COMMAND = (sys.executable, "-m", "stages.train")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with processed data, nothing trained, that checkpoints after every call of the steps."""
    project = make_project(tmp_path_factory.mktemp("prepared") / "project", tmp_path_factory.mktemp("home"))
    project.choose("train.epochs", 16)
    project.choose("train.checkpoint_minutes", 1e-9)
    assert project.repro("preprocess") == ["download", "preprocess"]
    return project


@pytest.fixture(scope="module")
def undisturbed(prepared: Project, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The outputs of a run that nothing disturbed."""
    project = prepared.copy(tmp_path_factory.mktemp("undisturbed") / "project")
    project.run(*COMMAND)
    return outputs(project)


@pytest.fixture
def project(prepared: Project, tmp_path: Path) -> Project:
    return prepared.copy(tmp_path / "project")


def outputs(project: Project) -> dict[str, bytes]:
    return {name: (project.folder / name).read_bytes() for name in OUTPUTS}


def start(project: Project) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        COMMAND,
        cwd=project.folder,
        env=project.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def training(project: Project) -> Iterator["subprocess.Popen[str]"]:
    """A trainer that has written its first checkpoint and goes on."""
    process = start(project)
    wait_for_checkpoint(project, process)
    yield process
    process.kill()
    process.communicate()


def wait_for_checkpoint(project: Project, process: "subprocess.Popen[str]", epoch: int = 0) -> None:
    """Wait for a checkpoint of the epoch, counted from 0, or of a later one."""
    deadline = time.monotonic() + 120
    while not any(int(path.name.split("-")[1]) >= epoch for path in project.folder.glob("checkpoints/*.npz")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_another_process_writes_the_same_bytes(project: Project, undisturbed: dict[str, bytes]) -> None:
    environment = {**project.environment, "PYTHONHASHSEED": "1", "LANG": "C", "TZ": "Asia/Tokyo"}
    Project(project.folder, environment).run(*COMMAND)
    assert outputs(project) == undisturbed


def test_splits_stored_as_uint8_give_the_same_model_and_predictions(
    project: Project, run_here: RunHere, undisturbed: dict[str, bytes]
) -> None:
    processed = project.folder / "data/processed/train.npz"
    size, predictions = processed.stat().st_size, []
    for storage in ("uint8", "float32"):
        project.choose("preprocess.storage", storage)
        assert run_here(project, "preprocess").returncode == 0
        if storage == "uint8":
            assert processed.stat().st_size < size / 2  # the labels stay float32
            project.run(*COMMAND)
            assert outputs(project) == undisturbed
        assert run_here(project, "evaluate").returncode == 0
        predictions.append((project.folder / "data/predictions.csv").read_bytes())
    assert predictions[0] == predictions[1]


def test_a_run_killed_twice_ends_in_the_same_bytes(project: Project, undisturbed: dict[str, bytes]) -> None:
    moments = random.Random(0)
    for epoch in (0, 7):  # of 16: by progress, as by time a quick machine would be done before
        process = start(project)
        wait_for_checkpoint(project, process, epoch)
        time.sleep(moments.uniform(0, 0.05))
        process.kill()
        process.communicate()
    assert not (project.folder / "models/model.keras").exists(), "no run was killed before its end"
    assert "train: resuming after epoch" in project.run(*COMMAND).stderr
    assert outputs(project) == undisturbed
    assert not any(project.folder.glob("checkpoints/*"))


@pytest.mark.parametrize(
    ("precision", "strategy", "devices"),
    [
        ("float32", "single", 1),
        pytest.param("bfloat16", "single", 1, marks=[pytest.mark.slow, pytest.mark.long]),
        pytest.param("bfloat16", "mirrored", 2, marks=pytest.mark.slow),
    ],
)
def test_the_fast_recipe_ends_in_the_same_bytes_killed_or_not(
    project: Project, tmp_path: Path, precision: str, strategy: str, devices: int
) -> None:
    path = project.folder / "params.yaml"
    fast = (ROOT / "recipes" / "fast.yaml").read_text(encoding="utf-8")
    path.write_text(with_recipe(path.read_text(encoding="utf-8"), fast), encoding="utf-8")
    project.choose("model.widths", [8, 12])  # the digits are small
    project.choose("train.batch_size", 64)
    project.choose("train.epochs", 12)
    project.choose("train.checkpoint_minutes", 1e-9)
    project.choose("runtime.precision", precision)
    project.choose("runtime.strategy", strategy)
    project.choose("runtime.devices", devices)
    project.choose("runtime.emulate", True)  # CI's processors need not compute in bfloat16
    other = project.copy(tmp_path / "other")
    other.run(*COMMAND)
    process = start(project)
    wait_for_checkpoint(project, process, epoch=4)
    process.kill()
    process.communicate()
    assert "train: resuming after epoch " in project.run(*COMMAND).stderr
    assert outputs(project) == outputs(other)


def test_ctrl_c_ends_with_one_line_and_keeps_the_checkpoint(
    project: Project, training: "subprocess.Popen[str]"
) -> None:
    training.send_signal(signal.SIGINT)
    _, errors = training.communicate(timeout=30)
    assert training.returncode == 130
    assert errors.splitlines()[-1] == "train: stopped by Ctrl-C"
    assert "Traceback" not in errors
    assert any(project.folder.glob("checkpoints/*.npz"))
    assert not (project.folder / "models/model.keras").exists()


def test_a_second_trainer_is_refused_while_the_first_lives(
    project: Project, training: "subprocess.Popen[str]"
) -> None:
    training.send_signal(signal.SIGSTOP)  # alive, as a trainer whose `dvc` was killed
    second = project.run(*COMMAND, check=False)
    assert second.returncode == 1
    assert f"is locked by process {training.pid}" in second.stderr
    assert len(second.stderr.splitlines()) == 1
    os.kill(training.pid, signal.SIGCONT)


def test_a_loss_that_explodes_stops_training_and_writes_no_model(project: Project, run_here: RunHere) -> None:
    project.choose("train.learning_rate", 1e30)
    failed = run_here(project, "train")
    assert failed.returncode == 1
    assert "train: the loss is " in failed.stderr
    assert "in epoch 1, step " in failed.stderr
    assert not any((project.folder / name).exists() for name in OUTPUTS)


def test_a_changed_byte_in_the_data_is_caught_before_training(project: Project) -> None:
    path = project.folder / "data/processed/train.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    failed = project.run(*COMMAND, check=False)
    assert failed.returncode == 1
    assert "data/processed/train.npz" in failed.stderr
    assert "dvc repro" in failed.stderr
    assert "epoch" not in failed.stderr


@pytest.mark.parametrize(
    "value", [".", "nowhere.Callback", "stages.training.identity.run_key", "keras.callbacks.Nothing"]
)
def test_a_callback_that_cannot_be_made_is_named(project: Project, run_here: RunHere, value: str) -> None:
    project.choose("train.callbacks", [value])
    failed = run_here(project, "train")
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"train: train.callbacks: '{value}' cannot be created:")


def test_a_callable_that_makes_no_callback_is_named(project: Project, run_here: RunHere) -> None:
    project.choose("train.callbacks", ["os.getcwd"])
    failed = run_here(project, "train")
    assert failed.returncode == 1
    assert (
        failed.stderr
        == "train: train.callbacks: 'os.getcwd' is not a Keras callback; name a class: module.Class\n"
    )


def test_a_key_without_effect_is_said(project: Project, run_here: RunHere) -> None:
    project.choose("train.momentum", 0.9)
    project.choose("train.epochs", 1)
    done = run_here(project, "train")
    assert done.returncode == 0
    assert "train: train.momentum has no effect with optimizer adam" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["stages/train.py", "stages/training/fused_adam.py", "stages/model/archive.py", "mine.py"]
)
def test_checkpoints_of_other_code_are_ignored_and_said_so(project: Project, name: str) -> None:
    (project.folder / "mine.py").write_text("from keras.callbacks import Callback as Mine\n", encoding="utf-8")
    project.choose("train.callbacks", ["mine.Mine"])
    process = start(project)
    wait_for_checkpoint(project, process)
    process.kill()
    process.communicate()
    project.touch(name)
    second = start(project)
    assert second.stderr is not None
    assert any("belong to other params, data or code and are ignored" in line for line in second.stderr)
    second.kill()
    second.communicate()


def test_the_key_of_checkpoints_covers_all_the_code_that_dvc_yaml_lists() -> None:
    covered = set(code_files([]).values())
    deps = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]["train"]["deps"]
    code = [ROOT / dep for dep in deps if dep.startswith("stages/")]
    assert covered == {file for path in code for file in ([path] if path.is_file() else path.rglob("*.py"))}


def test_the_key_of_checkpoints_covers_the_files_of_callbacks() -> None:
    assert code_files(["json.decoder.JSONDecoder"])["json.decoder"] == Path(json.decoder.__file__)


def test_a_person_s_own_callback_is_called(project: Project) -> None:
    (project.folder / "mine.py").write_text(
        "import keras\n\n\nclass Mine(keras.callbacks.Callback):\n"
        "    def on_train_end(self, logs=None):\n        print('mine was called')\n",
        encoding="utf-8",
    )
    project.choose("train.callbacks", ["mine.Mine"])
    project.choose("train.epochs", 1)
    assert "mine was called" in project.run(*COMMAND).stdout


def test_tensorboard_s_logs_are_written_and_git_ignores_them(project: Project, run_here: RunHere) -> None:
    project.choose("train.epochs", 1)
    assert run_here(project, "train").returncode == 0
    assert any(project.folder.glob("logs/tensorboard/*/train/events.out.*"))
    assert any(project.folder.glob("logs/tensorboard/*/validation/events.out.*"))
