"""What evaluate writes about one model on the test split: metrics, tables, predictions and the model card."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field

from stages.common.figures import write_figures
from stages.common.outputs import replacing, write_table
from stages.common.params import Section
from stages.common.records import ModelRecord, Statistics
from stages.evaluation import scoring
from stages.evaluation.card import model_card
from stages.evaluation.confidence import risk_coverage

UNBALANCED = 2  # times as many images in the largest class as in the smallest


class EvaluateParams(Section):
    """`evaluate` of params.yaml."""

    top_k: int = Field(ge=1)  # a hit when the label is among so many most probable classes
    views: Literal[1, 2, 6]  # also score with test-time augmentation: see `mean_of_views`
    # Which test images count as seen in training: those with the pixels of a training image, or near copies too.
    duplicates: Literal["none", "identical", "near"]
    temperature: Literal["none", "validation"]  # of the probabilities, fitted on the validation split
    abstain: float = Field(ge=0, lt=1)  # the error rate on validation that the threshold is chosen for; 0: off


def save_results(
    metrics: Path,
    predictions: Path,
    card: Path,
    params: EvaluateParams,
    statistics: Statistics,
    record: ModelRecord,
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float32],
    views: Mapping[int, NDArray[np.float32]],
    leaks: NDArray[np.float64] | None,
    confidence: Mapping[str, Any],
) -> None:
    """Score the predictions on the test split and write every table, the metrics and the model card.

    metrics: folder; labels: int64 (N,); probabilities: float32 (N, classes); views: the same with test-time
    augmentation, by number of views; leaks: of each image, see `duplicates.find_leaks`; confidence: further
    figures, see `confidence.figures`.
    """
    classes = statistics.classes
    predicted = probabilities.argmax(axis=1)
    official = statistics.splits["test"].official
    for note in scoring.notes(labels, predicted, classes):
        print(f"evaluate: {note}", file=sys.stderr)

    names = np.asarray(classes)
    columns = {f"probability_{name}": probabilities[:, index] for index, name in enumerate(classes)}
    write_table(predictions, pd.DataFrame({"label": names[labels], "prediction": names[predicted], **columns}))
    per_class = scoring.per_class(labels, probabilities, classes)
    write_table(metrics / "per_class.csv", per_class)
    write_table(metrics / "confusion.csv", scoring.confusion(labels, predicted, classes))
    bins = scoring.reliability(labels, probabilities)
    bins = bins[bins["count"] > 0].rename(columns={"count": "images"})
    write_table(metrics / "reliability.csv", bins[["confidence", "accuracy", "images"]])
    write_table(metrics / "risk_coverage.csv", risk_coverage(labels, probabilities))
    correct = labels[:official] == predicted[:official]
    support = np.bincount(labels, minlength=len(classes))
    unbalanced = support.max() > UNBALANCED * support.min()
    figures = {
        **scoring.score(labels, probabilities, params.top_k),
        "balanced_accuracy": scoring.balanced_accuracy(labels, predicted, len(classes)) if unbalanced else None,
        # On the test images that are identical to the published ones.
        "official_accuracy": float(correct.mean()) if official else None,
        **{f"views_{count}": scoring.score(labels, mean, params.top_k) for count, mean in views.items()},
        **confidence,
        **({} if leaks is None else _leaks(labels == predicted, leaks)),
        "test_images": len(labels),
        "official_test_images": official,
        "dataset": statistics.dataset.name,
        "dataset_edition": statistics.dataset.edition,
        "dataset_sha256": statistics.dataset.sha256,
        "model_sha256": record.sha256,
    }
    # As many as fit `dvc exp show` on a terminal of 120 columns, beside those of train.
    decisive = "official_accuracy" if 0 < official < len(labels) else "balanced_accuracy" if unbalanced else "loss"
    write_figures(metrics / "evaluation.csv", figures, ["accuracy", decisive])
    with replacing(card) as partial:
        partial.write_text(
            model_card(figures, per_class, statistics, record.origin, record.class_weights is not None),
            encoding="utf-8",
        )


def _leaks(correct: NDArray[np.bool_], leaks: NDArray[np.float64]) -> dict[str, Any]:
    """Return how many test images have a partner in training, and the accuracy on these and without them."""
    seen = leaks > 0
    return {
        "test_duplicates": int(seen.sum()),
        "test_duplicates_identical": int((leaks == 1).sum()),
        "accuracy_on_duplicates": float(correct[seen].mean()) if seen.any() else None,
        "accuracy_without_duplicates": float(correct[~seen].mean()) if not seen.all() else None,
    }
