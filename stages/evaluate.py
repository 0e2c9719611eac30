"""Stage 4: evaluate the trained model on the test split, which no other stage has used.

Run as `python -m stages.evaluate`, with the options of `--help`; `dvc repro` does. Reads test.npz, validation.npz
and statistics.json from data/processed, the model with its record, and data/raw, to find test images that are also
in training. Writes metrics/evaluation.csv and evaluation.json, metrics/per_class.csv, metrics/confusion.csv,
metrics/reliability.csv, data/predictions.csv, metrics/risk_coverage.csv, models/confidence.json,
models/MODEL_CARD.md, and environment/evaluate.json, the record of the machine.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from stages.common import failure
from stages.common.confidence import Confidence, soften
from stages.common.exclusive import exclusive
from stages.common.final_fit import check_final_fit
from stages.common.outputs import write_json
from stages.common.params import load
from stages.common.records import Source, Statistics, read_record, read_split, require_same_data
from stages.common.splits import damaged
from stages.evaluation.confidence import abstention_threshold, figures, fit_temperature
from stages.evaluation.duplicates import find_leaks
from stages.evaluation.results import EvaluateParams, save_results
from stages.model import runtime
from stages.model.runtime import RuntimeParams


def main(arguments: Sequence[str]) -> None:
    """Parse, load, predict, score, save."""
    options = _parse(arguments)
    params = load(options.params, "evaluate", EvaluateParams)
    runtime_params = load(options.params, "runtime", RuntimeParams)
    with exclusive(options.metrics):
        began = time.monotonic()
        statistics = read_record(options.processed / "statistics.json", Statistics)
        test, validation = (read_split(options.processed, name, statistics) for name in ("test", "validation"))
        if not len(validation.images):
            check_final_fit(options.params)
        if params.top_k >= len(statistics.classes):
            print(
                f"evaluate: evaluate.top_k is {params.top_k}, but there are only {len(statistics.classes)} "
                "classes: every image counts as correct",
                file=sys.stderr,
            )
        leaks = None
        if params.duplicates != "none":
            source = read_record(options.raw / "source.json", Source)
            if source.dataset != statistics.dataset:
                raise damaged(options.raw / "source.json", "not the dataset of data/processed")
            raw_test, raw_train = (read_split(options.raw, name, source) for name in ("test", "train"))
            leaks = find_leaks(raw_test, raw_train, near=params.duplicates == "near", scratch=options.metrics)
        runtime.start(runtime_params, seed=0)
        from stages.model.inference import mean_of_views, predict_split  # only now, as they load TensorFlow
        from stages.model.trained import load_predictor

        predict, record = load_predictor(options.model)
        require_same_data(record, statistics)
        before, labels = predict_split(predict, test), test.labels.argmax(axis=1)
        confidence, fitted = Confidence(model_sha256=record.sha256), None
        if len(validation.images):
            fitted_on, truth = predict_split(predict, validation), validation.labels.argmax(axis=1)
            fitted = fit_temperature(truth, fitted_on)
            temperature = fitted if params.temperature == "validation" else 1.0
            confidence = Confidence(
                model_sha256=record.sha256,
                validation_sha256=statistics.splits["validation"].sha256,
                temperature=temperature,
                threshold=abstention_threshold(truth, soften(fitted_on, temperature), params.abstain),
            )
        probabilities = soften(before, confidence.temperature)
        views = mean_of_views(
            lambda images: soften(predict(images), confidence.temperature),
            test,
            probabilities,
            params.views,
        )
        write_json(options.confidence, confidence.model_dump())
        save_results(
            options.metrics,
            options.predictions,
            options.card,
            params,
            statistics,
            record,
            labels,
            probabilities,
            views,
            leaks,
            figures(labels, before, fitted, probabilities, confidence),
        )
        seconds = time.monotonic() - began
        log = options.logs / "evaluate.json"
        runtime.write_environment(options.environment, log, runtime_params, record.sha256, seconds)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stages.evaluate", description=__doc__.partition("\n")[0])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--raw", type=Path, default=Path("data/raw"), help="folder of the splits as downloaded")
    parser.add_argument("--processed", type=Path, default=Path("data/processed"), help="folder of the splits")
    parser.add_argument("--model", type=Path, default=Path("models/model.keras"))
    parser.add_argument("--metrics", type=Path, default=Path("metrics"), help="folder of the tables and figures")
    parser.add_argument("--confidence", type=Path, default=Path("models/confidence.json"))
    parser.add_argument("--card", type=Path, default=Path("models/MODEL_CARD.md"))
    parser.add_argument("--predictions", type=Path, default=Path("data/predictions.csv"))
    parser.add_argument("--environment", type=Path, default=Path("environment/evaluate.json"))
    parser.add_argument("--logs", type=Path, default=Path("logs"))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(failure.run("evaluate", main))
