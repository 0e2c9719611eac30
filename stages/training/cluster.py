"""The devices and machines of one training: TensorFlow's strategy for them, and what its processes exchange.

Each process of a cluster runs the same command; the first of them is the chief, which alone writes files. They
find each other by TF_CONFIG (as Kubeflow and others set it) or by SLURM's variables, and never by params.yaml:
where a run is computed is no choice of its result.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.python.distribute.cluster_resolver.slurm_cluster_resolver import (
    expand_hostlist,
    expand_tasks_per_node,
)

from stages.common.failure import StageError
from stages.model.runtime import RuntimeParams

# How long a process waits for the others to answer, and then for them to take part. Once training has begun,
# TensorFlow itself misses one that is gone at once, and one that is cut off after ten seconds without heartbeat.
SECONDS_VARIABLE = "CLUSTER_SECONDS"
SECONDS = 60.0
PROBE_SECONDS, PAUSE_SECONDS = 2.0, 0.2  # for an address to answer; before it is asked again
JOBS = ("chief", "worker")  # in the order of their ranks
# SLURM says which hosts a job has, but no port; one made of the job's number keeps two jobs on a host apart.
SLURM_PORTS = 20_000, 10_000  # the first, how many

WATCH = """
import os, signal, sys, time
process, deadline = int(sys.argv[1]), time.monotonic() + float(sys.argv[2])
while os.getppid() == process:
    if time.monotonic() > deadline:
        print(sys.argv[3], file=sys.stderr, flush=True)
        os.kill(process, signal.SIGKILL)
        break  # whatever came of it: a container's first process cannot be killed from inside
    time.sleep(0.2)
else:
    print("train: ended while it joined the others", file=sys.stderr, flush=True)
"""

AGAIN = "then start all again; the chief resumes from its last checkpoint"
README = "see 'Several machines' in the README"


@dataclass(frozen=True)
class Worker:
    """A process of the cluster, as TF_CONFIG names it."""

    job: str
    index: int
    address: str

    @property
    def host(self) -> str:
        """The part of the address before its port, an IPv6 one without brackets."""
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port of the address."""
        return int(self.address.rpartition(":")[2])

    def __str__(self) -> str:
        """Tell which it is and where, for messages."""
        return f"{self.job} {self.index} at {self.address}"


@dataclass(frozen=True)
class Cluster:
    """The processes that train one model together; without a cluster, this process alone."""

    strategy: tf.distribute.Strategy
    workers: tuple[Worker, ...] = ()  # the chief first; empty when this process is alone
    rank: int = 0  # of this process among them

    @property
    def chief(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    @property
    def size(self) -> int:
        """The number of processes."""
        return max(1, len(self.workers))

    @property
    def replicas(self) -> int:
        """The number of devices, over all processes, that share each batch."""
        return int(self.strategy.num_replicas_in_sync)

    @property
    def local_replicas(self) -> range:
        """Which of the replicas are this process's."""
        each = self.replicas // self.size
        return range(self.rank * each, (self.rank + 1) * each)

    def part(self, count: int, unit: int) -> slice:
        """Return this process's part of `count` items, cut only between whole `unit`s of them."""
        units = -(-count // unit)
        start, stop = (-(-rank * units // self.size) * unit for rank in (self.rank, self.rank + 1))
        return slice(start, stop)

    def agree(self, digests: Mapping[str, str]) -> None:
        """Raise `StageError` on every process when one has not the chief's `digests`, SHA-256 in hex by name."""
        mine = np.frombuffer(bytes.fromhex("".join(digests.values())), np.uint8)
        table = np.zeros((self.size, len(mine)), np.uint8)
        table[self.rank] = mine
        per_digest = self.total(table).reshape(self.size, len(digests), -1)
        for worker, other in zip(self.workers, (per_digest != per_digest[0]).any(axis=2), strict=False):
            if other.any():
                names = " and ".join(name for name, differs in zip(digests, other, strict=True) if differs)
                raise StageError(
                    f"{worker} has not the {names} of {self.workers[0]}: bring both to the same commit, "
                    f"params.yaml, data/processed and installed packages, {AGAIN}"
                )

    def share(self, content: bytes) -> bytes:
        """Return the chief's `content` on every process; that of the others is not read."""
        content = content if self.chief else b""
        length = int(self.total(np.array([len(content)], np.int64))[0])
        padded = np.zeros(length, np.uint8)
        padded[: len(content)] = np.frombuffer(content, np.uint8)
        return self.total(padded).tobytes()

    def total(self, mine: NDArray[Any]) -> NDArray[Any]:
        """Return what all processes give, each its own part of an array that is zero elsewhere.

        The parts are put together bit by bit: also floating-point numbers arrive as they were.
        """
        if self.size == 1 or not mine.size:  # TensorFlow ends in a segmentation fault when it sums nothing
            return mine
        content = mine.tobytes()
        words = np.frombuffer(content + bytes(-len(content) % 4), np.int32)
        return np.frombuffer(self._sum(words).tobytes()[: len(content)], mine.dtype).reshape(mine.shape)

    def _sum(self, words: NDArray[np.int32]) -> NDArray[np.int32]:
        with self.strategy.scope():
            total = self._compiled_sum(words)
        return np.asarray(self.strategy.experimental_local_results(total)[0].numpy())

    @cached_property
    def _compiled_sum(self) -> Any:
        first = self.local_replicas[0]  # it alone counts, as each device of a process is given the same

        def one(values: tf.Tensor) -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            counts = tf.cast(tf.equal(context.replica_id_in_sync_group, first), tf.int32)
            return context.all_reduce(tf.distribute.ReduceOp.SUM, values * counts)

        signature = [tf.TensorSpec((None,), tf.int32)]
        return tf.function(lambda values: self.strategy.run(one, args=(values,)), input_signature=signature)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Turn TensorFlow's error for a process that is gone into a `StageError` that names it."""
        try:
            yield
        except tf.errors.OpError as error:
            lost = re.search(r"/job:(\w+)/(?:replica:\d+/)?task:(\d+)", error.message.partition("aborted by")[2])
            if self.size == 1 or not re.search("aborted by|CoordinationService", error.message):
                raise
            named = [each for each in self.workers if lost and lost.groups() == (each.job, str(each.index))]
            # TensorFlow names nobody when it is the chief, which counts the heartbeats, that is silent.
            gone = (named or self.workers)[0]
            raise StageError(f"{gone} is gone or cannot be reached: see its own last line, {AGAIN}") from None


def alone() -> Cluster:
    """Return the cluster of this process alone, on TensorFlow's default device."""
    return Cluster(tf.distribute.get_strategy())


@contextmanager
def joined(params: RuntimeParams) -> Iterator[Cluster]:
    """Give the cluster that `params.strategy` and the environment describe, complete, its strategy in scope.

    Raises `StageError` when the environment or the machine has not what `params` ask for, or when a process of the
    cluster is gone, or not there in time.
    """
    if params.devices > 1 and params.strategy != "mirrored":
        print(f"train: runtime.devices has no effect with strategy {params.strategy}", file=sys.stderr)
    match params.strategy:
        case "single":
            cluster = Cluster(tf.distribute.get_strategy())
        case "mirrored":
            cluster = Cluster(tf.distribute.MirroredStrategy(_devices(params.devices)))
        case "multi_worker":
            cluster = _join(*read_cluster(os.environ))
    with cluster.strategy.scope(), cluster.watched():
        yield cluster


def read_cluster(environment: Mapping[str, str]) -> tuple[tuple[Worker, ...], int]:
    """Return the processes that `environment` names, the chief first, and the rank of this one.

    Raises `StageError` when it names none, or not as TF_CONFIG has to.
    """
    if "TF_CONFIG" in environment:
        return _read_tf_config(environment["TF_CONFIG"])
    if "SLURM_PROCID" in environment:
        return _read_slurm(environment)
    raise StageError(f"runtime.strategy: multi_worker needs TF_CONFIG, or to be run by SLURM's srun; {README}")


def _read_slurm(environment: Mapping[str, str]) -> tuple[tuple[Worker, ...], int]:
    # TensorFlow's SlurmClusterResolver itself sorts the hosts, n10 before n9, and the ranks are not in that order.
    first, count = SLURM_PORTS
    try:
        port, rank = first + int(environment["SLURM_JOB_ID"]) % count, int(environment["SLURM_PROCID"])
        hosts = expand_hostlist(environment["SLURM_STEP_NODELIST"])
        tasks = expand_tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"])
        addresses = [
            f"{host}:{port + task}" for host, each in zip(hosts, tasks, strict=True) for task in range(each)
        ]
        if rank >= len(addresses):
            raise ValueError(f"rank {rank} of {len(addresses)}")
    except (LookupError, ValueError) as error:
        raise StageError(
            f"SLURM's variables do not tell the cluster ({error}): start the training by srun; {README}"
        ) from None
    return tuple(Worker("worker", *each) for each in enumerate(addresses)), rank


def _read_tf_config(text: str) -> tuple[tuple[Worker, ...], int]:
    try:
        config = json.loads(text)
        jobs, task = config["cluster"], config["task"]
        workers = tuple(Worker(job, *each) for job in JOBS for each in enumerate(jobs.get(job, [])))
        for worker in workers:
            if not re.fullmatch(r".+:[0-9]+", worker.address) or not 0 < worker.port < 2**16:
                raise ValueError(f"host:port expected, found {worker}")
            if [each.address for each in workers].count(worker.address) > 1:
                raise ValueError(f"{worker.address} is there more than once")
        rank = [(worker.job, worker.index) for worker in workers].index((task["type"], int(task["index"])))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise StageError(
            f"TF_CONFIG: {type(error).__name__}: {error}; it has to be like "
            '{"cluster": {"worker": ["host:port", "host:port"]}, "task": {"type": "worker", "index": 0}}'
        ) from None
    return workers, rank


def _devices(count: int) -> list[str]:
    """The names of `count` GPUs, or on a machine without any, of as many devices on its CPU."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        if len(gpus) < count:
            raise StageError(f"runtime.devices: {count} asked for, and TensorFlow finds {len(gpus)} GPUs")
        return [f"GPU:{index}" for index in range(count)]
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * count
    )
    return [f"CPU:{index}" for index in range(count)]


def _join(workers: tuple[Worker, ...], rank: int) -> Cluster:
    seconds = _patience(os.environ.get(SECONDS_VARIABLE, str(SECONDS)))
    others = [*workers[:rank], *workers[rank + 1 :]]
    _wait_for(others, workers[rank], seconds)
    # gRPC would ask a proxy of the environment for these hosts, too.
    os.environ["no_grpc_proxy"] = ",".join(each.host for each in workers)  # noqa: SIM112, gRPC reads it in small letters
    # TensorFlow 2.21 ends in a segmentation fault when a job has no process.
    jobs = {each.job: [other.address for other in workers if other.job == each.job] for each in workers}
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(jobs),
        task_type=workers[rank].job,
        task_id=workers[rank].index,
        rpc_layer="grpc",
    )
    try:
        with _ended_after(seconds, others):
            cluster = Cluster(tf.distribute.MultiWorkerMirroredStrategy(resolver), workers, rank)
            with cluster.watched():
                cluster.total(np.zeros(1, np.int32))  # returns when all are there
        # TensorFlow has begun to keep it for itself, as a notice that it does nothing about.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    except tf.errors.OpError as error:
        raise StageError(
            f"{workers[rank]}: TensorFlow cannot join the others: {error.message.splitlines()[0]}; {README}"
        ) from None
    return cluster


def _patience(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise StageError(f"{SECONDS_VARIABLE}: a number of seconds above 0 expected, found '{text}'")
    return seconds


@contextmanager
def _ended_after(seconds: float, others: Sequence[Worker]) -> Iterator[None]:
    """End this process, with one line, when the block takes longer; and on Ctrl-C at once.

    From outside it, as TensorFlow waits for the others without end and holds Python's lock meanwhile: when one
    dies at this moment, is another program, or knows another cluster.
    """
    line = (
        f"train: {_listed(others)}: not all take part within {seconds:g} seconds ({SECONDS_VARIABLE}), though all "
        "answer: is each of them this training, told of the same cluster? then start all again"
    )
    watch = subprocess.Popen(
        [sys.executable, "-I", "-c", WATCH, str(os.getpid()), str(seconds), line],
        start_new_session=True,  # or Ctrl-C would end it, too
    )
    interrupted = signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own handler needs the lock
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, interrupted)
        watch.kill()
        watch.wait()


def _wait_for(others: Sequence[Worker], own: Worker, seconds: float) -> None:
    """Return when all listen, and this one at its own address; TensorFlow's own wait knows no end."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        server = socket.create_server(("", own.port), family=family, backlog=len(others) + 1, dualstack_ipv6=both)
    except OSError as error:
        raise StageError(
            f"{own}: {os.strerror(error.errno or 0)}: stop what listens at port {own.port}, or name another in "
            "TF_CONFIG; another job of SLURM has another"
        ) from None
    answered: list[Worker] = []
    deadline = time.monotonic() + seconds

    def ask(worker: Worker) -> None:
        while not _answers(worker):
            if time.monotonic() > deadline:
                return
            time.sleep(PAUSE_SECONDS)
        answered.append(worker)

    with server:
        # All at once, in threads that may be left behind: the look-up of a host's name can take for ever.
        asking = [threading.Thread(target=ask, args=(worker,), daemon=True) for worker in others]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join(max(0.0, deadline - time.monotonic()))
    silent = [worker for worker in others if worker not in answered]
    if silent:
        raise StageError(
            f"no answer from {_listed(silent)} within {seconds:g} seconds ({SECONDS_VARIABLE}): start each worker "
            "once, told of the same cluster, then start all again"
        )


def _listed(workers: Sequence[Worker]) -> str:
    return ", ".join(map(str, workers))


def _answers(worker: Worker) -> bool:
    try:
        socket.create_connection((worker.host, worker.port), PROBE_SECONDS).close()
    except (OSError, UnicodeError):  # the latter for a name that cannot be one
        return False
    return True
