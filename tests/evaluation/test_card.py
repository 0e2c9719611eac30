"""stages/evaluation/card.py: what a hub and a person read of a model."""

import json
from typing import Any

import pandas as pd
import pytest
import yaml

from stages.common.records import DatasetRecord, SplitRecord, Statistics
from stages.evaluation.card import model_card

CLASSES = ["cat", "dog: a good one"]
RECORD = SplitRecord(images=40, shape=[8, 6, 3], class_counts=[20, 20], official=0, sha256="a" * 64)
PER_CLASS = pd.DataFrame(
    {"class": CLASSES, "precision": [0.5, 0.25], "recall": [1.0, 0.0], "f1": [0.6, 0.125], "support": [1200, 20]}
)


@pytest.fixture
def evaluation() -> dict[str, Any]:
    figures = ("accuracy", "accuracy_low", "accuracy_high", "f1_macro", "precision_macro", "recall_macro")
    return {
        **{name: 0.75 + number / 100 for number, name in enumerate(figures)},
        "calibration_error": 0.0625,
        "dataset": "folder",
        "dataset_edition": "your pictures: 80 of them",
        "dataset_sha256": "b" * 64,
        "model_sha256": "c" * 64,
        "test_images": 40,
        "official_accuracy": None,
    }


def statistics(scaling: str = "unit") -> Statistics:
    return Statistics(
        dataset=DatasetRecord(name="folder", edition="your pictures: 80 of them", sha256="b" * 64),
        classes=CLASSES,
        scaling=scaling,
        mean=[0.25],
        std=[0.5],
        splits=dict.fromkeys(("train", "validation", "test"), RECORD),
    )


def parts(card: str) -> tuple[dict[str, Any], str]:
    _, header, text = card.split("---\n", 2)
    return yaml.safe_load(header), text


def test_the_header_has_the_figures_as_hubs_read_them(evaluation: dict[str, Any]) -> None:
    header, _ = parts(model_card(evaluation, PER_CLASS, statistics()))
    (index,) = header["model-index"]
    (result,) = index["results"]
    assert result["task"] == {"type": "image-classification"}
    assert result["dataset"] == {"name": "folder", "type": "folder", "split": "test"}
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == {
        "accuracy": 0.75,
        "f1": 0.78,
        "precision": 0.79,
        "recall": 0.8,
    }


def test_the_text_names_classes_figures_shapes_and_hashes(evaluation: dict[str, Any]) -> None:
    _, text = parts(model_card(evaluation, PER_CLASS, statistics()))
    for words in (
        "tells 2 classes of 8 x 6 pictures apart: cat, dog: a good one.",
        "| accuracy | 0.7500 |",
        "| cat | 0.5000 | 1.0000 | 0.6000 | 1,200 |",
        "0.7600 to 0.7700 is the 95 % interval",
        "float32 (N, 8, 6, 3), pixels divided by 255.",
        "b" * 64,
        "c" * 64,
    ):
        assert words in text


def test_standardized_pixels_are_said_to_be(evaluation: dict[str, Any]) -> None:
    assert "divided by 255, minus [0.25], over [0.5], by channel." in model_card(
        evaluation, PER_CLASS, statistics("standardize")
    )


def test_the_same_figures_give_the_same_card(evaluation: dict[str, Any]) -> None:
    again = json.loads(json.dumps(dict(reversed(evaluation.items()))))
    assert model_card(evaluation, PER_CLASS, statistics()) == model_card(again, PER_CLASS, statistics())
