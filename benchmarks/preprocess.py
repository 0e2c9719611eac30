"""The preprocess stage compared with plain copies of its outputs and with the usual NumPy code: time and memory.

Run as `python -m benchmarks.preprocess` for as many images as CIFAR-10 has, or with `--scale 10` for ten times as
many, which takes 17 GB on disk in `--folder` and, for the NumPy code, 15 GB of memory. Each run is a separate
process, in turns, and ends when its files are on disk. There are two copies: a plain one, and one that also
computes the checksums of what it writes. The stage checks those of its inputs as well. The last line printed is
JSON.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
PARAMS = (
    "preprocess: {scaling: unit, validation_fraction: 0.2, validation_split: last, seed: 0, storage: float32}\n"
)

MAKE_RAW = """
import json, sys
from pathlib import Path
import numpy as np
from stages.common import splits

raw, scale = Path(sys.argv[1]), int(sys.argv[2])
rng = np.random.default_rng(0)
records = {}
for name, count in (("train", 50_000 * scale), ("test", 10_000 * scale)):
    labels = (np.arange(count) % 10).astype(np.uint8)
    batches = (rng.integers(0, 256, (500, 32, 32, 3), dtype=np.uint8) for _ in range(count // 500))
    images = splits.ChunkedArray((count, 32, 32, 3), labels.dtype, batches)
    digest = splits.write(raw / f"{name}.npz", images, labels)
    records[name] = {"images": count, "shape": [32, 32, 3], "class_counts": [count // 10] * 10,
                     "official": 0, "sha256": digest}
dataset = {"name": "random", "sha256": "", "edition": ""}
source = {"schema_version": 1, "dataset": dataset, "classes": list("0123456789"), "splits": records}
(raw / "source.json").write_text(json.dumps(source))
"""

COPY = """
import os, shutil, sys
from pathlib import Path

made, out = Path(sys.argv[1]), Path(sys.argv[2])
for path in made.iterdir():
    shutil.copyfile(path, out / path.name)
    with (out / path.name).open("rb+") as file:
        os.fsync(file.fileno())
"""

# The copy with SHA-256 of every byte, which the record beside the splits holds, and CRC-32, which a zip holds. It
# has the stage's own means to do so quickly: SHA-256 in one thread, the disk kept at work by another.
CHECKSUMS = """
import hashlib, os, sys, zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

made, out = Path(sys.argv[1]), Path(sys.argv[2])
blocks = bytearray(1 << 20), bytearray(1 << 20)
with ThreadPoolExecutor(2) as helpers:
    for path in made.iterdir():
        sha256, crc32, turn = hashlib.sha256(), 0, 0
        hashed = helpers.submit(sha256.update, b"")
        with path.open("rb", buffering=0) as source, (out / path.name).open("wb", buffering=0) as file:
            synced = helpers.submit(os.fsync, file.fileno())
            while count := source.readinto(blocks[turn]):
                block = memoryview(blocks[turn])[:count]
                hashed.result()
                hashed = helpers.submit(sha256.update, block)
                crc32 = zlib.crc32(block, crc32)
                file.write(block)
                if synced.done():
                    synced = helpers.submit(os.fsync, file.fileno())
                turn = 1 - turn
            hashed.result(), synced.result()
            os.fsync(file.fileno())
"""

# What a tutorial does, with the same split and dtype, so that it makes the same arrays.
USUAL = """
import os, sys
from pathlib import Path
import numpy as np

raw, out = Path(sys.argv[1]), Path(sys.argv[2])
with np.load(raw / "train.npz") as train, np.load(raw / "test.npz") as test:
    x_train, y_train, x_test, y_test = train["images"], train["labels"], test["images"], test["labels"]
x_train, x_test = x_train.astype("float32") / 255, x_test.astype("float32") / 255
y_train, y_test = np.eye(10, dtype="float32")[y_train], np.eye(10, dtype="float32")[y_test]
at = int(len(x_train) * 0.8)
np.savez(out / "train.npz", images=x_train[:at], labels=y_train[:at])
np.savez(out / "validation.npz", images=x_train[at:], labels=y_train[at:])
np.savez(out / "test.npz", images=x_test, labels=y_test)
for path in out.iterdir():
    with path.open("rb+") as file:
        os.fsync(file.fileno())
"""


def main() -> None:
    """Make the raw splits, run the contestants in turns, print a table and the ratios."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.preprocess", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--scale", type=int, default=1, help="times the images of CIFAR-10")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, help="where the files go; the system's temporary folder if not given"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        results = measure(Path(folder), options.scale, options.rounds)
    copy_seconds = statistics.median(seconds for seconds, _ in results["copy"])
    print(f"{60_000 * options.scale:,} images, medians of {options.rounds} rounds\n")
    print(f"{'':12}{'seconds':>9}{'of copy':>9}{'peak MB':>9}")
    ratios = {}
    for name, runs in results.items():
        seconds = statistics.median(seconds for seconds, _ in runs)
        peak = max(peak for _, peak in runs)
        print(f"{name:12}{seconds:9.2f}{seconds / copy_seconds:9.2f}{peak:9.0f}")
        ratios[name] = {"time_of_copy": round(seconds / copy_seconds, 2), "peak_mb": round(peak)}
    print(json.dumps({"scale": options.scale, **ratios}))


def measure(folder: Path, scale: int, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Return seconds and peak MB of every run of the stage, the copies and the usual lines."""
    raw, made, out = folder / "raw", folder / "made", folder / "out"
    (folder / "params.yaml").write_text(PARAMS)
    run([sys.executable, "-c", MAKE_RAW, str(raw), str(scale)])
    stage = [
        sys.executable,
        "-m",
        "stages.preprocess",
        "--params",
        str(folder / "params.yaml"),
        "--raw",
        str(raw),
    ]
    run([*stage, "--out", str(made)])
    commands = {
        "preprocess": [*stage, "--out", str(out)],
        "copy": [sys.executable, "-c", COPY, str(made), str(out)],
        "checksums": [sys.executable, "-c", CHECKSUMS, str(made), str(out)],
        "usual": [sys.executable, "-c", USUAL, str(raw), str(out)],
    }
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            os.sync()  # else this run waits for what the one before has left to write
            results[name].append(run(command))
    return results


def run(command: list[str]) -> tuple[float, float]:
    """Run `command` to its end; return its seconds and its peak of resident memory in MB."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT)
    # The usage of this child alone. It begins at this process's own peak, which is kept small: no NumPy here.
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"failed with {process.returncode}: {' '.join(command[:3])}")
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


if __name__ == "__main__":
    main()
