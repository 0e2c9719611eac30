"""Stage 4: judge the trained model on the test split, which nothing read before.

Run as `python -m stages.evaluate`, with the options of `--help`; `dvc repro` does. Reads test.npz and
statistics.json of data/processed, the model, and metrics/train.json, which names the model's SHA-256;
writes metrics/evaluation.json, which stages/evaluation.schema.json describes, metrics/per_class.csv,
metrics/confusion.csv, metrics/reliability.csv, data/predictions.csv, models/MODEL_CARD.md and
environment/evaluate.json, which tells the machine.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field

from stages import failure, runtime, scoring
from stages.card import model_card
from stages.exclusive import exclusive
from stages.failure import StageError
from stages.outputs import replacing, write_json, write_table
from stages.params import Section, load
from stages.records import Statistics, read_record, read_split
from stages.runtime import RuntimeParams

if TYPE_CHECKING:
    from stages.inference import Predictor

SCHEMA_VERSION = 1
SCHEMA = Path(__file__).with_name("evaluation.schema.json")


class EvaluateParams(Section):
    """`evaluate` of params.yaml."""

    top_k: int = Field(ge=1)  # a hit when the label is among so many most probable classes
    flip: bool  # also judge the mean of what is said of each image and of its mirror image


def main(arguments: Sequence[str]) -> None:
    """Parse, load, predict, score, save."""
    options = _parse(arguments)
    params = load(options.params, "evaluate", EvaluateParams)
    runtime_params = load(options.params, "runtime", RuntimeParams)
    with exclusive(options.metrics):
        began = time.time()
        statistics = read_record(options.processed / "statistics.json", Statistics)
        test = read_split(options.processed, "test", statistics)
        if params.top_k >= len(statistics.classes):
            print(
                f"evaluate: evaluate.top_k is {params.top_k} of {len(statistics.classes)} classes: every image is "
                "a hit",
                file=sys.stderr,
            )
        digest = _trained_here(options.model, options.train_metrics)
        runtime.start(runtime_params, seed=0)
        predict = _load(options.model, test.images.shape[1:])
        probabilities, labels = predict(test.images), test.labels.argmax(axis=1)
        further: dict[str, Any] = {"model_sha256": digest}
        if params.flip:
            mirrored = predict(test.images[:, :, ::-1])
            further["flip"] = scoring.score(labels, (probabilities + mirrored) / 2, params.top_k)
        _save(options, params, statistics, labels, probabilities, further)
        seconds = time.time() - began
        log = options.logs / "evaluate.json"
        runtime.write_environment(options.environment, log, runtime_params, digest, seconds)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stages.evaluate", description=__doc__.partition("\n")[0])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--processed", type=Path, default=Path("data/processed"), help="folder of the splits")
    parser.add_argument("--model", type=Path, default=Path("models/model.keras"))
    parser.add_argument("--train-metrics", type=Path, default=Path("metrics/train.json"))
    parser.add_argument("--metrics", type=Path, default=Path("metrics"), help="folder of the tables and figures")
    parser.add_argument("--card", type=Path, default=Path("models/MODEL_CARD.md"))
    parser.add_argument("--predictions", type=Path, default=Path("data/predictions.csv"))
    parser.add_argument("--environment", type=Path, default=Path("environment/evaluate.json"))
    parser.add_argument("--logs", type=Path, default=Path("logs"))
    return parser.parse_args(arguments)


def _trained_here(model: Path, train_metrics: Path) -> str:
    """Return the model file's SHA-256 when `train_metrics` names it: loading a stranger's model runs its code."""
    try:
        found = hashlib.sha256(model.read_bytes()).hexdigest()
        expected = json.loads(train_metrics.read_bytes())["model_sha256"]
    except FileNotFoundError as error:
        raise StageError(f"{error.filename}: no such file; run: dvc repro") from None
    except (ValueError, LookupError, TypeError):  # not JSON, no such key, or not an object
        raise StageError(
            f"{train_metrics}: not what the stage train writes; run: dvc repro --force train"
        ) from None
    if found != expected:
        raise StageError(
            f"{model}: sha256 {expected} expected by {train_metrics}, {found} found: not the model that the "
            "stage train wrote; run: dvc repro --force train"
        )
    return found


def _load(path: Path, shape: tuple[int, ...]) -> "Predictor":
    import keras

    from stages.inference import Predictor

    model: keras.Model = keras.saving.load_model(path, compile=False, safe_mode=True)
    if model.input_shape[1:] != shape:
        raise StageError(
            f"{path}: takes images of {model.input_shape[1:]}, the test split has {shape}; run: dvc repro train"
        )
    return Predictor(model)


def _save(
    options: argparse.Namespace,
    params: EvaluateParams,
    statistics: Statistics,
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float32],
    further: Mapping[str, Any],
) -> None:
    classes = statistics.classes
    predicted = probabilities.argmax(axis=1)
    official = statistics.splits["test"].official
    for note in scoring.notes(labels, predicted, classes):
        print(f"evaluate: {note}", file=sys.stderr)

    names = np.asarray(classes)
    predictions = pd.DataFrame({"label": names[labels], "prediction": names[predicted]})
    for index, name in enumerate(classes):
        predictions[f"probability_{name}"] = probabilities[:, index]
    write_table(options.predictions, predictions)
    per_class = scoring.per_class(labels, probabilities, classes)
    write_table(options.metrics / "per_class.csv", per_class)
    write_table(options.metrics / "confusion.csv", scoring.confusion(labels, predicted, classes))
    bins = scoring.reliability(labels, probabilities)
    bins = bins[bins["count"] > 0].rename(columns={"count": "images"})
    write_table(options.metrics / "reliability.csv", bins[["confidence", "accuracy", "images"]])
    hits = labels[:official] == predicted[:official]
    evaluation = {
        "schema_version": SCHEMA_VERSION,
        "dataset": statistics.dataset.name,
        "dataset_edition": statistics.dataset.edition,
        "dataset_sha256": statistics.dataset.sha256,
        **scoring.score(labels, probabilities, params.top_k),
        "test_images": len(labels),
        # On the test images that are byte for byte the authors' own; null where there is none.
        "official_test_images": official,
        "official_accuracy": float(hits.mean()) if official else None,
        **further,
    }
    jsonschema.validate(evaluation, json.loads(SCHEMA.read_bytes()))
    write_json(options.metrics / "evaluation.json", evaluation)
    with replacing(options.card) as partial:
        partial.write_text(model_card(evaluation, per_class, statistics), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(failure.run("evaluate", main))
