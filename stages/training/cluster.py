"""Data-parallel training on several devices or machines: the distribution strategy, and what workers exchange.

Every worker runs the same command. The first one is the chief, and only the chief writes files. Workers find each
other through TF_CONFIG, which Kubeflow and others set, or SLURM's variables. params.yaml does not list them,
because where a run is computed does not change its result.
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

# How long a worker waits for the others to answer, and then for them to join. Once training has begun, TensorFlow
# itself detects a worker that died at once, and one that is unreachable after ten seconds without a heartbeat.
SECONDS_VARIABLE = "CLUSTER_SECONDS"
SECONDS = 60.0
PROBE_SECONDS, PAUSE_SECONDS = 2.0, 0.2  # connection time-out; pause between two attempts
JOBS = ("chief", "worker")  # in the order of their ranks
# SLURM assigns hosts to a job, but no port. A port computed from the job ID keeps jobs on the same host apart.
SLURM_PORTS = 20_000, 10_000  # the first port, the number of ports

WATCH = """
import os, signal, sys, time
process, deadline = int(sys.argv[1]), time.monotonic() + float(sys.argv[2])
while os.getppid() == process:
    if time.monotonic() > deadline:
        print(sys.argv[3], file=sys.stderr, flush=True)
        os.kill(process, signal.SIGKILL)
        break  # even if this failed: the first process of a container cannot be killed from inside
    time.sleep(0.2)
else:
    print("train: stopped while joining the other workers", file=sys.stderr, flush=True)
"""

RESTART = "then restart all workers; training resumes from the chief's last checkpoint"
DOCUMENTATION = "see docs/several-machines.md"


@dataclass(frozen=True)
class Worker:
    """A process of the cluster, with its job and index in TF_CONFIG."""

    job: str
    index: int
    address: str

    @property
    def host(self) -> str:
        """The host in the address; an IPv6 address without brackets."""
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port in the address."""
        return int(self.address.rpartition(":")[2])

    def __str__(self) -> str:
        """Return job, index and address, for messages."""
        return f"{self.job} {self.index} at {self.address}"


@dataclass(frozen=True)
class Cluster:
    """The workers that train one model together, or this process alone."""

    strategy: tf.distribute.Strategy
    workers: tuple[Worker, ...] = ()  # the chief first; empty when this process is alone
    rank: int = 0  # of this process among them

    @property
    def chief(self) -> bool:
        """Whether this worker writes the files."""
        return self.rank == 0

    @property
    def size(self) -> int:
        """The number of workers."""
        return max(1, len(self.workers))

    @property
    def replicas(self) -> int:
        """The number of replicas, over all workers, that divide each batch."""
        return int(self.strategy.num_replicas_in_sync)

    @property
    def local_replicas(self) -> range:
        """The replicas of this worker."""
        each = self.replicas // self.size
        return range(self.rank * each, (self.rank + 1) * each)

    def worker_slice(self, count: int, unit: int) -> slice:
        """Return this worker's slice of `count` items, in whole units of `unit` items."""
        units = -(-count // unit)
        start, stop = (-(-rank * units // self.size) * unit for rank in (self.rank, self.rank + 1))
        return slice(start, stop)

    def agree(self, digests: Mapping[str, str]) -> None:
        """Raise `StageError` on every worker if the `digests`, SHA-256 in hex by name, differ on one of them."""
        mine = np.frombuffer(bytes.fromhex("".join(digests.values())), np.uint8)
        table = np.zeros((self.size, len(mine)), np.uint8)
        table[self.rank] = mine
        per_digest = self.combine(table).reshape(self.size, len(digests), -1)
        for worker, other in zip(self.workers, (per_digest != per_digest[0]).any(axis=2), strict=False):
            if other.any():
                names = " and ".join(name for name, differs in zip(digests, other, strict=True) if differs)
                raise StageError(
                    f"{worker}: {names} differ from those of {self.workers[0]}. Check out the same commit on "
                    f"both, with the same params.yaml, data/processed and packages, {RESTART}"
                )

    def broadcast(self, content: bytes) -> bytes:
        """Return the chief's `content` on every worker; that of the others is ignored."""
        content = content if self.chief else b""
        length = int(self.combine(np.array([len(content)], np.int64))[0])
        padded = np.zeros(length, np.uint8)
        padded[: len(content)] = np.frombuffer(content, np.uint8)
        return self.combine(padded).tobytes()

    def combine(self, mine: NDArray[Any]) -> NDArray[Any]:
        """Combine the workers' parts of an array, each zero outside its part, into the whole array on every
        worker.

        The parts are added as integers, so floating-point numbers keep their exact bits.
        """
        if self.size == 1 or not mine.size:  # summing an empty tensor crashes TensorFlow
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
        first = self.local_replicas[0]  # all replicas of a worker get the same values, so one counts

        def one(values: tf.Tensor) -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            counts = tf.cast(tf.equal(context.replica_id_in_sync_group, first), tf.int32)
            return context.all_reduce(tf.distribute.ReduceOp.SUM, values * counts)

        signature = [tf.TensorSpec((None,), tf.int32)]
        return tf.function(lambda values: self.strategy.run(one, args=(values,)), input_signature=signature)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Turn TensorFlow's error for a lost worker into a `StageError` that names the worker."""
        try:
            yield
        except tf.errors.OpError as error:
            lost = re.search(r"/job:(\w+)/(?:replica:\d+/)?task:(\d+)", error.message.partition("aborted by")[2])
            if self.size == 1 or not re.search("aborted by|CoordinationService", error.message):
                raise
            named = [each for each in self.workers if lost and lost.groups() == (each.job, str(each.index))]
            # TensorFlow names no worker when the chief, which monitors the heartbeats, is the one that is lost.
            gone = (named or self.workers)[0]
            raise StageError(f"{gone} died or cannot be reached. See its own last line, {RESTART}") from None


def alone() -> Cluster:
    """Return a cluster of this process alone, on TensorFlow's default device."""
    return Cluster(tf.distribute.get_strategy())


@contextmanager
def joined(params: RuntimeParams) -> Iterator[Cluster]:
    """Yield the cluster that `params.strategy` and the environment describe, with its strategy in scope.

    Raises `StageError` when the environment or the machine does not have what `params` require, or when a
    worker does not join in time or is lost.
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
    """Return the workers in `environment`, the chief first, and the rank of this one.

    Raises `StageError` when the environment describes no cluster, or an invalid one.
    """
    if "TF_CONFIG" in environment:
        return _read_tf_config(environment["TF_CONFIG"])
    if "SLURM_PROCID" in environment:
        return _read_slurm(environment)
    raise StageError(f"runtime.strategy: multi_worker needs TF_CONFIG, or SLURM's srun; {DOCUMENTATION}")


def _read_slurm(environment: Mapping[str, str]) -> tuple[tuple[Worker, ...], int]:
    # Not TensorFlow's SlurmClusterResolver, which sorts n10 before n9, so that hosts and ranks do not match.
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
            f"SLURM's variables do not describe a cluster ({error}): start the training with srun; {DOCUMENTATION}"
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
                raise ValueError(f"{worker.address} is listed more than once")
        rank = [(worker.job, worker.index) for worker in workers].index((task["type"], int(task["index"])))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise StageError(
            f"TF_CONFIG: {type(error).__name__}: {error}; write it like "
            '{"cluster": {"worker": ["host:port", "host:port"]}, "task": {"type": "worker", "index": 0}}'
        ) from None
    return workers, rank


def _devices(count: int) -> list[str]:
    """Return the names of `count` GPUs or, on a machine without GPUs, of as many logical CPU devices."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        if len(gpus) < count:
            raise StageError(f"runtime.devices: {count} requested, but TensorFlow finds only {len(gpus)} GPUs")
        return [f"GPU:{index}" for index in range(count)]
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * count
    )
    return [f"CPU:{index}" for index in range(count)]


def _join(workers: tuple[Worker, ...], rank: int) -> Cluster:
    seconds = _patience(os.environ.get(SECONDS_VARIABLE, str(SECONDS)))
    others = [*workers[:rank], *workers[rank + 1 :]]
    _wait_for(others, workers[rank], seconds)
    # Otherwise gRPC would use a proxy from the environment for these hosts too.
    os.environ["no_grpc_proxy"] = ",".join(each.host for each in workers)  # noqa: SIM112, gRPC expects lower case
    # An empty job crashes TensorFlow 2.21.
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
                cluster.combine(np.zeros(1, np.int32))  # returns when all have joined
        # TensorFlow has installed its own handler, which ignores the signal.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    except tf.errors.OpError as error:
        raise StageError(
            f"{workers[rank]}: TensorFlow cannot join the others: {error.message.splitlines()[0]}; {DOCUMENTATION}"
        ) from None
    return cluster


def _patience(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise StageError(f"{SECONDS_VARIABLE}: expected a number of seconds above 0, found '{text}'")
    return seconds


@contextmanager
def _ended_after(seconds: float, others: Sequence[Worker]) -> Iterator[None]:
    """End this process, with one line, when the block takes longer, and on Ctrl-C at once.

    A second process does this, because TensorFlow waits without a time-out and holds Python's lock meanwhile: for
    a worker that dies at this moment, is another program, or has another cluster configuration.
    """
    line = (
        f"train: {_listed(others)}: all answer, but not all joined within {seconds:g} seconds "
        f"({SECONDS_VARIABLE}). Check that each runs this training with the same cluster "
        "configuration, then restart all workers"
    )
    watch = subprocess.Popen(
        [sys.executable, "-I", "-c", WATCH, str(os.getpid()), str(seconds), line],
        start_new_session=True,  # so that Ctrl-C does not end it too
    )
    interrupted = signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own handler needs the lock
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, interrupted)
        watch.kill()
        watch.wait()


def _wait_for(others: Sequence[Worker], own: Worker, seconds: float) -> None:
    """Wait until all workers listen, this one at its own address. TensorFlow's own wait has no time-out."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        server = socket.create_server(("", own.port), family=family, backlog=len(others) + 1, dualstack_ipv6=both)
    except OSError as error:
        raise StageError(
            f"{own}: {os.strerror(error.errno or 0)}: stop the program that listens on port {own.port}, or choose "
            "another port in TF_CONFIG (with SLURM: submit the job again)"
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
        # In parallel, in daemon threads, because looking up a host name may never return.
        asking = [threading.Thread(target=ask, args=(worker,), daemon=True) for worker in others]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join(max(0.0, deadline - time.monotonic()))
    silent = [worker for worker in others if worker not in answered]
    if silent:
        raise StageError(
            f"no answer from {_listed(silent)} within {seconds:g} seconds ({SECONDS_VARIABLE}). Start each worker "
            "once, with the same cluster configuration"
        )


def _listed(workers: Sequence[Worker]) -> str:
    return ", ".join(map(str, workers))


def _answers(worker: Worker) -> bool:
    try:
        socket.create_connection((worker.host, worker.port), PROBE_SECONDS).close()
    except (OSError, UnicodeError):  # the latter for an invalid host name
        return False
    return True
