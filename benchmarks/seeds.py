"""How much results vary with the seed: runs the pipeline with several, and prints mean and standard deviation.

    python -m benchmarks.seeds                        # the demo's digits, ten seeds
    python -m benchmarks.seeds --folder big --seeds 0 1 2 -S dataset.name=cifar10 -S runtime.cpu_isa=native

FOLDER keeps data, results and DVC's cache, so no run is repeated. `-S` is that of `dvc exp run`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import yaml

from stages.common import failure
from tools.demo import CHOICES, choose, prepare, run

FIGURES = {"train": ("val_accuracy", "val_loss"), "evaluation": ("accuracy", "loss")}


def main(arguments: Sequence[str]) -> None:
    """Run the seeds one after the other, then print."""
    options = _parse(arguments)
    prepare(Path.cwd(), options.folder)
    further = dict(choice.split("=", 1) for choice in options.set)
    choices = {**CHOICES, **{key: yaml.safe_load(value) for key, value in further.items()}}
    rows = {}
    for seed in options.seeds:
        choose(options.folder / "params.yaml", {**choices, "train.seed": seed})
        run(["dvc", "repro", "--quiet"], options.folder)
        rows[seed] = _figures(options.folder)
    table = pd.DataFrame.from_dict(rows, orient="index")
    # Of the sample, so over N - 1: what other seeds would give is estimated from these.
    summary = pd.DataFrame({"mean": table.mean(), "standard deviation": table.std(ddof=1)}).T
    print(pd.concat([table, summary]).to_string(float_format="{:.4f}".format))


def _figures(folder: Path) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name, keys in FIGURES.items():
        metrics = json.loads((folder / "metrics" / f"{name}.json").read_bytes())
        figures |= {(key if name == "train" else f"test_{key}"): metrics[key] for key in keys if key in metrics}
    return figures


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.seeds", description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=range(10))
    parser.add_argument("--folder", type=Path, default=Path("demo"))
    parser.add_argument("-S", dest="set", action="append", default=[], metavar="KEY=VALUE")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(failure.run("seeds", main))
