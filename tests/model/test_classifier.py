"""stages/model/classifier.py: a picture gets the probabilities that evaluate wrote for the same pixels."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw

from stages.common.failure import StageError
from stages.common.pictures import Unreadable
from stages.common.splits import read
from stages.model.classifier import Classifier
from tests.project import Project, RunHere

pytestmark = pytest.mark.usefixtures("started")


def png(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def predictions(project: Project) -> list[dict[str, float]]:
    """The probabilities in data/predictions.csv, as the float32 that they are."""
    table = pd.read_csv(
        project.folder / "data/predictions.csv", dtype=np.float32, usecols=lambda name: "_" in name
    )
    table.columns = table.columns.str.removeprefix("probability_")
    return table.to_dict("records")  # type: ignore[return-value]


def photograph(color: tuple[int, int, int], seed: int) -> Image.Image:
    """A picture whose size is not the network's, so that it is resized."""
    noise = np.random.default_rng(seed).integers(0, 60, (45, 61, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    ImageDraw.Draw(image).ellipse((5 + seed, 5, 40 + seed, 40), fill=color)
    return image


@pytest.fixture(scope="module")
def own_pictures(first_run: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project trained on JPEG photographs, with standardized pixels."""
    project = first_run.copy(tmp_path_factory.mktemp("own") / "project")
    for split, count in (("train", 12), ("test", 3)):
        for name, color in (("cat", (250, 30, 30)), ("dog", (30, 30, 250))):
            folder = project.folder / "pictures" / split / name
            folder.mkdir(parents=True)
            for seed in range(count):
                photograph(color, seed + 20 * (split == "test")).save(folder / f"{seed:02}.jpg")
    project.choose("dataset.name", "folder")
    project.choose("dataset.folder.pixels", 16)
    project.choose("dataset.folder.resize", "crop")
    project.choose("preprocess.scaling", "standardize")
    project.repro()
    return project


def test_pngs_of_the_digits_get_the_probabilities_that_evaluate_wrote(first_run: Project) -> None:
    classifier = Classifier(first_run.folder / "models/model.keras")
    images = read(first_run.folder / "data/raw/test.npz").images
    expected = predictions(first_run)
    assert classifier([png(image) for image in images]) == expected
    assert [classifier([image])[0] for image in images[:20]] == expected[:20]


def test_own_pictures_get_the_probabilities_that_evaluate_wrote(own_pictures: Project) -> None:
    classifier = Classifier(own_pictures.folder / "models/model.keras")
    expected = predictions(own_pictures)
    files = sorted((own_pictures.folder / "pictures/test").rglob("*.jpg"))
    found = classifier([file.read_bytes() for file in files])
    assert sorted(map(str, found)) == sorted(map(str, expected))
    images = read(own_pictures.folder / "data/raw/test.npz").images
    assert classifier([png(image) for image in images]) == expected


def test_with_a_temperature_too_the_classifier_gives_what_evaluate_wrote(
    first_run: Project, tmp_path: Path, run_here: RunHere
) -> None:
    project = first_run.copy(tmp_path / "project")
    project.choose("evaluate.temperature", "validation")
    assert run_here(project, "evaluate").returncode == 0
    classifier = Classifier(project.folder / "models/model.keras")
    images = read(project.folder / "data/raw/test.npz").images
    expected = predictions(project)
    assert classifier.confidence.temperature not in (0.1, 1, 10)
    assert expected != predictions(first_run)
    assert classifier([png(image) for image in images]) == expected
    assert [classifier([image])[0] for image in images[:20]] == expected[:20]


def test_the_confidence_of_another_model_is_refused(first_run: Project, tmp_path: Path) -> None:
    for name in ("model.keras", "model.json", "confidence.json"):
        (tmp_path / name).write_bytes((first_run.folder / "models" / name).read_bytes())
    path = tmp_path / "confidence.json"
    confidence = json.loads(path.read_bytes())
    path.write_text(json.dumps({**confidence, "model_sha256": "0" * 64}), encoding="utf-8")
    with pytest.raises(StageError, match=r"confidence\.json: fitted on another model .* run: dvc repro evaluate"):
        Classifier(tmp_path / "model.keras")
    path.unlink()
    assert Classifier(tmp_path / "model.keras").confidence.temperature == 1


def test_a_model_that_is_not_the_one_in_its_record_is_refused(first_run: Project, tmp_path: Path) -> None:
    for name in ("model.keras", "model.json"):
        (tmp_path / name).write_bytes((first_run.folder / "models" / name).read_bytes())
    with (tmp_path / "model.keras").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(StageError, match=r"not the model that the stage train wrote"):
        Classifier(tmp_path / "model.keras")


def test_pixels_of_another_shape_or_type_are_refused(first_run: Project) -> None:
    classifier = Classifier(first_run.folder / "models/model.keras")
    wrong: list[Any] = [np.zeros((1, 8, 8, 1), np.float32), np.zeros((1, 9, 8, 1), np.uint8)]
    for images in (*wrong, np.zeros((0, 8, 8, 1), np.uint8)):
        with pytest.raises(ValueError, match=r"expected uint8 \(N, \*\(8, 8, 1\)\)"):
            classifier.probabilities(images)
    assert classifier([]) == []


def test_a_file_that_is_no_picture_is_unreadable(first_run: Project) -> None:
    classifier = Classifier(first_run.folder / "models/model.keras")
    with pytest.raises(Unreadable, match="not a picture in a supported format"):
        classifier([b"no picture"])
