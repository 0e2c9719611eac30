"""tools/robustness: corrupted images, and images of other kinds."""

import json
import sys
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image

from stages.common.failure import StageError
from stages.common.pictures import Decoding
from stages.common.records import DatasetRecord, ModelRecord
from stages.common.splits import read, write
from stages.datasets import digits
from stages.model.networks import FastParams, build_model
from tests.project import ROOT, Project
from tools.robustness import measuring
from tools.robustness.corruptions import CORRUPTIONS, SEVERITIES, corrupt


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    """Real digits in three colors, 32 x 32."""
    grey = digits.load().test.images[:40].repeat(4, axis=1).repeat(4, axis=2)
    return np.concatenate([grey, grey // 2 + 60, 255 - grey], axis=3)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_gives_the_same_pixels_every_time_and_changes_more_with_severity(
    images: NDArray[np.uint8], name: str
) -> None:
    changes = []
    for severity in SEVERITIES:
        found = corrupt(images, name, severity, (0, 1))
        assert (found.dtype.name, found.shape) == ("uint8", images.shape)
        np.testing.assert_array_equal(found, corrupt(images, name, severity, (0, 1)))
        changes.append(float(np.abs(found.astype(int) - images).mean()))
    assert changes[0] > 0
    if name != "saturate":  # the first two severities take color away, the others add it
        assert changes[-1] > changes[0]


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(8, 8, 1), (17, 30, 3)])
def test_every_corruption_takes_grey_small_and_oblong_images(name: str, shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)
    assert corrupt(images, name, 5, (0, 0)).shape == images.shape


def test_noise_depends_on_the_seed(images: NDArray[np.uint8]) -> None:
    found = [corrupt(images, "gaussian noise", 3, seed) for seed in ((0, 0), (0, 1), (1, 0))]
    assert not np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_the_area_is_the_fraction_of_pairs_in_order() -> None:
    own, other = np.array([[0.9, 1], [0.8, 2]]), np.array([[0.85, 0.0], [0.1, 3]])
    assert measuring.auroc(own, other) == (0.75, 0.5)


@pytest.mark.usefixtures("started")
def test_the_softmax_of_the_logits_is_what_evaluate_wrote(first_run: Project) -> None:
    from stages.common.records import read_record
    from stages.model.trained import load_model

    model, _ = load_model(first_run.folder / "models/model.keras")
    record = read_record(first_run.folder / "models/model.json", ModelRecord)
    logits = measuring.logits_of(model, record)
    powers = np.exp(logits(np.array(read(first_run.folder / "data/raw/test.npz").images)).astype(float))
    table = pd.read_csv(first_run.folder / "data/predictions.csv").filter(like="probability_")
    np.testing.assert_allclose(powers / powers.sum(axis=1, keepdims=True), table, atol=1e-6)


@pytest.mark.usefixtures("started")
def test_the_fast_network_has_logits_too() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 12, 12, 3), dtype=np.uint8)
    params = FastParams(network="fast", widths=[8], activation="silu", batch_norm_momentum=0.6, logit_scale=0.5)
    scaled = np.divide(images, np.float32(255), dtype=np.float32)
    model = build_model(params, (12, 12, 3), 3, scaled)
    record = ModelRecord(
        sha256="a" * 64,
        dataset=DatasetRecord(name="random", edition="random pixels", sha256="d" * 64),
        classes=["a", "b", "c"],
        decoding=Decoding(height=12, width=12, channels=3),
        scaling="unit",
        mean=[0.0] * 3,
        std=[1.0] * 3,
        epoch=1,
        parameters=1,
    )
    expected = np.asarray(model(scaled, training=False))
    found = measuring.logits_of(model, record)(images)
    np.testing.assert_allclose(np.asarray(keras.ops.softmax(found)), expected, atol=1e-6)


def test_an_interrupted_measurement_goes_on_where_it_was(tmp_path: Path) -> None:
    data = digits.load().test
    write(tmp_path / "test.npz", data.images[:30], data.labels[:30])
    test, calls = read(tmp_path / "test.npz"), 0

    def logits(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        nonlocal calls
        calls += 1
        if calls == 20:
            raise KeyboardInterrupt
        return images.reshape(len(images), -1)[:, :10].astype(np.float32)

    path = tmp_path / "accuracy.json"
    with pytest.raises(KeyboardInterrupt):
        measuring.corrupted_accuracy(logits, test, path, "model", 0)
    found = measuring.corrupted_accuracy(logits, test, path, "model", 0)
    assert calls == 20 + 1 + 5 * len(CORRUPTIONS) - 19
    (tmp_path / "whole").mkdir()
    assert found == measuring.corrupted_accuracy(logits, test, tmp_path / "whole/accuracy.json", "model", 0)
    before = calls
    measuring.corrupted_accuracy(logits, test, path, "another model", 0)
    assert calls == before + 1 + 5 * len(CORRUPTIONS)


def test_the_command_writes_tables_and_a_plot_and_measures_a_folder(first_run: Project, tmp_path: Path) -> None:
    project = first_run.copy(tmp_path / "project")
    (tmp_path / "others").mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 256, (20, 20), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "others" / f"{number}.png")
    command = (sys.executable, "-m", "tools.robustness", "--folder", str(project.folder))
    done = Project(ROOT, project.environment).run(*command, str(tmp_path / "others"))
    table = pd.read_csv(project.folder / "robustness/robustness.csv")
    assert len(table) == 1 + 5 * len(CORRUPTIONS)
    others = pd.read_csv(project.folder / "robustness/others.csv")
    assert others["pictures"].tolist() == ["noise", str(tmp_path / "others")]
    assert others["images"].tolist() == [measuring.NOISE, 3]
    assert (project.folder / "robustness/robustness.svg").read_text(encoding="utf-8").startswith("<svg")
    error = 1 - table["accuracy"][1:].mean()
    assert f"Mean corruption error: {error:.4f}" in done.stdout
    assert json.loads((project.folder / "robustness/accuracy.json").read_bytes())["run"]["seed"] == 0


def test_without_a_model_it_is_one_line(tmp_path: Path) -> None:
    from tools.robustness.__main__ import main

    with pytest.raises(StageError, match=r"model\.json: no such file; run: dvc repro"):
        main(["--folder", str(tmp_path)])


def test_a_folder_is_checked_before_anything_is_measured(first_run: Project, tmp_path: Path) -> None:
    from tools.robustness.__main__ import main

    with pytest.raises(StageError, match=r"nowhere: no such folder$"):
        main(["--folder", str(first_run.folder), str(tmp_path / "nowhere")])
    with pytest.raises(StageError, match=r": no pictures here; "):
        main(["--folder", str(first_run.folder), str(tmp_path)])
    assert not (first_run.folder / "robustness").exists()


def test_a_model_of_one_class_is_refused(first_run: Project, tmp_path: Path) -> None:
    from tools.robustness.__main__ import main

    project = first_run.copy(tmp_path / "project")
    path = project.folder / "models/model.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "classes": ["0"]}), encoding="utf-8")
    with pytest.raises(StageError, match=r"knows only the class 0; robustness needs two or more$"):
        main(["--folder", str(project.folder)])
