"""One training by several processes: as good as one's, the same bytes twice, and an end when one is gone."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest

from tests.project import ROOT, Project
from tools.launch import free_ports

pytestmark = pytest.mark.slow

BOUND = 60  # seconds in which all end when one is gone
# A person's own callbacks: one keeps every loss it receives, one stops the training.
RECORD = """
import os, signal, keras

class Losses(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        with open(os.environ["LOSSES"], "a") as file:
            print(batch, logs["loss"].hex(), logs["accuracy"].hex(), file=file)

class Stop(keras.callbacks.Callback):  # where a file says so
    def on_train_batch_end(self, batch, logs=None):
        if os.path.exists(os.environ["LOSSES"] + "-stop"):
            self.model.stop_training = True

    def on_epoch_end(self, epoch, logs=None):
        if os.path.exists(os.environ["LOSSES"] + "-kill"):
            os.kill(os.getpid(), signal.SIGKILL)
"""
# 1,149 images: two whole batches, and a last one that two and four devices cannot share equally.
CHOICES: dict[str, Any] = {
    "train.epochs": 3,
    "train.batch_size": 400,
    "train.flip": True,
    "train.shift": 1,
    "train.resized_crop": 0.7,
    "train.rotation": 10,
    "train.color_jitter": 0.2,
    "train.cutout": 2,
    "train.mixup": 0.2,
    "train.class_weights": {"0": 2, "9": 0.5},
    "train.clip_norm": 0.5,
    "train.checkpoint_minutes": 1e-9,
    "train.callbacks": ["record.Losses", "record.Stop"],
    "runtime.threads": 1,
}
DROPOUT: dict[str, Any] = {
    "model.blocks": [{"filters": 8, "layers": 1, "pool": 2, "dropout": 0.1}],
    "model.dropout": 0.5,
    "runtime.devices": 1,
}
NO_DROPOUT: dict[str, Any] = {
    **DROPOUT,
    "model.blocks": [{"filters": 8, "layers": 1, "pool": 2, "dropout": 0}],
    "model.dropout": 0,
}


@dataclass
class Trainers:
    """The processes of one training, and how each ended."""

    processes: list["subprocess.Popen[str]"]
    outs: list[Path]
    codes: list[int] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def finish(self, seconds: float = BOUND) -> None:
        """Wait for all to end; those that do not are the test's failure."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            _, error = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
            self.errors.append(error)
            self.codes.append(process.returncode)

    def wait_for_checkpoint(self) -> None:
        """Wait until the chief has written one."""
        wait_until(lambda: any((self.outs[0] / "checkpoints").glob("*.npz")))


@pytest.fixture(scope="module")
def project(first_run: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The small project, its data made, with `CHOICES`; tests change params.yaml in copies of it."""
    project = first_run.copy(tmp_path_factory.mktemp("distributed") / "project")
    (project.folder / "record.py").write_text(RECORD)
    for key, value in {**CHOICES, **DROPOUT}.items():
        project.choose(key, value)
    return project


@contextmanager
def training(
    project: Project,
    out: Path,
    strategy: str,
    size: int = 1,
    *,
    present: Sequence[int] | None = None,
    folders: Mapping[int, Path] | None = None,
    addresses: Sequence[str] = (),
    prefixes: Sequence[Sequence[str]] = (),
    environment: Mapping[str, str] | None = None,
    choices: Mapping[str, Any] = DROPOUT,
) -> Iterator[Trainers]:
    """Start a training by `size` processes, or by those that are `present`, and stop what is left of it."""
    for key, value in {"runtime.strategy": strategy, **choices}.items():
        project.choose(key, value)
    addresses = addresses or [f"127.0.0.1:{port}" for port in free_ports(size)]
    with ExitStack() as started:
        processes, outs = [], []
        for index in present if present is not None else range(size):
            outs.append(out / str(index))
            (out / str(index)).mkdir(parents=True, exist_ok=True)
            task = {"cluster": {"worker": list(addresses)}, "task": {"type": "worker", "index": index}}
            cluster = {"TF_CONFIG": json.dumps(task)} if strategy == "multi_worker" else {}
            process = subprocess.Popen(
                [*(prefixes[index] if prefixes else ()), sys.executable, "-m", "stages.train", *options(outs[-1])],
                cwd=(folders or {}).get(index, project.folder),
                env={
                    **project.environment,
                    **cluster,
                    "LOSSES": str(outs[-1] / "losses"),
                    **(environment or {}),
                },
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,  # its own process group, as a terminal's command is
            )
            started.callback(kill, process)
            processes.append(process)
        yield Trainers(processes, outs)


def options(out: Path) -> list[str]:
    places = {
        "model": "models/model.keras",
        "metrics": "train.csv",
        "history": "history.csv",
        "environment": "environment.json",
        "logs": "logs",
        "checkpoints": "checkpoints",
    }
    return [part for name, place in places.items() for part in (f"--{name}", str(out / place))]


def kill(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


def wait_until(happened: Any) -> None:
    deadline = time.monotonic() + BOUND
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def losses(out: Path) -> list[tuple[float, float]]:
    lines = [line.split() for line in (out / "losses").read_text().splitlines()]
    return [(float.fromhex(loss), float.fromhex(accuracy)) for _, loss, accuracy in lines]


def results(out: Path) -> list[bytes]:
    return [(out / name).read_bytes() for name in ("models/model.keras", "train.csv", "history.csv")]


def trained(
    project: Project, out: Path, strategy: str, size: int = 1, choices: Mapping[str, Any] = DROPOUT, **more: Any
) -> Path:
    """Train to the end and return the chief's folder."""
    with training(project, out, strategy, size, choices=choices, **more) as trainers:
        trainers.finish()
    assert trainers.codes == [0] * len(trainers.codes), trainers.errors
    return trainers.outs[0]


@pytest.fixture(scope="module")
def alone(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one device makes, without dropout."""
    return trained(project, tmp_path_factory.mktemp("alone"), "single", choices=NO_DROPOUT)


@pytest.fixture(scope="module")
def two(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two workers make, with dropout."""
    return trained(project, tmp_path_factory.mktemp("two"), "multi_worker", 2)


@pytest.mark.parametrize(
    ("strategy", "size", "devices"),
    [
        ("multi_worker", 2, 1),
        pytest.param("multi_worker", 4, 1, marks=pytest.mark.long),
        pytest.param("mirrored", 1, 4, marks=pytest.mark.long),
    ],
)
def test_without_dropout_more_devices_have_the_losses_of_one_step_by_step(
    project: Project, alone: Path, tmp_path: Path, strategy: str, size: int, devices: int
) -> None:
    chief = trained(project, tmp_path, strategy, size, {**NO_DROPOUT, "runtime.devices": devices})
    assert len(losses(chief)) == 3 * 3
    np.testing.assert_allclose(losses(chief), losses(alone), rtol=2e-5)
    ours, theirs = (pd.read_csv(folder / "history.csv") for folder in (chief, alone))
    np.testing.assert_allclose(ours, theirs, rtol=2e-5)


def test_only_the_chief_writes(two: Path) -> None:
    assert sorted(path.name for path in (two.parent / "0").iterdir()) == [
        "environment.json",
        "history.csv",
        "logs",
        "losses",
        "models",
        "train.csv",
        "train.json",
    ]
    assert [path.name for path in (two.parent / "1").iterdir()] == ["losses"]
    assert json.loads((two / "environment.json").read_bytes())["replicas"] == 2


def test_two_runs_by_two_workers_and_one_by_two_devices_have_the_same_bytes(
    project: Project, two: Path, tmp_path: Path
) -> None:
    again = trained(project, tmp_path / "again", "multi_worker", 2)
    assert results(again) == results(two)
    mirrored = trained(project, tmp_path / "mirrored", "mirrored", choices={**DROPOUT, "runtime.devices": 2})
    assert results(mirrored) == results(two)


@pytest.mark.parametrize(
    ("victim", "number"),
    [
        (0, signal.SIGKILL),
        (1, signal.SIGKILL),
        pytest.param(1, signal.SIGTERM, marks=pytest.mark.long),
    ],
)
def test_a_killed_process_is_named_and_the_next_run_ends_as_one_that_was_not_killed(
    project: Project, two: Path, tmp_path: Path, victim: int, number: signal.Signals
) -> None:
    with training(project, tmp_path, "multi_worker", 2) as trainers:
        trainers.wait_for_checkpoint()
        trainers.processes[victim].send_signal(number)
        trainers.finish()
    other = 1 - victim
    assert trainers.codes[victim] == -number
    assert trainers.codes[other] == 1
    last = trainers.errors[other].splitlines()[-1]
    assert re.fullmatch(
        rf"train: worker {victim} at \S+ died or cannot be reached\. See its own last line, then restart all "
        "workers; training resumes from the chief's last checkpoint",
        last,
    )
    assert "Traceback" not in trainers.errors[other]

    with training(project, tmp_path, "multi_worker", 2) as again:
        again.finish()
    assert again.codes == [0, 0]
    assert "train: resuming after epoch " in again.errors[0]
    assert results(again.outs[0]) == results(two)


@pytest.mark.long
def test_a_stop_by_any_worker_ends_the_epoch_of_all_and_is_kept_when_the_run_is_killed(
    project: Project, tmp_path: Path
) -> None:
    files = [tmp_path / "1" / "losses-stop", tmp_path / "0" / "losses-kill"]
    for file in files:
        file.parent.mkdir()
        file.touch()
    with training(project, tmp_path, "multi_worker", 2) as trainers:
        trainers.finish()
    assert trainers.codes == [-signal.SIGKILL, 1]
    for file in files:
        file.unlink()
    chief = trained(project, tmp_path, "multi_worker", 2)
    assert [len(losses(folder)) for folder in (chief, tmp_path / "1")] == [1, 1]  # of three in each epoch
    assert len(pd.read_csv(chief / "history.csv")) == 1


@pytest.mark.long
def test_a_worker_that_never_comes_is_named(project: Project, tmp_path: Path) -> None:
    waits = {"CLUSTER_SECONDS": "8"}
    with training(project, tmp_path, "multi_worker", 3, present=[0, 1], environment=waits) as trainers:
        trainers.finish(30)
    assert trainers.codes == [1, 1]
    for error in trainers.errors:
        assert re.fullmatch(
            r"train: no answer from worker 2 at \S+ within 8 seconds \(CLUSTER_SECONDS\)\. Start each worker "
            r"once, with the same cluster configuration\n",
            error,
        )


@pytest.mark.long
def test_a_worker_that_comes_late_is_waited_for(project: Project, two: Path, tmp_path: Path) -> None:
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    with training(project, tmp_path, "multi_worker", 2, present=[0], addresses=addresses) as first:
        wait_until(lambda: answers(addresses[0]))
        time.sleep(2)
        with training(project, tmp_path, "multi_worker", 2, present=[1], addresses=addresses) as second:
            first.finish()
            second.finish()
    assert first.codes + second.codes == [0, 0]
    assert results(first.outs[0]) == results(two)


def answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except OSError:
        return False
    return True


@pytest.mark.long
@pytest.mark.parametrize("other", ["params", "code", "data"])
def test_a_worker_with_another_training_is_refused_by_all(project: Project, tmp_path: Path, other: str) -> None:
    elsewhere = project.copy(tmp_path / "elsewhere")
    elsewhere.choose("runtime.strategy", "multi_worker")
    match other:
        case "params":
            elsewhere.choose("train.learning_rate", 0.5)
        case "code":
            elsewhere.touch("stages/training/step.py")
        case "data":
            elsewhere.choose("preprocess.validation_split", "stratified")
            assert elsewhere.repro("preprocess") == ["preprocess"]
    with training(project, tmp_path, "multi_worker", 2, folders={1: elsewhere.folder}) as trainers:
        trainers.finish()
    assert trainers.codes == [1, 1]
    for error in trainers.errors:
        assert re.fullmatch(
            rf"train: worker 1 at \S+: {other} differ from those of worker 0 at \S+\. Check out .*\n", error
        )
    assert not (trainers.outs[0] / "models" / "model.keras").exists()


@pytest.mark.long
def test_another_program_at_an_address_ends_the_wait_with_one_line(project: Project, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        addresses = [f"127.0.0.1:{free_ports(1)[0]}", f"127.0.0.1:{other.getsockname()[1]}"]
        waits = {"CLUSTER_SECONDS": "5"}
        with training(
            project, tmp_path, "multi_worker", 2, present=[0], addresses=addresses, environment=waits
        ) as trainers:
            trainers.finish()
    assert trainers.codes == [-signal.SIGKILL]
    assert re.fullmatch(
        rf"train: worker 1 at {addresses[1]}: all answer, but not all joined within 5 seconds "
        r"\(CLUSTER_SECONDS\)\. Check that .*\n",
        trainers.errors[0],
    )


@pytest.mark.long
@pytest.mark.parametrize("index", [0, 1])
def test_ctrl_c_ends_a_process_that_joins_others_who_do_not_take_part(
    project: Project, tmp_path: Path, index: int
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        addresses = [f"127.0.0.1:{free_ports(1)[0]}", f"127.0.0.1:{other.getsockname()[1]}"]
        addresses = addresses if index == 0 else addresses[::-1]
        with training(project, tmp_path, "multi_worker", 2, present=[index], addresses=addresses) as trainers:
            process = trainers.processes[0]
            wait_until(lambda: any(map(watches, psutil.Process(process.pid).children())))
            time.sleep(2)  # TensorFlow waits now
            os.killpg(process.pid, signal.SIGINT)
            trainers.finish()
    assert trainers.codes == [-signal.SIGINT]
    assert trainers.errors == ["train: stopped while joining the other workers\n"]


def watches(process: psutil.Process) -> bool:
    try:
        return any("getppid" in word for word in process.cmdline())
    except psutil.Error:
        return False


@pytest.mark.long
def test_a_proxy_of_the_environment_is_not_asked(project: Project, two: Path, tmp_path: Path) -> None:
    # Where nobody answers; and no exception for this machine, as the tests' own environment may have.
    proxy = {"http_proxy": "http://127.0.0.1:9", "no_proxy": "", "no_grpc_proxy": ""}
    assert results(trained(project, tmp_path, "multi_worker", 2, environment=proxy)) == results(two)


@pytest.mark.long
def test_a_port_in_use_is_named(project: Project, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        addresses = [f"127.0.0.1:{taken.getsockname()[1]}", f"127.0.0.1:{free_ports(1)[0]}"]
        with training(project, tmp_path, "multi_worker", 2, present=[0], addresses=addresses) as trainers:
            trainers.finish()
    assert trainers.codes == [1]
    port = addresses[0].rpartition(":")[2]
    assert trainers.errors[0] == (
        f"train: worker 0 at {addresses[0]}: Address already in use: stop the program that listens on port "
        f"{port}, or choose another port in TF_CONFIG (with SLURM: submit the job again)\n"
    )


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Three network namespaces on one bridge, as three machines on one switch: 10.77.0.1 to 3."""
    if os.geteuid() != 0:
        pytest.skip("only root may make network namespaces")
    names = [f"host{index}" for index in range(3)]
    with ExitStack() as made:
        for name in ("switch", *names):
            done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"network namespaces cannot be made here: {done.stderr.strip()}")
            made.callback(ip, "netns", "del", name)
        ip("-n", "switch", "link", "add", "bridge", "type", "bridge")
        ip("-n", "switch", "link", "set", "bridge", "up")
        for index, name in enumerate(names):
            ip("-n", name, "link", "add", "wire", "type", "veth", "peer", "name", name, "netns", "switch")
            ip("-n", name, "address", "add", f"10.77.0.{index + 1}/24", "dev", "wire")
            ip("-n", name, "link", "set", "wire", "up")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", "switch", "link", "set", name, "master", "bridge", "up")
        yield names


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def on_hosts(hosts: Sequence[str]) -> dict[str, Any]:
    return {
        "addresses": [f"10.77.0.{index + 1}:2222" for index in range(len(hosts))],
        "prefixes": [["ip", "netns", "exec", name] for name in hosts],
    }


@pytest.mark.long
def test_three_hosts_train_over_a_slow_link_and_end_when_one_is_cut_off(
    project: Project, hosts: list[str], tmp_path: Path
) -> None:
    slow = ["tc", "-n", "host1", "qdisc", "add", "dev", "wire", "root", "tbf", "rate", "20mbit"]
    subprocess.run([*slow, "burst", "64kb", "latency", "50ms"], check=True)
    chief = trained(project, tmp_path / "whole", "multi_worker", 3, **on_hosts(hosts))
    with training(project, tmp_path / "cut", "multi_worker", 3, **on_hosts(hosts)) as trainers:
        trainers.wait_for_checkpoint()
        ip("-n", "switch", "link", "set", "host2", "down")
        trainers.finish()
    assert trainers.codes == [1, 1, 1]
    gone = [re.findall(r"train: worker (\d) at \S+ is gone", error) for error in trainers.errors]
    assert gone[:2] == [["2"], ["2"]]
    assert gone[2] in (["0"], ["1"])  # from where it stands, the others are

    ip("-n", "switch", "link", "set", "host2", "up")
    resumed = trained(project, tmp_path / "cut", "multi_worker", 3, **on_hosts(hosts))
    assert results(resumed) == results(chief)


@pytest.mark.long
def test_launch_trains_through_dvc_and_leaves_nothing_running(project: Project, two: Path, tmp_path: Path) -> None:
    copy = project.copy(tmp_path / "project")
    for key, value in {"runtime.strategy": "multi_worker", **DROPOUT}.items():
        copy.choose(key, value)
    environment = {**copy.environment, "LOSSES": str(tmp_path / "losses"), "PYTHONPATH": str(ROOT)}
    copy = Project(copy.folder, environment)
    launch = (sys.executable, "-m", "tools.launch", "--workers", "2")
    assert "Running stage 'train'" in copy.run(*launch).stdout
    assert (copy.folder / "models/model.keras").read_bytes() == (two / "models/model.keras").read_bytes()
    assert "Running stage" not in copy.run(*launch).stdout  # and the waiting worker is ended
    assert not [each for each in psutil.process_iter() if runs_in(each, copy.folder)]


@pytest.mark.long
def test_launch_that_is_ended_ends_all(project: Project, tmp_path: Path) -> None:
    copy = project.copy(tmp_path / "project")
    for key, value in {"runtime.strategy": "multi_worker", "train.epochs": 10_000, **DROPOUT}.items():
        copy.choose(key, value)
    environment = {**copy.environment, "LOSSES": str(tmp_path / "losses"), "PYTHONPATH": str(ROOT)}
    launch = subprocess.Popen(
        [sys.executable, "-m", "tools.launch"], cwd=copy.folder, env=environment, stdout=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: any((copy.folder / "checkpoints").glob("*.npz")))
        launch.terminate()
        assert launch.wait(BOUND) == 128 + signal.SIGTERM
    finally:
        launch.kill()
        launch.wait()
        left = [each for each in psutil.process_iter() if runs_in(each, copy.folder)]
        for each in left:
            each.kill()
    assert not left


def runs_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return Path(process.cwd()) == folder
    except psutil.Error:
        return False


def test_launch_says_which_choice_is_missing(project: Project, tmp_path: Path) -> None:
    copy = project.copy(tmp_path / "project")
    copy.choose("runtime.strategy", "single")
    copy = Project(copy.folder, {**copy.environment, "PYTHONPATH": str(ROOT)})
    refused = copy.run(sys.executable, "-m", "tools.launch", check=False)
    assert refused.returncode == 1
    assert refused.stderr == (
        "launch: params.yaml: runtime.strategy: single trains in one process; set it to multi_worker\n"
    )
