"""Train with several processes on this machine, to try out distributed training.

Run as `python -m tools.launch --workers 2`, or `make train-distributed WORKERS=2`: `dvc repro` runs
as the chief and `python -m stages.train` as each other worker, exactly as on separate machines. When one process
ends, the others stop by themselves.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import psutil

from stages.common import failure
from stages.common.failure import StageError
from stages.common.params import load
from stages.model.runtime import RuntimeParams
from tools.rwlock import remove_unreadable_rwlock

TRAIN = (sys.executable, "-m", "stages.train")
REPRO = (sys.executable, "-m", "dvc", "repro")
# After the chief has ended. Workers that still wait for it, because it had nothing to train, are then stopped.
LAST_SECONDS = 10
GRACE_SECONDS = 3  # for each process to stop by itself when this one is interrupted


def main(arguments: Sequence[str]) -> None:
    """Parse, prepare the data, start the processes and wait for them."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, frame: sys.exit(128 + received))
    parser = argparse.ArgumentParser(prog="python -m tools.launch", description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=2, help="number of processes, including the chief")
    options = parser.parse_args(arguments)
    if options.workers < 1:
        raise StageError(f"--workers: it should be at least 1, found {options.workers}")
    params = load(Path("params.yaml"), "runtime", RuntimeParams)
    if params.strategy != "multi_worker":
        raise StageError(
            f"params.yaml: runtime.strategy: {params.strategy} trains in one process; set it to multi_worker"
        )
    threads, cores = options.workers * params.threads, os.cpu_count() or 1
    if threads > cores:
        fewer = max(1, cores // options.workers)
        print(f"launch: {threads} threads on {cores} cores; runtime.threads: {fewer} is faster", file=sys.stderr)
    remove_unreadable_rwlock(Path())
    # The other workers need the outputs of preprocess as soon as they start.
    if subprocess.run([*REPRO, "preprocess"], check=False).returncode:
        raise StageError("dvc repro preprocess failed (see the lines above); no worker was started")
    code = run(options.workers)
    if code:
        raise StageError(f"a process exited with code {code} (see its last line above)")


def run(workers: int) -> int:
    """Start the processes, wait for them, and return the first non-zero exit code, the chief's first, or 0."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(workers)]
    with ExitStack() as started:
        processes: list[subprocess.Popen[bytes]] = []
        for index in reversed(range(workers)):  # the chief last
            task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            process = subprocess.Popen(
                TRAIN if index else REPRO, env={**os.environ, "TF_CONFIG": json.dumps(task)}
            )
            started.callback(end, process)
            processes.insert(0, process)
        chief, *others = processes
        codes = [chief.wait()]
        for other in others:
            try:
                codes.append(other.wait(LAST_SECONDS))
            except subprocess.TimeoutExpired:
                other.kill()
    return next(filter(None, codes), 0)


def end(process: "subprocess.Popen[bytes]") -> None:
    """Stop a process and its children: DVC leaves its stage running. Ctrl-C may have stopped them already."""
    if process.poll() is None:
        found = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        _, left = psutil.wait_procs(found, timeout=GRACE_SECONDS)
        for each in left:
            each.kill()  # loses no work: the chief has its last checkpoint
    process.wait()


def free_ports(count: int) -> list[int]:
    """Return TCP ports of this machine that are free now."""
    with ExitStack() as opened:
        sockets = [opened.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


if __name__ == "__main__":
    sys.exit(failure.run("launch", main))
