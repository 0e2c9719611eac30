"""Checks that recorded figures follow from the recorded confusion matrix, so that editing one file is noticed."""

import csv
import json
import math
from pathlib import Path

import numpy as np

from stages.common.failure import StageError
from stages.common.figures import parse_figures
from stages.evaluation import scoring

EVALUATION, METRICS = "metrics/evaluation.csv", "metrics/evaluation.json"
CONFUSION, PER_CLASS = "metrics/confusion.csv", "metrics/per_class.csv"
OF_COUNTS = (
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "f1_macro",
    "kappa",
    "matthews",
    "precision_macro",
    "recall_macro",
)


def contradicted(folder: Path) -> list[str]:
    """Describe the figures of the evaluation in `folder` that contradict its confusion matrix.

    Returns nothing if a file is missing. Raises `StageError` when a file cannot be read.
    """
    evaluation, confusion = folder / EVALUATION, folder / CONFUSION
    if not all(path.is_file() for path in (evaluation, confusion, folder / PER_CLASS)):
        return []
    try:
        figures = parse_figures(evaluation.read_bytes(), EVALUATION)
        with confusion.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        with (folder / PER_CLASS).open(encoding="utf-8", newline="") as file:
            number = {row["class"]: label for label, row in enumerate(csv.DictReader(file))}
        classes = len(number)
        pairs = [[number[row["label"]], number[row["predicted"]]] for row in rows]
        labels, predicted = np.repeat(pairs, [int(row["count"]) for row in rows], axis=0).T
        # With certain predictions: the figures compared here do not depend on the probabilities.
        found = scoring.score(labels, np.eye(classes)[predicted], k=1)
        metrics = json.loads((folder / METRICS).read_bytes()) if (folder / METRICS).is_file() else {}
        return [
            f"{name} is {value:.6g} in {METRICS}, and {figures.get(name)} in {EVALUATION}"
            for name, value in metrics.items()
            if value != figures.get(name)
        ] + [
            f"{name} is {figures[name]:.6g} in git, and {found[name]:.6g} by the counts of {CONFUSION} there"
            for name in OF_COUNTS
            if name in figures and not math.isclose(figures[name], found[name], rel_tol=1e-9, abs_tol=1e-12)
        ]
    except (ValueError, TypeError, LookupError, OverflowError, StageError) as error:
        raise StageError(f"{EVALUATION} and {CONFUSION} cannot be compared ({error})") from None
