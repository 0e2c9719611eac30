"""Training on more data than fits in memory: images per second, memory and disk reads as the split grows.

Run as `python -m benchmarks.large_data`, on Linux. The splits of `--sparse` are sparse files: reading them costs
everything that a memory-mapped file costs except the disk. Those of `--written` are really on disk. The pipeline's
own code (`splits.read` and `Trainer`) reads each in a separate process, after asking the system to drop the file
from its page cache. A small network, whose speed depends on the input, and the one of params.yaml take turns. The
measured images are the first of an epoch, which come from all over the file. For comparison, 0.5 GB of arrays in
memory. The last line printed is JSON: medians, and the median rate over that in memory.
"""

import argparse
import contextlib
import io
import json
import mmap
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.common import failure, splits
from stages.common.failure import StageError
from stages.common.outputs import require_space

ROOT = Path(__file__).parent.parent
SHAPE, CLASSES = (32, 32, 3), 10
IMAGE = 4 * (32 * 32 * 3 + CLASSES)  # bytes, with the label
PART = 500  # images that are written at a time
IN_MEMORY = 0.5  # GB: about CIFAR-10's own training split
WARM_UP, MEASURED = 1_280, 12_800  # images
NETWORKS: Mapping[str, tuple[dict[str, Any], int]] = {  # changes of params.yaml's model, and the batch size
    "small": ({"blocks": [{"filters": 4, "layers": 1, "pool": 4, "dropout": 0}], "dense": [16]}, 128),
    "tutorial": ({}, 32),
}

Result = dict[str, float]


def main(arguments: Sequence[str]) -> None:
    """Measure one case in this process, or make the files and measure all in processes of their own."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.large_data", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--sparse", type=float, nargs="*", default=[0.5, 2, 8, 30], metavar="GB")
    parser.add_argument("--written", type=float, nargs="*", default=[6], metavar="GB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--folder", type=Path, help="where the files go; the system's temporary folder if not given"
    )
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not hasattr(os, "posix_fadvise") or not Path("/proc/self/io").exists():
        raise StageError("this system cannot be asked for what is measured here; run it on Linux")
    if options.only:
        print(json.dumps(measure(*options.only)))
        return
    # TemporaryDirectory removes the files on Ctrl-C by itself; so it does for who stops this by `kill`.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="large-data-", dir=options.folder) as folder:
        files = make(Path(folder), options.sparse, options.written)
        results = take_turns(files, options.rounds)
    report(results)


def make(folder: Path, sparse: list[float], written: list[float]) -> dict[str, str]:
    """Write the splits, sizes in GB; return their paths by name, with "" for arrays in memory."""
    # Of a hole only the labels are there, a 300th of it.
    require_space(folder, int((sum(written) + sum(sparse) / 300) * 1e9) + 10**8)
    block = np.random.default_rng(0).random((PART, *SHAPE), dtype=np.float32)
    files = {f"memory {IN_MEMORY:g} GB": ""}
    for kind, sizes, part in (("sparse", sparse, np.zeros_like(block)), ("written", written, block)):
        for size in sizes:
            count = max(1, round(size * 1e9 / IMAGE / PART)) * PART
            labels = np.eye(CLASSES, dtype=np.float32)[np.arange(count) % CLASSES]
            name = f"{kind} {size:g} GB"
            path = WithHoles(folder / f"{kind}-{size:g}.npz")
            began = time.perf_counter()
            splits.write(
                path,
                splits.ChunkedArray((count, *SHAPE), block.dtype, (part for _ in range(count // PART))),
                labels,
            )
            print(f"made {name}: {count:,} images in {time.perf_counter() - began:.0f} s", flush=True)
            files[name] = str(path)
    return files


class WithHoles(type(Path())):  # type: ignore[misc]  # the path's class depends on the system
    """A path whose file, when opened to be written, gets holes in place of blocks of zeros."""

    def open(self, mode: str = "r", *options: Any, **named: Any) -> Any:
        """As `Path.open`, but for mode "wb"."""
        return _Holes(self, "wb") if mode == "wb" else super().open(mode, *options, **named)


class _Holes(io.FileIO):
    def write(self, content: Any) -> int:
        block = np.frombuffer(content, np.uint8)
        if len(block) < splits.CHUNK or block.any():
            return super().write(content)
        self.seek(len(block), os.SEEK_CUR)
        return len(block)


def take_turns(files: Mapping[str, str], rounds: int) -> dict[tuple[str, str], list[Result]]:
    """Measure every file with every network, `rounds` times in turns; by the names of both."""
    results: dict[tuple[str, str], list[Result]] = {}
    for number in range(rounds):
        for network in NETWORKS:
            for name, path in files.items():
                result = _measured(network, path)
                results.setdefault((name, network), []).append(result)
                print(
                    f"round {number + 1}: {name}, {network}: {result['images_a_second']:,.0f} images/s", flush=True
                )
    return results


def measure(network: str, path: str) -> Result:
    """Train `network` on the split at `path`, in memory if that is empty, for `MEASURED` images."""
    from stages.common.params import load
    from stages.model import runtime
    from stages.model.networks import TutorialParams, build_model
    from stages.model.runtime import RuntimeParams
    from stages.training.checkpoints import Checkpoints
    from stages.training.cluster import alone
    from stages.training.loop import Trainer
    from stages.training.params import TrainParams

    result: Result = {}
    if path:
        _drop_cache(path)
        began = time.perf_counter()
        training = splits.read(Path(path))
        result["check_gb_a_second"] = Path(path).stat().st_size / 1e9 / (time.perf_counter() - began)
        result["peak_mb_of_check"] = _status("VmHWM")
        _drop_cache(path)
    else:
        training = _in_memory()
    changes, batch_size = NETWORKS[network]
    params_file = ROOT / "params.yaml"
    runtime.start(load(params_file, "runtime", RuntimeParams), 0)
    updates = {"batch_size": batch_size, "epochs": 1, "checkpoint_minutes": 1e9}
    params = load(params_file, "train", TrainParams).model_copy(update=updates)
    chosen = load(params_file, "model", TutorialParams).model_dump() | changes
    model = build_model(TutorialParams.model_validate(chosen), SHAPE, CLASSES)
    validation = splits.Split(np.zeros((1, *SHAPE), np.float32), training.labels[:1], "", mmap.mmap(-1, 1))
    clock = _clock(batch_size)
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(StopIteration):
        trainer = Trainer(model, params, training, validation, [clock], alone())
        trainer.run(Checkpoints(Path(folder), "benchmark"))
    seconds, cpu_seconds, read = (after - before for before, after in zip(*clock.marks, strict=True))
    result["images_a_second"] = clock.images / seconds
    result["cpu_ms_an_image"] = cpu_seconds * 1e3 / clock.images
    result["disk_kb_an_image"] = read / 1e3 / clock.images
    result["peak_mb"] = _status("VmHWM")
    return result


def report(results: Mapping[tuple[str, str], list[Result]]) -> None:
    """Print the medians as a table, then as JSON."""
    from stages.model.runtime import versions

    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    print("\nCPU ms and disk kB: of each image trained on; check: of splits.read, one pass over the file")
    print(f"{platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GB of memory, {versions()}\n")
    print(f"{'':26}{'images/s':>9}{'of memory':>11}{'CPU ms':>8}{'disk kB':>9}{'peak MB':>9}{'check GB/s':>12}")
    found = []
    for (name, network), runs in results.items():
        medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        base = statistics.median(run["images_a_second"] for run in results[next(iter(results))[0], network])
        medians["of_memory"] = medians["images_a_second"] / base
        check = f"{medians['check_gb_a_second']:12.2f}" if "check_gb_a_second" in medians else ""
        print(
            f"{f'{name}, {network}':26}{medians['images_a_second']:9,.0f}{medians['of_memory']:11.2f}"
            f"{medians['cpu_ms_an_image']:8.3f}{medians['disk_kb_an_image']:9.1f}{medians['peak_mb']:9,.0f}{check}"
        )
        found.append({"data": name, "network": network} | {key: round(value, 3) for key, value in medians.items()})
    print(json.dumps(found))


def _measured(network: str, path: str) -> Result:
    command = [sys.executable, "-m", "benchmarks.large_data", "--only", network, path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or f"killed by signal {-done.returncode}").splitlines()[-1]
        raise StageError(f"training on {path or 'arrays in memory'} failed: {last}")
    result: Result = json.loads(done.stdout.splitlines()[-1])
    return result


def _drop_cache(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def _in_memory() -> splits.Split:
    count = round(IN_MEMORY * 1e9 / IMAGE)
    labels = np.eye(CLASSES, dtype=np.float32)[np.arange(count) % CLASSES]
    return splits.Split(np.ones((count, *SHAPE), np.float32), labels, "", mmap.mmap(-1, 1))


def _clock(batch_size: int) -> Any:
    import keras

    class Clock(keras.callbacks.Callback):  # seconds, also of the CPU, and bytes read of the disk, at both ends
        def __init__(self) -> None:
            super().__init__()
            self.marks: list[tuple[float, float, int]] = []
            self.images = 0

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            images = (batch + 1) * batch_size
            if images >= WARM_UP and not self.marks:
                self._first = images
                self.marks.append(_mark())
            elif images >= WARM_UP + MEASURED:
                self.images = images - self._first
                self.marks.append(_mark())
                raise StopIteration

    return Clock()


def _status(name: str) -> float:
    """A field of this process's status in MB: its own peak, where getrusage's starts at the parent's."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024 / 1e6


def _mark() -> tuple[float, float, int]:
    return time.perf_counter(), time.process_time(), _read_of_disk()


def _read_of_disk() -> int:
    (line,) = (line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("read_bytes"))
    return int(line.split()[1])


if __name__ == "__main__":
    sys.exit(failure.run("large_data", main))
