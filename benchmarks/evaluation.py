"""The evaluate stage compared with bare inference: import TensorFlow, load the model, predict.

Run as `python -m benchmarks.evaluation` where `dvc repro` has run; it writes only to a temporary folder. Each run
is a separate process, and both take turns. Bare inference uses the fastest of several batch sizes, which are tried
first. The last line printed is JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.process import require_float32
from stages.common import failure
from stages.common.figures import parse_figures

PROCESSED = Path("data/processed")
BATCH_SIZES = (125, 250, 500, 1000, 2500)

BARE = """
import sys
import numpy as np
import keras
import tensorflow as tf

model, images, size = keras.saving.load_model(sys.argv[1]), np.load(sys.argv[2])["images"], int(sys.argv[3])
forward = tf.function(lambda batch: model(batch, training=False), reduce_retracing=True)
parts = [forward(images[start : start + size]).numpy() for start in range(0, len(images), size)]
print(len(np.concatenate(parts)))
"""


def main(arguments: Sequence[str]) -> None:
    """Find the best batch size, run both in turns, print a table and the ratio."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evaluation", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(arguments)
    require_float32(PROCESSED)
    tried = {size: seconds(bare(size)) for size in BATCH_SIZES}
    best = min(tried, key=lambda size: tried[size])
    with tempfile.TemporaryDirectory() as folder:
        commands = {"evaluate": stage(Path(folder)), "bare": bare(best)}
        taken: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(options.rounds):
            for name, command in commands.items():
                taken[name].append(seconds(command))
        table = (Path(folder) / "metrics" / "evaluation.csv").read_bytes()
        images = parse_figures(table, "metrics/evaluation.csv")["test_images"]
    medians = {name: statistics.median(values) for name, values in taken.items()}
    ratio = medians["evaluate"] / medians["bare"]
    print(f"{images:,} images, medians of {options.rounds} rounds; bare: {best} images a batch\n")
    for name, values in taken.items():
        print(f"{name:10}{medians[name]:7.2f} s, from {min(values):.2f} to {max(values):.2f}")
    print(json.dumps({"images": images, "batch_size": best, "time_of_bare": round(ratio, 2)}))


def bare(batch_size: int) -> list[str]:
    """The command of bare inference."""
    return [sys.executable, "-c", BARE, "models/model.keras", str(PROCESSED / "test.npz"), str(batch_size)]


def stage(folder: Path) -> list[str]:
    """The command of the stage, which writes to `folder`."""
    outputs = ("metrics", "card", "predictions", "environment", "logs")
    names = ("metrics", "card.md", "predictions.csv", "environment.json", "logs")
    pairs = zip(outputs, names, strict=True)
    options = [part for output, name in pairs for part in (f"--{output}", str(folder / name))]
    return [sys.executable, "-m", "stages.evaluate", *options]


def seconds(command: list[str]) -> float:
    """Run a command and return how long it took; its own words are shown only when it fails."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    began = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command[:3])} failed: {done.stderr}")
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(failure.run("evaluation", main))
