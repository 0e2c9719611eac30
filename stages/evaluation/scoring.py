"""Computes metrics from predictions: arrays in, floats and tables out. No files, no TensorFlow.

    score(labels, probabilities)               a flat dict, for metrics/evaluation.csv
    per_class(labels, probabilities, classes)  a row per class, for metrics/per_class.csv
    confusion(labels, predicted, classes)      a row per pair of classes, for metrics/confusion.csv
    most_confused, reliability, notes          further tables and remarks for reports

`labels` are integers (N,), `probabilities` floats (N, C) from a softmax, `predicted` is their argmax (N,).
Ties between probabilities go to the lowest class index, in the prediction (like NumPy's argmax) and in the top k.
Counts are integers and sums are exact (`math.fsum`), so the numbers depend neither on the order of the samples nor
on the processor's vector width.

A metric whose denominator is zero is 0, like scikit-learn's zero_division=0, and `notes` reports it.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.common.failure import StageError

Integers = NDArray[np.integer[Any]]
Floats = NDArray[np.floating[Any]]

EPSILON = 1e-7  # keras.backend.epsilon(): no probability counts as closer to 0 or 1 than this in the loss
Z95 = 1.959963984540054  # the normal distribution's 97.5 % quantile: 95 % lie within ± this
MOST_PAIRED = 100  # classes, with a row for each pair of them in the confusion matrix
MOST_NAMED = 10  # classes in a note
SUM_TOLERANCE = 0.01  # a softmax in bfloat16, 8 bits of precision, adds up to 1 within 0.4 %


def score(labels: Integers, probabilities: Floats, k: int = 3) -> dict[str, float]:
    """Return the metrics over all samples, as finite floats.

    - accuracy, with its 95 % confidence interval from accuracy_low to accuracy_high: see `wilson`.
    - top_{k}_accuracy: the fraction of samples whose label is among the k most probable classes.
    - loss: the negative log-likelihood, the mean of -ln p(label), in nats. Clipped like Keras's
      categorical_crossentropy on probabilities, so at most 16.12. (In `fit` and `evaluate` Keras uses the
      unclipped logits where it has them; the results differ below p = 1e-7.)
    - brier: the mean of Σ(p - y)² over the classes, from 0 to 2 (Brier 1950, Monthly Weather Review 78).
    - calibration_error: Σ count/N · |accuracy - confidence| over the 15 bins of `reliability`
      (Guo et al. 2017, On Calibration of Modern Neural Networks, equation 3).
    - precision_macro, recall_macro, f1_macro, roc_auc_macro: unweighted means of the columns of `per_class`; for
      ROC AUC, over the classes for which it is defined, or 0 if there is none.
    - kappa: agreement corrected for chance (Cohen 1960, Educational and Psychological Measurement 20).
    - matthews: the correlation of label and prediction (Gorodkin 2004, Computational Biology and Chemistry 28).

    Raises `StageError` if there is no sample, if a row does not hold probabilities, or if a label is not one of
    the C classes.
    """
    labels, probabilities = _checked(labels, probabilities)
    samples, classes = probabilities.shape
    counts = _counts(labels, probabilities.argmax(axis=1), classes)
    correct = int(counts.trace())
    low, high = wilson(correct, samples)

    of_label = probabilities[np.arange(samples), labels]
    is_label = np.arange(classes) == labels[:, None]
    before = (np.arange(classes) < labels[:, None]) & (probabilities == of_label[:, None])
    rank = ((probabilities > of_label[:, None]) | before).sum(axis=1)
    likelihood = (of_label / probabilities.sum(axis=1)).clip(EPSILON, 1 - EPSILON)

    bins = reliability(labels, probabilities)
    gaps = bins["count"] * (bins["accuracy"] - bins["confidence"]).abs()
    precision, recall, f1 = _precision_recall_f1(counts)
    return {
        "accuracy": correct / samples,
        "accuracy_low": low,
        "accuracy_high": high,
        f"top_{k}_accuracy": int((rank < k).sum()) / samples,
        # math.log, because the last bit of NumPy's depends on the instruction set.
        "loss": math.fsum(-math.log(p) for p in likelihood) / samples,
        "brier": math.fsum(((probabilities - is_label) ** 2).flat) / samples,
        "calibration_error": math.fsum(gaps) / samples,
        "precision_macro": _mean(precision),
        "recall_macro": _mean(recall),
        "f1_macro": _mean(f1),
        "roc_auc_macro": _mean([area for area in _roc_auc(labels, probabilities) if area is not None]),
        "kappa": _kappa(counts),
        "matthews": _matthews(counts),
    }


def balanced_accuracy(labels: Integers, predicted: Integers, classes: int) -> float:
    """Return the mean recall of the classes that have samples, as scikit-learn's `balanced_accuracy_score`."""
    counts = _counts(labels, predicted, classes)
    support = counts.sum(axis=1)
    return _mean(counts.diagonal()[support > 0] / support[support > 0])


def wilson(correct: int, samples: int) -> tuple[float, float]:
    """Return the 95 % score interval of the proportion correct / samples (Wilson 1927, JASA 22).

    Unlike p ± 1.96·√(p(1-p)/n), it stays within 0 and 1 and is not empty where p is 0 or 1.
    """

    def lower(count: int) -> float:
        centre = count + Z95 * Z95 / 2
        half = Z95 * math.sqrt(count * (samples - count) / samples + Z95 * Z95 / 4)
        return (centre - half) / (samples + Z95 * Z95)

    # The upper bound is the lower bound of the errors, so 0 and 1 stay exact.
    return lower(correct), 1 - lower(samples - correct)


def per_class(labels: Integers, probabilities: Floats, classes: Sequence[str]) -> pd.DataFrame:
    """Return a row per class: class, support, predicted (counts), precision, recall, f1, roc_auc.

    roc_auc is one-vs-rest: the probability that a sample of the class scores higher for it than a sample of
    another class, where ties count half (Hanley and McNeil 1982, Radiology 143). It is undefined where all samples
    or none belong to the class: reported as 0, and left out of the mean in `score`, where 0 would mean that the
    ranking is reversed. Raises `StageError` like `score`.
    """
    labels, probabilities = _checked(labels, probabilities)
    counts = _counts(labels, probabilities.argmax(axis=1), len(classes))
    precision, recall, f1 = _precision_recall_f1(counts)
    return pd.DataFrame(
        {
            "class": list(classes),
            "support": counts.sum(axis=1),
            "predicted": counts.sum(axis=0),
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "roc_auc": [area or 0.0 for area in _roc_auc(labels, probabilities)],
        }
    )


def confusion(labels: Integers, predicted: Integers, classes: Sequence[str]) -> pd.DataFrame:
    """Return label, predicted, count: a row per pair of classes, in the order of `classes`.

    Pairs that do not occur have the count 0. With more than `MOST_PAIRED` classes they are left out.
    """
    counts = _counts(labels, predicted, len(classes))
    rows, columns = np.nonzero((counts > 0) | (len(classes) <= MOST_PAIRED))
    return pd.DataFrame(
        {
            "label": [classes[row] for row in rows.tolist()],
            "predicted": [classes[column] for column in columns.tolist()],
            "count": counts[rows, columns],
        }
    )


def most_confused(labels: Integers, predicted: Integers, classes: Sequence[str], most: int = 10) -> pd.DataFrame:
    """Return the errors among the rows of `confusion`, most frequent first, ties in the order of `classes`."""
    pairs = confusion(labels, predicted, classes)
    mistakes = pairs[(pairs["label"] != pairs["predicted"]) & (pairs["count"] > 0)]
    return mistakes.sort_values("count", ascending=False, kind="stable", ignore_index=True).head(most)


def reliability(labels: Integers, probabilities: Floats, bins: int = 15) -> pd.DataFrame:
    """Return low, high, count, confidence, accuracy: the samples binned by the probability of their prediction.

    The bins match torchmetrics (1.9, multiclass_calibration_error): equal widths, low <= confidence < high in
    float32, and an extra bin for a confidence of exactly 1, as from a saturated softmax. An empty bin has
    confidence and accuracy 0. Raises `StageError` like `score`.
    """
    labels, probabilities = _checked(labels, probabilities)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    edges = np.arange(bins + 1) / bins
    index = np.searchsorted(edges.astype(np.float32), confidence.astype(np.float32), side="right") - 1
    members = [index == number for number in range(bins + 1)]
    return pd.DataFrame(
        {
            "low": edges,
            "high": np.append(edges[1:], 1.0),
            "count": [int(inside.sum()) for inside in members],
            "confidence": [_mean(confidence[inside]) for inside in members],
            "accuracy": [_mean(right[inside]) for inside in members],
        }
    )


def notes(labels: Integers, predicted: Integers, classes: Sequence[str]) -> list[str]:
    """Return lines about the classes with metrics that are 0 because their denominator is zero."""
    counts = _counts(labels, predicted, len(classes))
    support, guesses = counts.sum(axis=1), counts.sum(axis=0)
    cases = (
        (guesses == 0, "never predicted: precision and F1 are reported as 0"),
        (
            support == 0,
            "without a sample in this split: recall, F1 and ROC AUC are reported as 0, and roc_auc_macro leaves "
            "them out",
        ),
        (
            support == len(labels),
            "the label of every sample: ROC AUC, Cohen's kappa and Matthews coefficient have nothing to "
            "compare it with and are reported as 0",
        ),
    )
    lines = []
    for concerned, problem in cases:
        names = [f"'{classes[label]}'" for label in np.flatnonzero(concerned).tolist()]
        more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
        if names:
            lines.append(f"{', '.join(names[:MOST_NAMED])}{more}: {problem}")
    return lines


def _checked(labels: Integers, probabilities: Floats) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return both as int64 and float64; raises `StageError` when they cannot be scored."""
    if labels.ndim != 1 or probabilities.ndim != 2 or len(labels) != len(probabilities) or len(labels) == 0:
        raise StageError(
            f"labels {labels.shape} with probabilities {probabilities.shape} cannot be scored, the shapes "
            "must be (N,) with (N, classes), N at least 1; run `dvc repro` to rebuild the data"
        )
    outputs = probabilities.astype(np.float64)
    with np.errstate(invalid="ignore"):  # the sum of a row with both infinities
        totals = outputs.sum(axis=1)
    wrong = ~((outputs >= 0).all(axis=1) & (abs(totals - 1) <= SUM_TOLERANCE))
    if wrong.any():
        row = int(wrong.argmax())
        raise StageError(
            f"sample {row}: outputs from {outputs[row].min():.6g} to {outputs[row].max():.6g} with the sum "
            f"{totals[row]:.6g} are not probabilities (the first of {wrong.sum()} such samples); "
            "end the network in softmax, and if training diverged, lower the learning rate"
        )
    return labels.astype(np.int64, casting="same_kind"), outputs


def _counts(labels: Integers, predicted: Integers, classes: int) -> NDArray[np.int64]:
    """Return the confusion matrix (classes, classes): a row per label, a column per prediction."""
    for kind, indices in (("label", labels), ("prediction", predicted)):
        beyond = (indices < 0) | (indices >= classes)
        if beyond.any():
            row = int(beyond.argmax())
            raise StageError(
                f"sample {row}: {kind} {indices[row]} is not among the classes 0 to {classes - 1}: "
                "the data and the model do not belong together; run `dvc repro`"
            )
    # In 64 bits: the 400 cells of 20 classes do not fit the uint8 of the labels.
    cells = labels.astype(np.int64) * classes + predicted
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def _precision_recall_f1(counts: NDArray[np.int64]) -> tuple[Floats, Floats, Floats]:
    # Imported here because scikit-learn takes a second to import, and intervals and counts do not need it.
    from sklearn.metrics import precision_recall_fscore_support

    labels, predicted = np.indices(counts.shape).reshape(2, -1)
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, predicted, labels=range(len(counts)), sample_weight=counts.ravel(), zero_division=0
    )
    return precision, recall, f1


def _roc_auc(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> list[float | None]:
    """Return each class's area: correctly ranked pairs plus half the ties, over all pairs; None without pairs."""
    areas: list[float | None] = []
    for index, column in enumerate(probabilities.T):
        inside, outside = column[labels == index], np.sort(column[labels != index])
        below, not_above = (np.searchsorted(outside, inside, side=side).sum() for side in ("left", "right"))
        pairs = len(inside) * len(outside)
        areas.append((int(below) + int(not_above)) / (2 * pairs) if pairs else None)
    return areas


def _kappa(counts: NDArray[np.int64]) -> float:
    """Return (observed - expected) / (1 - expected), computed with N² times both to stay in integers."""
    samples = int(counts.sum())
    expected = int(counts.sum(axis=1) @ counts.sum(axis=0))
    possible = samples**2 - expected
    return (samples * int(counts.trace()) - expected) / possible if possible else 0.0


def _matthews(counts: NDArray[np.int64]) -> float:
    samples, labels, predicted = int(counts.sum()), counts.sum(axis=1), counts.sum(axis=0)
    covariance = samples * int(counts.trace()) - int(labels @ predicted)
    # Python integers, because the product of the variances exceeds 64 bits at about 50,000 samples.
    variances = (samples**2 - int(labels @ labels)) * (samples**2 - int(predicted @ predicted))
    return covariance / math.sqrt(variances) if variances else 0.0


def _mean(values: Sequence[float] | NDArray[Any]) -> float:
    return math.fsum(values) / len(values) if len(values) else 0.0
