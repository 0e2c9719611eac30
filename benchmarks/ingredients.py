"""What each ingredient of the fast recipe costs in time: training steps with one of them changed.

Run as `python -m benchmarks.ingredients`, or name some variants with `--variants`. All are compiled in one process
and take turns, one step each, on random images in the recipe's batches, so that other work on the machine slows
them down alike. They train in bfloat16 unless they say otherwise. Prints the median time of each variant's steps,
by the clock and by CPU time, relative to the recipe's on full-size images. docs/fast-recipe.md says what the
ingredients are worth in accuracy. The last line printed is JSON.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks import machine
from benchmarks.process import ROOT
from benchmarks.training import PARAMS, random_images
from stages.common import failure
from stages.common.params import load
from stages.model import runtime
from stages.model.networks import ModelParams, build_model, load_network
from stages.model.runtime import RuntimeParams
from stages.training.augmentation import scaled_size
from stages.training.params import TrainParams

RECIPE = ROOT / "recipes" / "fast.yaml"


@dataclass(frozen=True)
class Variant:
    """The recipe with these changes."""

    model: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    scale: float = 1.0
    policy: str = "mixed_bfloat16"
    without: str = ""  # the function of stages/training/step.py that replaces Keras's own by something faster


BASE = "as in the recipe"
VARIANTS = {
    BASE: Variant(),
    "images of 24 x 24": Variant(scale=0.75),
    "images of 20 x 20": Variant(scale=0.625),
    "images of 16 x 16": Variant(scale=0.5),
    "float32": Variant(policy="float32"),
    "Keras's own batch normalization": Variant(without="fuse_batch_norm"),
    "Keras's own gradient of weights": Variant(without="use_fast_weight_gradients"),
    "Keras's own gradient, 20 x 20": Variant(without="use_fast_weight_gradients", scale=0.625),
    "Keras's own gradient, 16 x 16": Variant(without="use_fast_weight_gradients", scale=0.5),
    "TensorFlow's own gradient of SiLU": Variant(without="use_fast_silu"),
    "ELU": Variant(model={"activation": "elu"}),
    "GELU": Variant(model={"activation": "gelu"}),
    "ReLU": Variant(model={"activation": "relu"}),
    "no shift": Variant(train={"shift": 0}),
    "no lookahead": Variant(train={"lookahead": 0}),
    "widths 64, 128, 128": Variant(model={"widths": [64, 128, 128]}),
    "widths 64, 256, 256": Variant(model={"widths": [64, 256, 256]}),
}


def main(arguments: Sequence[str]) -> None:
    """Compile all variants, time their steps in turns, print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ingredients", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=VARIANTS,
        default=list(VARIANTS),
        metavar="NAME",
        help=f"some of: {'; '.join(VARIANTS)}; the recipe itself runs in any case",
    )
    options = parser.parse_args(arguments)
    machine.require_bfloat16()
    network, params = load_network(RECIPE), load(RECIPE, "train", TrainParams)
    chosen = load(PARAMS, "runtime", RuntimeParams)
    runtime.start(chosen.model_copy(update={"precision": "bfloat16"}), params.seed)

    variants = {name: VARIANTS[name] for name in VARIANTS if name in {BASE, *options.variants}}
    steps = {name: compiled(variant, network, params) for name, variant in variants.items()}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name, step in steps.items():
            began, cpu_began = time.perf_counter(), time.process_time()
            step()
            taken[name].append((time.perf_counter() - began, time.process_time() - cpu_began))
    medians = {
        name: [statistics.median(kind) for kind in zip(*times, strict=True)] for name, times in taken.items()
    }
    base, cpu_base = medians[BASE]
    print(f"{machine.describe()}\nmedians of {options.rounds} rounds\n\n{'':34} time   CPU time   images/s")
    for name, (clock, cpu) in medians.items():
        print(f"{name:34} {clock / base:4.2f}   {cpu / cpu_base:8.3f}   {params.batch_size / clock:8,.0f}")
    print(
        json.dumps(
            {
                "time": {name: round(clock / base, 3) for name, (clock, _) in medians.items()},
                "cpu_time": {name: round(cpu / cpu_base, 3) for name, (_, cpu) in medians.items()},
            }
        )
    )


def compiled(variant: Variant, network: ModelParams, params: TrainParams) -> Callable[[], Any]:
    """Return a function that takes one step on a random batch, already traced."""
    import keras

    import stages.training.step
    from stages.training.cluster import alone
    from stages.training.optimization import build_optimizer

    network, params = network.model_copy(update=variant.model), params.model_copy(update=variant.train)
    keras.config.set_dtype_policy(variant.policy)
    images, labels = random_images(params.batch_size)
    shape = images.shape[1:]
    plain = (
        patch.object(stages.training.step, variant.without, lambda model: None)
        if variant.without
        else nullcontext()
    )
    with plain:
        model = build_model(network, shape, labels.shape[1])
        steps = stages.training.step.TrainingSteps(model, build_optimizer(params), params, alone(), params.epochs)
    rates = np.full(1, 1e-3, np.float32)
    size = scaled_size(variant.scale, *shape[:2])

    def step() -> Any:
        return steps(images[None, None], labels[None, None], rates, 0, params.batch_size, size)

    step()
    return step


if __name__ == "__main__":
    sys.exit(failure.run("ingredients", main))
