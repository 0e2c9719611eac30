"""What this training loop learns compared with the tutorial's `fit`: validation accuracy.

    python -m benchmarks.accuracy                           # where `dvc repro preprocess` has run
    python -m benchmarks.accuracy --epochs 5 --seeds 0 1

Network, splits, batch size and optimizer are the same; the training loop takes its other params from params.yaml,
which by default are the tutorial's. Each run is a separate process. The contestants take turns, in another order
for each seed. With the same seed they still have different weights, order and dropout, so compare only means and
deviations. The accuracy is that of the last epoch's weights on the whole validation split. The seconds include
validation and checkpoints. The last line printed is JSON.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import machine
from benchmarks.process import measured, require_float32
from benchmarks.training import PARAMS, run_engine, start_engine, tutorial_model
from stages.common import failure
from stages.common.failure import StageError
from stages.common.params import load
from stages.common.records import Statistics, read_record, read_split
from stages.common.splits import Split
from stages.training.params import TrainParams

CONTESTANTS = ("fit", "float32", "bfloat16")
BATCH_SIZE = 32  # the tutorial's

Result = tuple[float, float]  # validation accuracy and seconds


def main(arguments: Sequence[str]) -> None:
    """Train one contestant in this process, or all of them in processes of their own."""
    options = _parse(arguments)
    require_float32(options.processed)
    training, validation = read_splits(options.processed)
    if options.only:
        (seed,) = options.seeds
        print(json.dumps(train(options.only, training, validation, options.epochs, seed)))
        return
    results: dict[str, list[Result]] = {name: [] for name in CONTESTANTS}
    try:
        machine.require_bfloat16()
    except StageError as error:
        print(f"bfloat16 is left out: {error}", flush=True)
        del results["bfloat16"]
    order = random.Random(0)
    common = ["--processed", str(options.processed.resolve()), "--epochs", str(options.epochs)]
    for seed in options.seeds:
        for name in order.sample(list(results), len(results)):
            found = measured("benchmarks.accuracy", *common, "--seeds", str(seed), "--only", name)
            results[name].append(found)
            print(f"seed {seed}: {name} {found[0]:.4f} in {found[1]:,.0f} s", flush=True)
    _report(results, options.epochs, options.seeds, len(training.images), len(validation.images))


def read_splits(processed: Path) -> tuple[Split, Split]:
    """Return the training and the validation split, or raise `StageError` when they are not there and whole."""
    statistics = read_record(processed / "statistics.json", Statistics)
    return read_split(processed, "train", statistics), read_split(processed, "validation", statistics)


def train(name: str, training: Split, validation: Split, epochs: int, seed: int) -> Result:
    """Return the validation accuracy after the last epoch, and the seconds that all of them took."""
    if name == "fit":
        model = tutorial_model(training.images.shape[1:], training.labels.shape[1], seed)
        began = time.perf_counter()
        history = model.fit(
            training.images,
            training.labels,
            batch_size=BATCH_SIZE,
            epochs=epochs,
            validation_data=(validation.images, validation.labels),
            verbose=0,
        ).history
        return history["val_accuracy"][-1], time.perf_counter() - began
    start_engine(name, seed)
    began = time.perf_counter()
    changes = {"seed": seed, "epochs": epochs, "batch_size": BATCH_SIZE, "early_stopping": 0}
    rows = run_engine(training, validation, changes)
    return rows[-1]["val_accuracy"], time.perf_counter() - began


def _report(
    results: Mapping[str, Sequence[Result]], epochs: int, seeds: Sequence[int], images: int, validated: int
) -> None:
    print(f"\n{machine.describe()}")
    print(f"{epochs} epochs of {images:,} images, validated on {validated:,}, seeds {' '.join(map(str, seeds))}\n")
    print(f"{'':10} val_accuracy  standard deviation  seconds")
    found = {}
    for name, runs in results.items():
        accuracies = [accuracy for accuracy, _ in runs]
        mean, seconds = statistics.mean(accuracies), statistics.mean(seconds for _, seconds in runs)
        # Of the sample, so over N - 1; a single run has none.
        deviation = statistics.stdev(accuracies) if len(runs) > 1 else None
        print(f"{name:10} {mean:12.4f}  {'' if deviation is None else f'{deviation:.4f}':>18}  {seconds:7,.0f}")
        found[name] = {
            "val_accuracy": [round(accuracy, 4) for accuracy in accuracies],
            "mean": round(mean, 4),
            "standard_deviation": None if deviation is None else round(deviation, 4),
            "seconds": round(seconds, 1),
        }
    print(json.dumps({"epochs": epochs, "seeds": list(seeds), **found}))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, help="those of params.yaml if not given")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--processed", type=Path, default=Path("data/processed"), help="folder of the splits")
    parser.add_argument("--only", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.epochs is None:
        options.epochs = load(PARAMS, "train", TrainParams).epochs
    if options.epochs < 1:
        parser.error("--epochs: at least 1")
    return options


if __name__ == "__main__":
    sys.exit(failure.run("accuracy", main))
