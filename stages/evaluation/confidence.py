"""Fits temperature and abstention threshold on validation, and measures on test what they are worth."""

import math
import sys
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.common.confidence import Confidence, soften
from stages.evaluation import scoring

Labels = NDArray[np.int64]
Probabilities = NDArray[np.float32]

BOUNDS = (0.1, 10.0)  # of the temperature: a model that is always right would make it 0
DECIMALS = 4  # of the temperature, so that it does not depend on the last bits of a processor's logarithm


def fit_temperature(labels: Labels, probabilities: Probabilities) -> float:
    """Return the temperature of `stages.common.confidence.soften` with the lowest negative log-likelihood.

    labels: int64 (N,); probabilities: float32 (N, classes), of validation images. There is one minimum, as the
    likelihood is convex in 1/T. Returns 1 when no other temperature is better.
    """
    from scipy.optimize import minimize_scalar  # here, as only evaluate needs it

    # As logits, because a softmax does not change when a constant is added to them.
    logits = np.log(np.maximum(probabilities.astype(np.float64), np.finfo(np.float32).tiny))
    logits -= logits.max(axis=1, keepdims=True)
    of_label = logits[np.arange(len(labels)), labels]

    def loss(log_temperature: float) -> float:
        factor = math.exp(-log_temperature)
        return float((np.log(np.exp(logits * factor).sum(axis=1)) - of_label * factor).mean())

    low, high = map(math.log, BOUNDS)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-7})
    return round(math.exp(found.x), DECIMALS) if found.fun < loss(0) else 1.0


def abstention_threshold(labels: Labels, probabilities: Probabilities, error: float) -> float | None:
    """Return the lowest confidence from which the error rate is at most `error`; None when `error` is 0, for off.

    The confidence of a prediction is its probability. None and a note when no confidence is enough.
    """
    if not error:
        return None
    confidence, errors = _by_confidence(labels, probabilities)
    ends = np.flatnonzero(np.append(confidence[1:] != confidence[:-1], True))  # equal ones stay together
    good = ends[errors[ends] <= error * (ends + 1)]
    if not len(good):
        print(
            f"evaluate: evaluate.abstain is {error}, but even the most confident predictions on the validation "
            "split are wrong more often: the model always answers",
            file=sys.stderr,
        )
        return None
    return float(confidence[good[-1]])


def risk_coverage(labels: Labels, probabilities: Probabilities) -> pd.DataFrame:
    """Return coverage, error, threshold: the error rate among the most confident part of the images.

    A row for every percent of the images (El-Yaniv and Wiener 2010, JMLR 11), with the lowest confidence in it.
    """
    confidence, errors = _by_confidence(labels, probabilities)
    images = len(labels)
    counts = np.unique([-(-images * percent // 100) for percent in range(1, 101)])
    return pd.DataFrame(
        {
            "coverage": counts / images,
            "error": errors[counts - 1] / counts,
            "threshold": confidence[counts - 1].astype(np.float64),
        }
    )


def figures(
    labels: Labels,
    before: Probabilities,
    temperature: float | None,
    used: Probabilities,
    confidence: Confidence,
) -> dict[str, Any]:
    """Return the figures of the test split, for metrics/evaluation.csv.

    before: without a temperature; temperature: the fitted one, None without validation images, which leaves out
    what it is worth; used: the probabilities that `confidence` is for.
    """
    found: dict[str, Any] = {}
    if temperature is not None:
        found["temperature"] = temperature
        for name, probabilities in (("uncalibrated", before), ("calibrated", soften(before, temperature))):
            score = scoring.score(labels, probabilities)
            found[name] = {key: score[key] for key in ("loss", "calibration_error")}
    if confidence.threshold is not None:
        answered = confidence.certain(used)
        correct = (used.argmax(axis=1) == labels)[answered]
        found["abstain"] = {
            "threshold": confidence.threshold,
            "coverage": float(answered.mean()),
            "accuracy": float(correct.mean()) if len(correct) else None,
        }
    return found


def _by_confidence(labels: Labels, probabilities: Probabilities) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the confidences in descending order, and the number of errors up to each."""
    order = np.argsort(-probabilities.max(axis=1), kind="stable")
    wrong = (probabilities.argmax(axis=1) != labels)[order]
    return probabilities.max(axis=1)[order], wrong.cumsum()
