"""stages/evaluation/results.py: which figures people decide by."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from stages.common.figures import parse_figures
from stages.common.pictures import Decoding
from stages.common.records import DatasetRecord, ModelRecord
from stages.evaluation.results import EvaluateParams, save_results
from tests.evaluation.test_card import CLASSES, statistics


def evaluated(folder: Path, labels: list[int], predicted: list[int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the figures and the metrics of these predictions."""
    record = ModelRecord(
        sha256="c" * 64,
        dataset=DatasetRecord(name="folder", edition="your pictures", sha256="b" * 64),
        classes=CLASSES,
        decoding=Decoding(height=8, width=6, channels=3),
        scaling="unit",
        mean=[0.25],
        std=[0.5],
        epoch=1,
        parameters=1,
    )
    params = EvaluateParams(top_k=1, views=1, duplicates="none", temperature="none", abstain=0)
    probabilities = np.eye(2, dtype=np.float32)[predicted]
    save_results(
        folder,
        folder / "predictions.csv",
        folder / "card.md",
        params,
        statistics(),
        record,
        np.array(labels),
        probabilities,
        {},
        None,
        {},
    )
    figures = parse_figures((folder / "evaluation.csv").read_bytes(), "evaluation.csv")
    return figures, json.loads((folder / "evaluation.json").read_bytes())


def test_classes_of_different_sizes_add_the_balanced_accuracy_to_the_metrics(tmp_path: Path) -> None:
    figures, metrics = evaluated(tmp_path, [0] * 7 + [1] * 3, [0] * 10)
    assert metrics == {"accuracy": 0.7, "balanced_accuracy": 0.5}
    assert figures["balanced_accuracy"] == 0.5


def test_classes_that_differ_by_a_factor_of_two_do_not(tmp_path: Path) -> None:
    figures, metrics = evaluated(tmp_path, [0] * 6 + [1] * 3, [0] * 9)
    assert set(metrics) == {"accuracy", "loss"}
    assert "balanced_accuracy" not in figures
