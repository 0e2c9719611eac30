"""The recipes compared with the tutorial's `fit`: validation accuracy, and time from the start of the process.

    python -m benchmarks.recipes                            # where `dvc repro preprocess` has run: hours

In turns, each in a separate process: the tutorial's `fit` for 20 epochs (`fit`), and the train stage with the
recipes `tutorial`, `fast` and `accurate`, the last two in bfloat16 where `tools.recipe` chooses it. All train and
validate on the same images; the test split is not read. For `fast` and `accurate`, it also reports the accuracy
of the mean of 2 and of 6 views of each image, as `evaluate.views` does. CPU time is that of the process,
validation included; rely on it where other work shares the machine. benchmarks/recipes.json keeps the results of
each machine: a run with the same recipe and data is not repeated, so you can stop and resume. Delete that file
after a change of the code.
"""

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import vl_convert

from benchmarks import machine
from benchmarks.process import ROOT, measured, require_float32
from benchmarks.training import PARAMS, tutorial_model
from stages.common import failure
from stages.common.outputs import replacing, write_json
from stages.common.splits import Split
from tools.demo import choose
from tools.recipe import with_recipe

CONTESTANTS = ("fit", "tutorial", "fast", "accurate")
EPOCHS, BATCH_SIZE = 20, 32  # the tutorial's
KEPT = Path(__file__).with_suffix(".json")
ACCURACIES = ("accuracy", "views_2", "views_6")
TIMES = ("seconds", "cpu_seconds")
CHART = ROOT / "docs" / "recipes.svg"

Run = dict[str, Any]


def main(arguments: Sequence[str]) -> None:
    """Run one contestant in this process, or what is missing of all of them in processes of their own."""
    options = _parse(arguments)
    require_float32(options.processed)
    if options.only:
        print(json.dumps(run(options.only, options.seeds[0], options.processed, options.began)))
        return
    of_machines = json.loads(KEPT.read_bytes()) if KEPT.exists() else {}
    kept = still_true(of_machines, options.processed)
    for seed in options.seeds:
        for name in options.contestants:
            if str(seed) not in kept["runs"][name]:
                known = ["--processed", str(options.processed.resolve()), "--began", str(time.time())]
                found = measured("benchmarks.recipes", "--only", name, "--seeds", str(seed), *known)
                kept["runs"][name][str(seed)] = found
                write_json(KEPT, of_machines | {machine.describe(): kept})
                print(f"seed {seed}: {name} {found['accuracy']:.4f} in {found['seconds']:,.0f} s", flush=True)
    _report(kept)
    with replacing(CHART) as partial:
        partial.write_text(vl_convert.vegalite_to_svg(chart(kept["runs"])), encoding="utf-8")


def still_true(of_machines: Mapping[str, Any], processed: Path) -> dict[str, Any]:
    """Return what is kept of this machine, without the runs of another recipe or data."""
    kept = of_machines.get(machine.describe(), {})
    subjects = {name: what(name, processed) for name in CONTESTANTS}
    runs = {
        name: kept["runs"][name] if kept and kept["subjects"].get(name) == subject else {}
        for name, subject in subjects.items()
    }
    return {"subjects": subjects, "runs": runs}


def what(name: str, processed: Path) -> str:
    """Return the SHA-256, in hex, of the recipe of a contestant, the params around it, and the data."""
    recipe = b"" if name == "fit" else (ROOT / "recipes" / f"{name}.yaml").read_bytes() + PARAMS.read_bytes()
    return hashlib.sha256(recipe + (processed / "statistics.json").read_bytes()).hexdigest()


def run(name: str, seed: int, processed: Path, began: float) -> Run:
    """Train, and return accuracy, seconds since `began` (of the clock) and the points of the curve."""
    if name == "fit":
        return _fit(seed, processed, began)
    with tempfile.TemporaryDirectory() as folder:
        return _stage(name, seed, processed, began, Path(folder))


def _fit(seed: int, processed: Path, began: float) -> Run:
    import numpy as np

    from benchmarks.curve import Curve

    splits = [np.load(processed / f"{name}.npz") for name in ("train", "validation")]
    training, validation = ((split["images"], split["labels"]) for split in splits)
    model = tutorial_model(training[0].shape[1:], training[1].shape[1], seed)
    model.fit(
        *training, batch_size=BATCH_SIZE, epochs=EPOCHS, validation_data=validation, verbose=0, callbacks=[Curve()]
    )
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "model.keras")
    return _result(began)


def _stage(name: str, seed: int, processed: Path, began: float, folder: Path) -> Run:
    from stages import train
    from stages.common.records import Statistics, read_record, read_split

    recipe = (ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    params = folder / "params.yaml"
    params.write_text(with_recipe(PARAMS.read_text(encoding="utf-8"), recipe), encoding="utf-8")
    choose(params, {"train.seed": seed, "train.callbacks": ["benchmarks.curve.Curve"]})
    places = ["model", "metrics", "history", "environment", "logs", "checkpoints"]
    suffixes = {"model": ".keras", "metrics": ".csv"}
    options = [f"--{place}={folder / place / place}{suffixes.get(place, '')}" for place in places]
    train.main([f"--params={params}", f"--processed={processed}", *options])
    found = _result(began)
    found["model_sha256"] = json.loads((folder / "model" / "model.json").read_bytes())["sha256"]
    if name != "tutorial":
        validation = read_split(processed, "validation", read_record(processed / "statistics.json", Statistics))
        found |= _of_views(folder / "model" / "model.keras", validation)
    return found


def _result(began: float) -> Run:
    from benchmarks.curve import POINTS

    curve = [[round(when - began, 1), round(accuracy, 4)] for when, accuracy in POINTS]
    return {
        "accuracy": curve[-1][1],
        "seconds": round(time.time() - began, 1),
        "cpu_seconds": round(time.process_time(), 1),
        "curve": curve,
    }


def _of_views(model: Path, split: Split) -> Run:
    """The accuracy of the mean probabilities of 2 and of 6 views of each image."""
    from stages.model.inference import mean_of_views, predict_split
    from stages.model.trained import load_predictor

    predict, _ = load_predictor(model)
    truth = split.labels.argmax(axis=1)
    views = mean_of_views(predict, split, predict_split(predict, split), 6)
    hits = {f"views_{count}": found.argmax(axis=1) == truth for count, found in views.items()}
    return {name: round(float(found.mean()), 4) for name, found in hits.items()}


def _report(kept: Mapping[str, Any]) -> None:
    columns = "".join(f"{name:>20}" for name in ACCURACIES)
    print(f"\n{machine.describe()}\n\n{'':9} runs{columns}   seconds   CPU s")
    summary: dict[str, Any] = {}
    for name, runs in kept["runs"].items():
        if not runs:
            continue
        summary[name], cells = {}, []
        for key in ACCURACIES:
            found = [run[key] for run in runs.values() if key in run]
            spread = f" ± {statistics.stdev(found):.4f}" if len(found) > 1 else ""
            cells.append(f"{f'{statistics.mean(found):.4f}{spread}' if found else '':>20}")
            if found:
                summary[name][key] = round(statistics.mean(found), 4)
        for key in TIMES:
            summary[name][key] = statistics.median(run[key] for run in runs.values())
        print(f"{name:9} {len(runs):4}{''.join(cells)}{''.join(f'{summary[name][key]:10,.0f}' for key in TIMES)}")
    base = dict(summary.get("fit", {}))
    for figures in summary.values():
        for key in TIMES:
            figures[f"{key}_of_fit"] = base and round(figures.pop(key) / base[key], 3)
    print(json.dumps(summary))


def chart(runs: Mapping[str, Mapping[str, Run]]) -> dict[str, Any]:
    """Return the curves, accuracy by seconds, of the first seed of each contestant, as Vega-Lite."""
    names = {"fit": "tutorial, fit", "tutorial": "tutorial, this engine"}
    points = [
        {"run": names.get(name, name), "seconds": seconds, "accuracy": accuracy}
        for name, seeds in runs.items()
        if seeds
        for seconds, accuracy in next(iter(seeds.values()))["curve"]
    ]
    look = {"field": "run", "type": "nominal", "sort": None, "title": None, "legend": {"orient": "top"}}
    return {
        "background": "white",
        "width": 420,
        "height": 260,
        "data": {"values": points},
        "mark": {"type": "line", "point": True},
        "encoding": {
            "x": {"field": "seconds", "type": "quantitative", "title": "seconds from the start of the process"},
            "y": {
                "field": "accuracy",
                "type": "quantitative",
                "title": "validation accuracy",
                "scale": {"zero": False},
                "axis": {"format": ".0%"},
            },
            "color": look,
            "shape": {**look, "legend": None},
        },
    }


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipes", description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=CONTESTANTS)
    parser.add_argument("--processed", type=Path, default=Path("data/processed"), help="folder of the splits")
    parser.add_argument("--only", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(failure.run("recipes", main))
