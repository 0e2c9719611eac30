"""Significance of the difference between two models on the same images. Arrays in, plain numbers out.

    mcnemar(gained, lost)   an exact test on the images that only one of the models classifies correctly
    intervals(a, b)         95 % bootstrap intervals of the difference of each metric

Paired tests cancel what is easy or hard for both models, so they detect differences that separate confidence
intervals of the two accuracies would hide.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from stages.evaluation.scoring import EPSILON, Floats, Integers

RESAMPLES = 2_000  # 50 on each side of a 95 % interval
SEED = 0  # the same comparison always prints the same numbers
MARGIN_METRICS = ("precision_macro", "recall_macro", "f1_macro", "kappa", "matthews")


class PredictedSplit:
    """One model's predictions, prepared so that metrics are quick to compute for many resamples."""

    def __init__(self, labels: Integers, probabilities: Floats, top_k: int) -> None:
        """Take `labels` (N,) and `probabilities` (N, C), already checked by `scoring.score`."""
        outputs = probabilities.astype(np.float64)
        of_label = outputs[np.arange(len(labels)), labels]
        before = (np.arange(outputs.shape[1]) < labels[:, None]) & (outputs == of_label[:, None])
        rank = ((outputs > of_label[:, None]) | before).sum(axis=1)
        likelihood = (of_label / outputs.sum(axis=1)).clip(EPSILON, 1 - EPSILON)
        is_label = np.arange(outputs.shape[1]) == labels[:, None]
        self.labels = labels
        self.predicted = outputs.argmax(axis=1)
        self.right: NDArray[np.bool_] = self.predicted == labels
        self.classes = outputs.shape[1]
        self.names = ("accuracy", f"top_{top_k}_accuracy", "loss", "brier", *MARGIN_METRICS)
        self._values = np.stack(
            [self.right, rank < top_k, -np.log(likelihood), ((outputs - is_label) ** 2).sum(axis=1)]
        )

    def metrics(self, weights: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the metrics `names` (M,) with image i counted `weights[i]` times, `weights` (N,)."""
        support = np.bincount(self.labels, weights, self.classes)
        guesses = np.bincount(self.predicted, weights, self.classes)
        hits = np.bincount(self.labels, weights * self.right, self.classes)
        return np.concatenate([self._values @ weights / weights.sum(), _margin_metrics(support, guesses, hits)])


def mcnemar(gained: int, lost: int) -> float:
    """Return the exact two-sided p-value of `gained` against `lost` (McNemar 1947, Psychometrika 12).

    If both models are equally good, each image that only one of them gets right is a fair coin toss.
    """
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def intervals(a: PredictedSplit, b: PredictedSplit) -> dict[str, tuple[float, float]]:
    """Return the 95 % percentile interval of b - a for each metric, by resampling the images.

    Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13. Both models are scored on the same
    resamples. One image alone has no interval.
    """
    images = len(a.labels)
    if images < 2:
        return {}
    generator = np.random.Generator(np.random.PCG64(SEED))
    differences = np.empty((RESAMPLES, len(a.names)))
    for row in differences:
        weights = np.bincount(generator.integers(images, size=images), minlength=images)
        row[:] = b.metrics(weights) - a.metrics(weights)
    low, high = np.percentile(differences, (2.5, 97.5), axis=0).tolist()
    return dict(zip(a.names, zip(low, high, strict=True), strict=True))


def _margin_metrics(support: NDArray[Any], guesses: NDArray[Any], hits: NDArray[Any]) -> list[float]:
    """Return the metrics that depend only on the confusion matrix's margins and diagonal, each (C,)."""
    samples, right, chance = support.sum(), hits.sum(), support @ guesses
    variances = (samples**2 - support @ support) * (samples**2 - guesses @ guesses)
    return [
        _ratios(hits, guesses).mean(),
        _ratios(hits, support).mean(),
        _ratios(2 * hits, support + guesses).mean(),
        (samples * right - chance) / (samples**2 - chance) if samples**2 > chance else 0.0,
        (samples * right - chance) / variances**0.5 if variances else 0.0,
    ]


def _ratios(part: NDArray[Any], whole: NDArray[Any]) -> Floats:
    ratios: Floats = np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)
    return ratios
