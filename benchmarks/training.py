"""Our engine beside the tutorial's `model.fit`, on the tutorial's network: images a second in training.

Run as `make bench`. Every run is a process of its own, the contestants in turns, in another order each round;
an epoch to warm up, then one that is measured. A contestant that this machine cannot run is left out, with the
reason. The last line printed is JSON: the median of each rate over that of the tutorial's fit at batch 32.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
IMAGES = 12_800
MEASURED = 1  # the epoch, counted from 0

Arrays = tuple[Any, Any]
Contestant = Callable[[Arrays], float]


def main() -> None:
    """Measure one contestant in this process, or all of them in processes of their own."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(CONTESTANTS[options.only](_random_images()))
        return
    rates: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    order = random.Random(0)
    for number in range(options.rounds):
        for name in order.sample(list(rates), len(rates)):
            rate = _measured(name)
            if rate is None:
                del rates[name]
            else:
                rates[name].append(rate)
                print(f"round {number + 1}: {name} {rate:,.0f} images/s", flush=True)
    _report(rates)


def fit(arrays: Arrays) -> float:
    """The tutorial's own lines: arrays in memory, `model.fit`."""
    model = _compiled()
    timer = clock()
    model.fit(*arrays, batch_size=32, epochs=MEASURED + 1, verbose=0, callbacks=[timer])
    return _rate(timer)


def fit_tf_data(arrays: Arrays) -> float:
    """`fit` as its guide to performance has it: a tf.data set, prefetched, many steps an execution."""
    import tensorflow as tf

    model = _compiled(steps_per_execution=20)
    images = tf.data.Dataset.from_tensor_slices(arrays).shuffle(IMAGES, seed=0).batch(32)
    timer = clock()
    model.fit(images.prefetch(tf.data.AUTOTUNE), epochs=MEASURED + 1, verbose=0, callbacks=[timer])
    return _rate(timer)


def engine(arrays: Arrays, precision: str = "float32", batch_size: int = 32) -> float:
    """This project's engine, with determinism on and checkpoints off."""
    import mmap
    import tempfile

    from stages import runtime
    from stages.checkpoints import Checkpoints
    from stages.cluster import alone
    from stages.engine import Trainer, TrainParams
    from stages.model import build_model, load_network
    from stages.params import load
    from stages.runtime import RuntimeParams
    from stages.splits import Split

    path = ROOT / "params.yaml"
    chosen = load(path, "runtime", RuntimeParams).model_copy(update={"precision": precision})
    runtime.start(chosen, 0)
    changes = {"batch_size": batch_size, "epochs": MEASURED + 1, "checkpoint_minutes": 1e9}
    params = load(path, "train", TrainParams).model_copy(update=changes)
    model = build_model(load_network(path), (32, 32, 3), 10)
    training = Split(arrays[0], arrays[1], "", mmap.mmap(-1, 1))
    validation = Split(arrays[0][:1], arrays[1][:1], "", mmap.mmap(-1, 1))
    timer = clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(model, params, training, validation, [timer], alone())
        trainer.run(Checkpoints(Path(folder), "benchmark"))
    return _rate(timer)


def pytorch(arrays: Arrays) -> float:
    """PyTorch in eager mode: channels last, fused Adam."""
    import torch
    from torch import nn

    torch.set_num_threads(2)
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 32), (32, 64)):
        for channels in (inputs, outputs):
            layers += [nn.Conv2d(channels, outputs, 3, padding="same"), nn.ReLU()]
        layers += [nn.MaxPool2d(2), nn.Dropout(0.25)]
    dense = [nn.Flatten(), nn.Linear(4096, 512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, 10)]
    model = nn.Sequential(*layers, *dense).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    images = torch.from_numpy(arrays[0]).permute(0, 3, 1, 2)  # of channels last already, in memory
    labels = torch.from_numpy(arrays[1].argmax(axis=1))
    for _ in range(MEASURED + 1):
        began = time.perf_counter()
        for batch in torch.randperm(IMAGES).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    return IMAGES / (time.perf_counter() - began)


CONTESTANTS: dict[str, Contestant] = {
    "fit": fit,
    "fit_tf_data": fit_tf_data,
    "float32_bs32": engine,
    "float32_bs128": lambda arrays: engine(arrays, batch_size=128),
    "bfloat16_bs32": lambda arrays: engine(arrays, "bfloat16"),
    "bfloat16_bs128": lambda arrays: engine(arrays, "bfloat16", 128),
    "pytorch_float32_bs32": pytorch,
}


def _random_images() -> Arrays:
    rng = np.random.default_rng(0)
    labels = np.eye(10, dtype=np.float32)[rng.integers(0, 10, IMAGES)]
    return rng.random((IMAGES, 32, 32, 3), dtype=np.float32), labels


def _compiled(**options: Any) -> Any:
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((32, 32, 3))])
    for filters in (32, 64):
        for _ in range(2):
            model.add(layers.Conv2D(filters, 3, padding="same", activation="relu"))
        model.add(layers.MaxPooling2D())
        model.add(layers.Dropout(0.25))
    for layer in (layers.Flatten(), layers.Dense(512, activation="relu"), layers.Dropout(0.5)):
        model.add(layer)
    model.add(layers.Dense(10, activation="softmax"))
    model.compile(optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"], **options)
    return model


def clock() -> Any:
    """Return a Keras callback that keeps the seconds of each epoch's batches, without validation, in `seconds`."""
    import keras

    class Clock(keras.callbacks.Callback):
        def __init__(self) -> None:
            super().__init__()
            self.seconds: dict[int, float] = {}

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self._epoch, self._began = epoch, time.perf_counter()

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.seconds[self._epoch] = time.perf_counter() - self._began

    return Clock()


def _rate(timer: Any) -> float:
    seconds: float = timer.seconds[MEASURED]
    return IMAGES / seconds


def _measured(name: str) -> float | None:
    command = [sys.executable, "-m", "benchmarks.training", "--only", name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{name} is left out: {done.stderr.strip().splitlines()[-1]}", flush=True)
        return None
    return float(done.stdout.splitlines()[-1])


def _report(rates: dict[str, list[float]]) -> None:
    from stages.runtime import versions

    print(f"\n{platform.machine()}, {os.cpu_count()} cores, {versions()}\n")
    print(f"{'':22} median   lowest  highest  over fit")
    base = statistics.median(rates["fit"])
    for name, found in rates.items():
        median = statistics.median(found)
        print(f"{name:22} {median:6,.0f} {min(found):8,.0f} {max(found):8,.0f} {median / base:9.2f}")
    ratios = {name: round(statistics.median(found) / base, 3) for name, found in rates.items() if name != "fit"}
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
