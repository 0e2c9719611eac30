"""What `preprocess.storage: uint8` costs in training: CPU time and seconds of an epoch, in turns with float32.

Run as `python -m benchmarks.storage` in a checkout whose data/raw holds CIFAR-10. Both kinds of splits are written
to a temporary folder. The first round is left out of the medians. The weights must have the same bytes.
"""

import argparse
import dataclasses
import hashlib
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from stages.common import failure
from stages.common.failure import StageError
from stages.common.params import load
from stages.common.records import Statistics, read_record, read_split
from stages.common.splits import Split
from stages.model import runtime
from stages.model.networks import build_model, load_network
from stages.model.runtime import RuntimeParams
from stages.preprocess import PreprocessParams, preprocess
from stages.training.params import TrainParams

STORAGES = ("float32", "uint8")


def main(arguments: Sequence[str]) -> None:
    """Parse, prepare, train in turns, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.storage", description=__doc__.partition("\n")[0])
    parser.add_argument("--raw", type=Path, default=Path("data/raw"))
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--images", type=int, default=9600)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    params = Path("params.yaml")
    runtime.start(load(params, "runtime", RuntimeParams), 0)
    times: dict[str, list[tuple[float, float]]] = {storage: [] for storage in STORAGES}
    digests = set()
    with tempfile.TemporaryDirectory() as folder:
        splits = {storage: _splits(options.raw, Path(folder) / storage, params, storage) for storage in STORAGES}
        for _ in range(options.rounds):
            for storage, (training, validation) in splits.items():
                training = _first(training, options.images)
                cpu, seconds, digest = _train(params, options.batch_size, training, _first(validation, 500))
                times[storage].append((cpu, seconds))
                digests.add(digest)
    if len(digests) > 1:
        raise StageError("the weights differ between the storages")
    for storage, measured in times.items():
        cpu, seconds = (statistics.median(values) for values in zip(*measured[1:], strict=True))
        print(f"{storage}: {cpu:.2f} s of CPU time, {seconds:.2f} s")


def _splits(raw: Path, folder: Path, params: Path, storage: str) -> tuple[Split, Split]:
    chosen = load(params, "preprocess", PreprocessParams).model_copy(update={"storage": storage})
    preprocess(raw, folder, chosen)
    record = read_record(folder / "statistics.json", Statistics)
    return read_split(folder, "train", record), read_split(folder, "validation", record)


def _first(split: Split, images: int) -> Split:
    return dataclasses.replace(split, images=split.images[:images], labels=split.labels[:images])


def _train(params: Path, batch_size: int, training: Split, validation: Split) -> tuple[float, float, str]:
    """Train for an epoch. Return CPU time and time in seconds, and a digest of the weights."""
    import keras

    from stages.training.checkpoints import Checkpoints
    from stages.training.cluster import alone
    from stages.training.loop import Trainer

    changes = {"epochs": 1, "batch_size": batch_size}
    choices = load(params, "train", TrainParams).model_copy(update=changes)
    keras.utils.set_random_seed(0)
    model = build_model(load_network(params), training.images.shape[1:], training.labels.shape[1])
    trainer = Trainer(model, choices, training, validation, [], alone())
    with tempfile.TemporaryDirectory() as folder:
        cpu, began = time.process_time(), time.monotonic()
        trainer.run(Checkpoints(Path(folder), "0" * 64))
        cpu, seconds = time.process_time() - cpu, time.monotonic() - began
    return cpu, seconds, hashlib.sha256(b"".join(each.tobytes() for each in model.get_weights())).hexdigest()


if __name__ == "__main__":
    sys.exit(failure.run("storage", main))
