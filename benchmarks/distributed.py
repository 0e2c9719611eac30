"""Two processes compared with one, on the tutorial's network: images per second, and the cost of all-reduce.

Run as `python -m benchmarks.distributed`. Each run is one or two separate processes. They take turns, in another
order each round. A run trains one epoch to warm up and measures a second one. A model of the step time, fitted to
the figures and checked against those of two processes, predicts the speed with more machines. The last line
printed is JSON.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.process import ROOT
from benchmarks.training import MEASURED
from tools.launch import free_ports

IMAGES = 6_400
BATCH_SIZES = (32, 128)
REPEATS = 50  # of an all-reduce of all gradients
# Of each contestant its processes and the threads of each; those of half a batch are what two processes compute.
CONTESTANTS = {"1 x 1 thread": (1, 1), "2 x 1 thread": (2, 1), "1 x 2 threads": (1, 2)}

# The network that is measured, and one of ResNet-50's size (He et al. 2016: 25.6 million parameters; 4.1 billion
# multiply-adds an image of 224 x 224 in the forward pass, of which a training step takes three times as many).
TUTORIAL_GFLOP = 0.16  # an image in training
RESNET_50_PARAMETERS, RESNET_50_GFLOP = 25.6e6, 3 * 2 * 4.1
LINKS = {"10 Gbit/s": 10e9 / 8, "100 Gbit/s": 100e9 / 8}  # bytes a second
LATENCY = 50e-6  # seconds a message, of TCP between hosts of one room
WORKERS = (2, 4, 8, 16, 32, 64, 128, 256)


def main() -> None:
    """Measure one contestant in this process, or all of them in processes of their own."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.distributed", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs=2, type=int, metavar=("THREADS", "BATCH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(*options.only)))
        return
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    order = random.Random(0)
    turns = [(name, batch) for name in CONTESTANTS for batch in BATCH_SIZES]
    turns.append(("1 x 1 thread", BATCH_SIZES[0] // 2))
    for number in range(options.rounds):
        for name, batch in order.sample(turns, len(turns)):
            found.setdefault((name, batch), []).append(measured(*CONTESTANTS[name], batch))
            rate = found[name, batch][-1]["rate"]
            print(f"round {number + 1}: {name}, batch {batch}: {rate:,.0f} images/s", flush=True)
    report({turn: medians(found[turn]) for turn in turns}, options.rounds)


def measure(threads: int, batch: int) -> dict[str, float]:
    """Train as one of the cluster in TF_CONFIG, if any; return images a second, and seconds a reduction."""
    import mmap

    from stages.common.params import load
    from stages.model import runtime
    from stages.model.networks import build_model, load_network
    from stages.model.runtime import RuntimeParams

    path = ROOT / "params.yaml"
    strategy = "multi_worker" if "TF_CONFIG" in os.environ else "single"
    chosen = load(path, "runtime", RuntimeParams).model_copy(update={"threads": threads, "strategy": strategy})
    runtime.start(chosen, 0)
    import keras

    from benchmarks.training import clock
    from stages.common.splits import Split
    from stages.training.checkpoints import Checkpoints
    from stages.training.cluster import joined
    from stages.training.loop import Trainer
    from stages.training.params import TrainParams

    rng = np.random.default_rng(0)
    images = rng.random((IMAGES, 32, 32, 3), dtype=np.float32)
    labels = np.eye(10, dtype=np.float32)[rng.integers(0, 10, IMAGES)]
    training = Split(images, labels, "", mmap.mmap(-1, 1))
    validation = Split(images[:1], labels[:1], "", mmap.mmap(-1, 1))
    changes = {"batch_size": batch, "epochs": MEASURED + 1, "checkpoint_minutes": 1e9}
    params = load(path, "train", TrainParams).model_copy(update=changes)
    timer = clock()
    with joined(chosen) as cluster, tempfile.TemporaryDirectory() as folder:
        model: keras.Model = build_model(load_network(path), (32, 32, 3), 10)
        trainer = Trainer(model, params, training, validation, [timer], cluster)
        trainer.run(Checkpoints(Path(folder), "benchmark"))
        return {
            "rate": IMAGES / timer.seconds[MEASURED],
            "reduction": reduction(cluster, model),
            "parameters": float(model.count_params()),
        }


def reduction(cluster: Any, model: Any) -> float:
    """Return the seconds of an all-reduce of as many numbers as the model has weights, shaped as they are."""
    import tensorflow as tf

    def reduce(values: list[Any]) -> Any:
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.SUM, [value * 1.0 for value in values])

    def repeat() -> Any:
        values = [tf.convert_to_tensor(variable.value) for variable in model.trainable_variables]
        total = tf.constant(0.0)
        for _ in tf.range(REPEATS):
            reduced = cluster.strategy.run(reduce, args=(values,))
            first = cluster.strategy.experimental_local_results(reduced[0])[0]
            total += tf.reshape(first, [-1])[0]
        return total

    if cluster.replicas == 1:
        return 0.0
    compiled = tf.function(repeat)
    compiled()
    began = time.perf_counter()
    compiled()
    return (time.perf_counter() - began) / REPEATS


def measured(processes: int, threads: int, batch: int) -> dict[str, float]:
    """Run `measure` in so many processes of their own; return what the first of them found."""
    command = [sys.executable, "-m", "benchmarks.distributed", "--only", str(threads), str(batch)]
    addresses = [f"127.0.0.1:{port}" for port in free_ports(processes)]
    started = []
    for index in range(processes):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        cluster = {"TF_CONFIG": json.dumps(task)} if processes > 1 else {}
        environment = {**os.environ, **cluster}
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate()[0] for process in started]
    found: dict[str, float] = json.loads(outputs[0].splitlines()[-1])
    return found


def medians(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median of each figure."""
    return {name: statistics.median(each[name] for each in found) for name in found[0]}


@dataclass(frozen=True)
class Step:
    """What a training step of one worker takes: seconds of its own, and bytes of gradients to reduce."""

    seconds: float
    gradient_bytes: float

    def on(self, workers: int, bandwidth: float) -> float:
        """Return the seconds of a step of `workers`, joined by links of `bandwidth` bytes a second.

        A ring sends each gradient 2 (N - 1) / N times over each link, in 2 (N - 1) messages (Patarasuk and Yuan
        2009); nothing of it is hidden behind the computing.
        """
        return self.seconds + 2 * (workers - 1) * (self.gradient_bytes / workers / bandwidth + LATENCY)


def report(found: Mapping[tuple[str, int], Mapping[str, float]], rounds: int) -> None:
    """Print what was measured, what the model makes of it, and what it says of more workers."""
    print(f"\nimages a second, medians of {rounds} rounds\n")
    print(f"{'':14}" + "".join(f"{f'batch {batch}':>12}" for batch in BATCH_SIZES))
    for name in CONTESTANTS:
        print(f"{name:14}" + "".join(f"{found[name, batch]['rate']:12,.0f}" for batch in BATCH_SIZES))
    one, two, threads = (found[name, BATCH_SIZES[0]] for name in CONTESTANTS)
    half = found["1 x 1 thread", BATCH_SIZES[0] // 2]
    batch, parameters = BATCH_SIZES[0], one["parameters"]
    took = batch / two["rate"]
    predicted = batch / 2 / half["rate"] + two["reduction"]
    print(
        f"\nof a step of two processes at batch {batch}, {took * 1e3:.0f} ms, all-reduce alone takes "
        f"{two['reduction'] * 1e3:.0f} ms; computing half a batch and reducing: {predicted * 1e3:.0f} ms"
    )
    gflops = threads["rate"] * TUTORIAL_GFLOP
    networks = {
        "this network": Step(batch / threads["rate"], 4 * parameters),
        "ResNet-50's size": Step(batch * RESNET_50_GFLOP / gflops, 4 * RESNET_50_PARAMETERS),
        "the same, 100 x as fast": Step(batch * RESNET_50_GFLOP / gflops / 100, 4 * RESNET_50_PARAMETERS),
    }
    print(f"\non paper: times the images of one worker, {batch} images a worker and step\n")
    print(f"{'workers':37}{''.join(f'{workers:7}' for workers in WORKERS)}")
    for network, step in networks.items():
        for link, bandwidth in LINKS.items():
            times = (workers * step.seconds / step.on(workers, bandwidth) for workers in WORKERS)
            print(f"{network:25}{link:12}{''.join(f'{each:7.1f}' for each in times)}")
    ratios = {
        f"2x1_over_1x1_bs{batch}": found["2 x 1 thread", batch]["rate"] / found["1 x 1 thread", batch]["rate"]
        for batch in BATCH_SIZES
    }
    ratios |= {
        f"2x1_over_1x2_bs{batch}": found["2 x 1 thread", batch]["rate"] / found["1 x 2 threads", batch]["rate"]
        for batch in BATCH_SIZES
    }
    ratios |= {"reduction_share_bs32": two["reduction"] / took, "predicted_over_measured": predicted / took}
    print(json.dumps({name: round(value, 3) for name, value in ratios.items()}))


if __name__ == "__main__":
    main()
