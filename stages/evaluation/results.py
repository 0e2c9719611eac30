"""What evaluate writes about one model on the test split: metrics, tables, predictions and the model card."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field

from stages.common.outputs import replacing, write_json, write_table
from stages.common.params import Section
from stages.common.records import Statistics
from stages.evaluation import scoring
from stages.evaluation.card import model_card

SCHEMA_VERSION = 1
SCHEMA = Path(__file__).with_name("evaluation.schema.json")


class EvaluateParams(Section):
    """`evaluate` of params.yaml."""

    top_k: int = Field(ge=1)  # a hit when the label is among so many most probable classes
    flip: bool  # also score with horizontal-flip test-time augmentation


def save_results(
    metrics: Path,
    predictions: Path,
    card: Path,
    params: EvaluateParams,
    statistics: Statistics,
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float32],
    further: Mapping[str, Any],
) -> None:
    """Score the predictions on the test split and write every table, the metrics and the model card.

    metrics: folder; labels: int64 (N,); probabilities: float32 (N, classes); further: entries of evaluation.json.
    """
    classes = statistics.classes
    predicted = probabilities.argmax(axis=1)
    official = statistics.splits["test"].official
    for note in scoring.notes(labels, predicted, classes):
        print(f"evaluate: {note}", file=sys.stderr)

    names = np.asarray(classes)
    table = pd.DataFrame({"label": names[labels], "prediction": names[predicted]})
    for index, name in enumerate(classes):
        table[f"probability_{name}"] = probabilities[:, index]
    write_table(predictions, table)
    per_class = scoring.per_class(labels, probabilities, classes)
    write_table(metrics / "per_class.csv", per_class)
    write_table(metrics / "confusion.csv", scoring.confusion(labels, predicted, classes))
    bins = scoring.reliability(labels, probabilities)
    bins = bins[bins["count"] > 0].rename(columns={"count": "images"})
    write_table(metrics / "reliability.csv", bins[["confidence", "accuracy", "images"]])
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
    write_json(metrics / "evaluation.json", evaluation)
    with replacing(card) as partial:
        partial.write_text(model_card(evaluation, per_class, statistics), encoding="utf-8")
