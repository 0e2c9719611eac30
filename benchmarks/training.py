"""Compares this training loop with the tutorial's `model.fit`: images per second on the tutorial's network.

Run as `make bench`; `--json FILE` also writes everything measured, with the machine and its GPUs. Each run is a
separate process. The contestants take turns, in another order each round. A run trains one epoch to warm up and
measures a second one, of 6,400 random images; benchmarks.accuracy measures what is learned. `fit` has as many
threads as there are cores, TensorFlow's default; this training loop has those of params.yaml. Use an idle machine:
other work does not slow all contestants down equally. CPU time is less noisy than the clock, but it counts threads
that spin while waiting. A contestant that this machine cannot run is left out, with the reason. The last line
printed is JSON: the median of each rate over that of the tutorial's fit at batch 32, and in `per_cpu_second` the
same by CPU time.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.process import ROOT, measured
from stages.common import failure
from stages.common.failure import StageError
from stages.common.outputs import write_json
from stages.common.splits import Split

IMAGES = 6_400
MEASURED = 1  # the epoch, counted from 0
PARAMS = ROOT / "params.yaml"

Arrays = tuple[Any, Any]
Rates = tuple[float, float]  # images a second of the clock, and of CPU time
Contestant = Callable[[Arrays], Rates]


def main(arguments: Sequence[str]) -> None:
    """Measure one contestant in this process, or all of them in processes of their own."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=IMAGES, help="of an epoch")
    parser.add_argument(
        "--contestants",
        nargs="+",
        choices=CONTESTANTS,
        default=list(CONTESTANTS),
        metavar="NAME",
        help=f"some of: {', '.join(CONTESTANTS)}; fit, which all are compared with, runs in any case",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all rates and the machine here")
    parser.add_argument("--only", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.only:
        print(json.dumps(CONTESTANTS[options.only](random_images(options.images))))
        return
    rates: dict[str, list[Rates]] = {name: [] for name in CONTESTANTS if name in {"fit", *options.contestants}}
    order = random.Random(0)
    for number in range(options.rounds):
        for name in order.sample(list(rates), len(rates)):
            try:
                found = measured("benchmarks.training", "--only", name, "--images", str(options.images))
            except StageError as error:
                if name == "fit":
                    raise
                print(f"{name} is left out: {error}", flush=True)
                del rates[name]
                continue
            rates[name].append(found)
            print(f"round {number + 1}: {name} {found[0]:,.0f} images/s, {found[1]:,.0f} a CPU second", flush=True)
    ratios = _report(rates)
    if options.json:
        each = {
            name: {"images_per_second": clocked, "images_per_cpu_second": by_cpu}
            for name, (clocked, by_cpu) in ((name, zip(*found, strict=True)) for name, found in rates.items())
        }
        write_json(
            options.json,
            {"machine": machine.describe(), "gpus": machine.gpus(), "rates": each, "over_fit": ratios},
        )


def fit(arrays: Arrays, precision: str = "float32") -> Rates:
    """The tutorial's own lines: arrays in memory, `model.fit`."""
    if precision == "bfloat16":
        machine.require_bfloat16()
        import keras

        keras.config.set_dtype_policy("mixed_bfloat16")
    model = tutorial_model()
    timer = clock()
    model.fit(*arrays, batch_size=32, epochs=MEASURED + 1, verbose=0, callbacks=[timer])
    return _rates(timer, arrays)


def fit_tf_data(arrays: Arrays) -> Rates:
    """`fit` as its guide to performance has it: a tf.data set, prefetched, many steps an execution."""
    import tensorflow as tf

    model = tutorial_model(steps_per_execution=20)
    images = tf.data.Dataset.from_tensor_slices(arrays).shuffle(len(arrays[0]), seed=0).batch(32)
    timer = clock()
    model.fit(images.prefetch(tf.data.AUTOTUNE), epochs=MEASURED + 1, verbose=0, callbacks=[timer])
    return _rates(timer, arrays)


def engine(arrays: Arrays, precision: str = "float32", batch_size: int = 32, determinism: bool = True) -> Rates:
    """This project's training loop, without checkpoints."""
    import mmap

    start_engine(precision)
    if not determinism:
        # No public function of TensorFlow's takes back what `runtime.start` has switched on.
        from tensorflow.python.framework.config import disable_op_determinism

        disable_op_determinism()
    training = Split(arrays[0], arrays[1], "", mmap.mmap(-1, 1))
    validation = Split(arrays[0][:1], arrays[1][:1], "", mmap.mmap(-1, 1))
    timer = clock()
    changes = {"batch_size": batch_size, "epochs": MEASURED + 1, "checkpoint_minutes": 1e9}
    run_engine(training, validation, changes, [timer])
    return _rates(timer, arrays)


def start_engine(precision: str, seed: int = 0) -> None:
    """Load TensorFlow as the train stage does, with the params of params.yaml but for the precision."""
    from stages.common.params import load
    from stages.model import runtime

    chosen = load(PARAMS, "runtime", runtime.RuntimeParams).model_copy(update={"precision": precision})
    runtime.start(chosen, seed)


def run_engine(
    training: Split, validation: Split, changes: Mapping[str, Any], callbacks: Sequence[Any] = ()
) -> list[dict[str, float]]:
    """Train the network of params.yaml, whose section train gets `changes`; return a row an epoch."""
    from stages.common.params import load
    from stages.model.networks import build_model, load_network
    from stages.training.checkpoints import Checkpoints
    from stages.training.cluster import alone
    from stages.training.loop import Trainer
    from stages.training.params import TrainParams

    params = load(PARAMS, "train", TrainParams).model_copy(update=dict(changes))
    model = build_model(load_network(PARAMS), training.images.shape[1:], training.labels.shape[1])
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(model, params, training, validation, callbacks, alone())
        history, _ = trainer.run(Checkpoints(Path(folder), "benchmark"))
    return history


def pytorch(arrays: Arrays, precision: str = "float32") -> Rates:
    """PyTorch in eager mode: channels last, fused Adam, and for bfloat16 its autocast."""
    import torch
    from torch import nn

    low = precision == "bfloat16"
    if low:
        machine.require_bfloat16()
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
        began, cpu_began = time.perf_counter(), time.process_time()
        for batch in torch.randperm(len(images)).split(32):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
    return len(images) / (time.perf_counter() - began), len(images) / (time.process_time() - cpu_began)


CONTESTANTS: dict[str, Contestant] = {
    "fit": fit,
    "fit_bfloat16_bs32": lambda arrays: fit(arrays, "bfloat16"),
    "fit_tf_data": fit_tf_data,
    "float32_bs32": engine,
    "float32_bs32_any_order": lambda arrays: engine(arrays, determinism=False),
    "float32_bs128": lambda arrays: engine(arrays, batch_size=128),
    "bfloat16_bs32": lambda arrays: engine(arrays, "bfloat16"),
    "bfloat16_bs128": lambda arrays: engine(arrays, "bfloat16", 128),
    "float16_bs128": lambda arrays: engine(arrays, "float16", 128),
    "pytorch_float32_bs32": pytorch,
    "pytorch_bfloat16_bs32": lambda arrays: pytorch(arrays, "bfloat16"),
}


def tutorial_model(shape: tuple[int, ...] = (32, 32, 3), classes: int = 10, seed: int = 0, **options: Any) -> Any:
    """Return the tutorial's network, compiled, for images of `shape`; options are those of `compile`."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input(shape)])
    for filters in (32, 64):
        for _ in range(2):
            model.add(layers.Conv2D(filters, 3, padding="same", activation="relu"))
        model.add(layers.MaxPooling2D())
        model.add(layers.Dropout(0.25))
    for layer in (layers.Flatten(), layers.Dense(512, activation="relu"), layers.Dropout(0.5)):
        model.add(layer)
    # float32 also under mixed precision, as Keras's guide to it has it.
    model.add(layers.Dense(classes, activation="softmax", dtype="float32"))
    model.compile(optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"], **options)
    return model


def clock() -> Any:
    """Return a Keras callback that keeps the seconds of each epoch's batches, without validation, in `seconds`.

    Those of this process's CPU time, of all threads, are in `cpu_seconds`.
    """
    import keras

    class Clock(keras.callbacks.Callback):
        def __init__(self) -> None:
            super().__init__()
            self.seconds: dict[int, float] = {}
            self.cpu_seconds: dict[int, float] = {}

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self._epoch, self._began, self._cpu_began = epoch, time.perf_counter(), time.process_time()

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.seconds[self._epoch] = time.perf_counter() - self._began
            self.cpu_seconds[self._epoch] = time.process_time() - self._cpu_began

    return Clock()


def random_images(count: int) -> Arrays:
    """Return images and one-hot labels of CIFAR-10's shapes: float32 (count, 32, 32, 3) and (count, 10)."""
    rng = np.random.default_rng(0)
    labels = np.eye(10, dtype=np.float32)[rng.integers(0, 10, count)]
    return rng.random((count, 32, 32, 3), dtype=np.float32), labels


def _rates(timer: Any, arrays: Arrays) -> Rates:
    images = len(arrays[0])
    return images / timer.seconds[MEASURED], images / timer.cpu_seconds[MEASURED]


def _report(rates: Mapping[str, Sequence[Rates]]) -> dict[str, Any]:
    print(f"\n{machine.describe()}\n")
    print(f"{'':23} median   lowest  highest  over fit  over fit, a CPU second")
    medians = {
        name: [statistics.median(kind) for kind in zip(*found, strict=True)] for name, found in rates.items()
    }
    ratios: dict[str, Any] = {}
    by_cpu: dict[str, float] = {}
    for name, (rate, cpu_rate) in medians.items():
        over, cpu_over = rate / medians["fit"][0], cpu_rate / medians["fit"][1]
        clocked = [found for found, _ in rates[name]]
        print(f"{name:23} {rate:6,.0f} {min(clocked):8,.0f} {max(clocked):8,.0f} {over:9.2f} {cpu_over:23.2f}")
        if name != "fit":
            ratios[name], by_cpu[name] = round(over, 3), round(cpu_over, 3)
    ratios["per_cpu_second"] = by_cpu
    print(json.dumps(ratios))
    return ratios


if __name__ == "__main__":
    sys.exit(failure.run("training", main))
