"""stages/evaluation/card.py: what a hub and a person read of a model."""

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image, ImageOps

from stages.common.pictures import Decoding, decode
from stages.common.records import DatasetRecord, SplitRecord, Statistics
from stages.common.scaling import scale
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
        "classifies 8 x 6 pictures into 2 classes: cat, dog: a good one.",
        "| accuracy | 0.7500 |",
        "| cat | 0.5000 | 1.0000 | 0.6000 | 1,200 |",
        "The 95 % confidence interval of the accuracy (Wilson) is 0.7600 to 0.7700.",
        "float32 (N, 8, 6, 3), pixels divided by 255.",
        "b" * 64,
        "c" * 64,
    ):
        assert words in text


def test_each_figure_on_trust_that_was_computed_has_a_sentence(evaluation: dict[str, Any]) -> None:
    _, text = parts(model_card(evaluation, PER_CLASS, statistics()))
    _, _, section = text.partition("## How far to trust this")
    assert "The expected calibration error of the probabilities is 0.0625." in section
    assert "temperature" not in section
    computed = {
        "temperature": 1.5,
        "calibrated": {"loss": 0.5, "calibration_error": 0.02},
        "abstain": {"threshold": 0.75, "coverage": 0.5, "accuracy": 0.9},
        "test_duplicates": 6,
        "accuracy_without_duplicates": 0.7,
    }
    _, text = parts(model_card(evaluation | computed, PER_CLASS, statistics()))
    for words in (
        "With the temperature 1.5, fitted on validation, the calibration error is 0.0200.",
        "at least 0.7500, which holds for 50.0% of the test images, the accuracy is 0.9000.",
        "6 test images repeat a training image, exactly or nearly. Without them the accuracy is 0.7000.",
    ):
        assert words in text


def test_standardized_pixels_are_said_to_be(evaluation: dict[str, Any]) -> None:
    assert "divided by 255, minus [0.25], over [0.5], by channel." in model_card(
        evaluation, PER_CLASS, statistics("standardize")
    )


def test_the_same_figures_give_the_same_card(evaluation: dict[str, Any]) -> None:
    again = json.loads(json.dumps(dict(reversed(evaluation.items()))))
    assert model_card(evaluation, PER_CLASS, statistics()) == model_card(again, PER_CLASS, statistics())


@pytest.mark.parametrize("scaling", ["unit", "standardize"])
@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("size", [(97, 40), (40, 97), (8, 6), (33, 33)])
def test_the_code_for_keras_alone_reads_a_picture_to_the_very_bits_of_the_pipeline(
    scaling: str,
    resize: Any,
    size: tuple[int, int],
    evaluation: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    exif = picture.getexif()
    exif[0x0112] = 6  # turned by a quarter
    picture.save("picture.jpg", "JPEG", exif=exif)
    rules = Decoding(height=8, width=6, channels=3, resize=resize)
    record = statistics(scaling).model_copy(
        update={"decoding": rules, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    )
    card = model_card(evaluation, PER_CLASS, record)
    code = "\n".join(re.findall(r"^    ((?:picture|pixels|images) = .*)$", card, flags=re.MULTILINE))
    found: dict[str, Any] = {"Image": Image, "ImageOps": ImageOps, "np": np}
    exec(code, found)
    with Path("picture.jpg").open("rb") as file:
        pixels = decode(file, rules)
    by_channel = (record.mean, record.std) if scaling == "standardize" else None
    (expected,) = scale([pixels[np.newaxis]], by_channel)
    np.testing.assert_array_equal(found["images"], expected)
    assert found["images"].dtype == np.float32


def test_every_command_of_the_card_exists(evaluation: dict[str, Any]) -> None:
    commands = re.findall(r"python -m ([\w.]+)", model_card(evaluation, PER_CLASS, statistics()))
    assert "tools.export" in commands
    assert [name for name in commands if find_spec(name) is None] == []


def test_class_weights_are_mentioned(evaluation: dict[str, Any]) -> None:
    assert "class_weights" not in model_card(evaluation, PER_CLASS, statistics())
    assert "class_weights in model.json" in model_card(evaluation, PER_CLASS, statistics(), weighted=True)
