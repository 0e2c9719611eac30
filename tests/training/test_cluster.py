"""training/cluster.py in one process: who takes part, and how work is divided. See also test_distributed.py."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Literal

import numpy as np
import pytest
import tensorflow as tf

from stages.common.failure import StageError
from stages.model.runtime import RuntimeParams
from stages.training.cluster import WATCH, Cluster, Worker, alone, joined, read_cluster
from stages.training.loop import replica_slices
from tools.launch import free_ports

pytestmark = pytest.mark.usefixtures("started")

HOSTS = ["a:1", "b:2", "c:3"]


def tf_config(cluster: object, job: str, index: object) -> dict[str, str]:
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": job, "index": index}})}


@pytest.mark.parametrize(
    ("cluster", "job", "index", "rank"),
    [
        ({"worker": HOSTS}, "worker", 0, 0),
        ({"worker": HOSTS}, "worker", "2", 2),  # some schedulers write it as text
        ({"worker": HOSTS[1:], "chief": HOSTS[:1]}, "chief", 0, 0),
        ({"worker": HOSTS[1:], "chief": HOSTS[:1]}, "worker", 1, 2),
        ({"worker": HOSTS, "evaluator": ["d:4"]}, "worker", 1, 1),
    ],
)
def test_the_chief_is_first_and_the_others_follow(cluster: object, job: str, index: object, rank: int) -> None:
    workers, found = read_cluster(tf_config(cluster, job, index))
    assert found == rank
    assert [worker.address for worker in workers] == HOSTS


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({}, r"^runtime\.strategy: multi_worker needs TF_CONFIG, or SLURM's srun"),
        ({"TF_CONFIG": "{"}, "^TF_CONFIG: JSONDecodeError: .* write it like "),
        ({"TF_CONFIG": "[]"}, "^TF_CONFIG: TypeError"),
        (
            tf_config({"worker": ["a"]}, "worker", 0),
            "^TF_CONFIG: ValueError: host:port expected, found worker 0 at a;",
        ),
        (tf_config({"worker": ["a:99999"]}, "worker", 0), "^TF_CONFIG: ValueError: host:port expected, found"),
        (
            tf_config({"worker": ["a:1", "a:1"]}, "worker", 0),
            "^TF_CONFIG: ValueError: a:1 is listed more",
        ),
        (tf_config({"worker": HOSTS}, "worker", 3), "^TF_CONFIG: ValueError"),
        (tf_config({"worker": HOSTS}, "ps", 0), "^TF_CONFIG: ValueError"),
        (tf_config({"worker": 5}, "worker", 0), "^TF_CONFIG: TypeError"),
        (
            {"SLURM_PROCID": "0", "SLURM_JOB_ID": "7"},
            "^SLURM's variables do not describe .* start the training with",
        ),
        (
            {
                "SLURM_PROCID": "2",
                "SLURM_JOB_ID": "7",
                "SLURM_STEP_NODELIST": "n[1-2]",
                "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
            },
            "^SLURM's variables do not describe a cluster .*rank 2 of 2",
        ),
    ],
)
def test_an_environment_that_names_no_cluster_is_refused(environment: Mapping[str, str], problem: str) -> None:
    with pytest.raises(StageError, match=problem):
        read_cluster(environment)


def runtime(strategy: Literal["single", "mirrored", "multi_worker"], devices: int) -> RuntimeParams:
    return RuntimeParams(
        threads=1, cpu_isa="native", precision="float32", emulate=False, strategy=strategy, devices=devices
    )


@pytest.mark.parametrize("seconds", ["nan", "inf", "0", "-1", "soon", ""])
def test_a_patience_that_is_no_time_is_refused(monkeypatch: pytest.MonkeyPatch, seconds: str) -> None:
    monkeypatch.setenv("CLUSTER_SECONDS", seconds)
    monkeypatch.setenv("TF_CONFIG", tf_config({"worker": HOSTS}, "worker", 0)["TF_CONFIG"])
    params = runtime("multi_worker", devices=1)
    with (
        pytest.raises(StageError, match=r"^CLUSTER_SECONDS: expected a number of seconds above 0"),
        joined(params),
    ):
        pass


def test_the_patience_is_one_for_all_however_many_do_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as opened:
        # Another connection waits for a place in the queue: for two seconds, as to a host that is switched off.
        full = [opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0)) for _ in range(4)]
        addresses = [f"127.0.0.1:{server.getsockname()[1]}" for server in full]
        for server in full:
            for _ in range(2):
                client = opened.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex(server.getsockname())
        own = f"127.0.0.1:{free_ports(1)[0]}"
        monkeypatch.setenv("TF_CONFIG", tf_config({"worker": [own, *addresses]}, "worker", 0)["TF_CONFIG"])
        monkeypatch.setenv("CLUSTER_SECONDS", "1")
        began = time.monotonic()
        with (
            pytest.raises(StageError, match=r"^no answer from worker 1 at .*, worker 4 at \S+ within 1 seconds "),
            joined(runtime("multi_worker", devices=1)),
        ):
            pass
        assert time.monotonic() - began < 2


def test_the_watch_of_a_process_that_cannot_be_killed_says_so_once_and_ends() -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("only root, on Linux, may make a process that is the first, as in a container")
    first = """
import os, subprocess, sys
watch = [sys.executable, "-I", "-c", sys.argv[1], str(os.getpid()), "0.1", "too late"]
subprocess.run(watch, check=True, timeout=20)
"""
    command = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", first, WATCH]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if "unshare failed" in done.stderr:
        pytest.skip(f"no process can be made the first here: {done.stderr.strip()}")
    assert (done.returncode, done.stderr) == (0, "too late\n")


def test_slurm_s_variables_name_the_cluster_in_the_order_of_its_ranks() -> None:
    slurm = {
        "SLURM_JOB_ID": "71234",
        "SLURM_PROCID": "2",
        "SLURM_STEP_NODELIST": "n[9-10],m1",
        "SLURM_STEP_TASKS_PER_NODE": "1,2,1",
    }
    workers, rank = read_cluster(slurm)
    assert [str(worker) for worker in workers] == [
        "worker 0 at n9:21234",
        "worker 1 at n10:21234",
        "worker 2 at n10:21235",
        "worker 3 at m1:21234",
    ]
    assert rank == 2


@pytest.mark.parametrize("replicas", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("batch", [1, 2, 7, 32])
def test_each_image_of_a_batch_is_one_device_s(replicas: int, batch: int) -> None:
    places = np.concatenate([replica_slices(batch, range(one, one + 1), replicas)[0] for one in range(replicas)])
    counted = np.arange(len(places)) < batch  # as in the step
    assert places[counted].tolist() == list(range(batch))
    assert (places[~counted] == batch - 1).all()
    assert replica_slices(batch, range(replicas), replicas).ravel().tolist() == places.tolist()


def cluster(size: int, rank: int) -> Cluster:
    workers = tuple(Worker("worker", index, f"host{index}:1") for index in range(size))
    return Cluster(tf.distribute.get_strategy(), workers, rank)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [1, 500, 501, 10_000])
def test_each_item_is_one_process_s_and_units_stay_whole(size: int, count: int) -> None:
    parts = [cluster(size, rank).worker_slice(count, 500) for rank in range(size)]
    assert [index for part in parts for index in range(count)[part]] == list(range(count))
    assert all(part.start % 500 == 0 for part in parts)


def test_a_process_alone_is_the_chief_and_agrees_with_itself() -> None:
    one = alone()
    assert (one.chief, one.size, one.replicas) == (True, 1, 1)
    one.agree({"code": "ab" * 32})
    assert one.broadcast(b"content") == b"content"


def test_another_error_of_tensorflow_is_not_taken_for_a_lost_process() -> None:
    with pytest.raises(tf.errors.InvalidArgumentError), cluster(2, 0).watched():
        raise tf.errors.InvalidArgumentError(None, None, "shapes differ")


def test_devices_that_no_strategy_uses_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    params = runtime("single", devices=2)
    with joined(params) as one:
        assert one.replicas == 1
    assert capsys.readouterr().err == "train: runtime.devices has no effect with strategy single\n"


def test_more_gpus_than_there_are_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["one"])
    params = runtime("mirrored", devices=2)
    with (
        pytest.raises(StageError, match=r"^runtime\.devices: 2 requested, but TensorFlow finds only 1 GPUs"),
        joined(params),
    ):
        pass
