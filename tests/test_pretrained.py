"""The network `pretrained` through the whole pipeline, on pictures made here: exact, killed or not, and usable."""

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages.model.classifier import Classifier
from tests.model.weights import weights_file
from tests.project import ROOT, Project, make_project
from tools.recipe import with_recipe

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("started")]

TRAIN = (sys.executable, "-m", "stages.train")
OUTPUTS = ("models/model.keras", "models/model.json", "metrics/train.csv", "metrics/history.csv")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with the recipe, weights beside it, and processed pictures of two textures."""
    project = make_project(tmp_path_factory.mktemp("pretrained") / "project", tmp_path_factory.mktemp("home"))
    random = np.random.default_rng(0)
    for number, name in enumerate(("rough", "smooth")):
        folder = project.folder / "pictures" / name
        folder.mkdir()
        for picture in range(40):
            low, high = ((0, 256), (90, 160))[number]
            Image.fromarray(random.integers(low, high, (40, 40, 3), dtype=np.uint8)).save(
                folder / f"{picture}.png"
            )
    params = project.folder / "params.yaml"
    recipe = (ROOT / "recipes/pretrained.yaml").read_text(encoding="utf-8")
    params.write_text(with_recipe(params.read_text(encoding="utf-8"), recipe), encoding="utf-8")
    weights = weights_file(project.folder.parent / "small_no_top.h5")
    for key, value in {
        "dataset.name": "folder",
        "model.backbone": "MobileNetV3Small",
        "model.weights": "../small_no_top.h5",
        "model.sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "model.fine_tune_epochs": 3,
        "train.epochs": 10,
        "train.learning_rate": 0.01,
        "train.checkpoint_minutes": 1e-9,
    }.items():
        project.choose(key, value)
    assert project.repro("preprocess") == ["download", "preprocess"]
    return project


@pytest.fixture(scope="module")
def undisturbed(prepared: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project after a run of train that nothing disturbed; its weights file is where the params say."""
    return trained(prepared, tmp_path_factory.mktemp("undisturbed"))


def copied(project: Project, folder: Path) -> Project:
    (folder / "small_no_top.h5").write_bytes((project.folder.parent / "small_no_top.h5").read_bytes())
    return project.copy(folder / "project")


def trained(project: Project, folder: Path) -> Project:
    project = copied(project, folder)
    project.run(*TRAIN)
    return project


def outputs(project: Project) -> dict[str, bytes]:
    return {name: (project.folder / name).read_bytes() for name in OUTPUTS}


def killed(project: Project, pattern: str) -> None:
    """Start train and kill it as soon as it has written a file of this pattern."""
    process = subprocess.Popen(TRAIN, cwd=project.folder, env=project.environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not any(project.folder.glob(pattern)):
        assert process.poll() is None, "it ended before"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (project.folder / "models/model.keras").exists()


def test_both_phases_are_in_the_history_and_the_last_layer_learns(undisturbed: Project) -> None:
    history = pd.read_csv(undisturbed.folder / "metrics/history.csv")
    assert history["epoch"].tolist() == list(range(1, 14))
    assert history["val_accuracy"].iloc[-1] > 0.9
    assert history["loss"].iloc[9] < history["loss"].iloc[0]


def test_a_run_killed_in_each_phase_ends_in_the_same_bytes(
    prepared: Project, undisturbed: Project, tmp_path: Path
) -> None:
    project = copied(prepared, tmp_path)
    for moment in ("features/0/*.partial", "*-000004-*.npz", "fine-tuning/*-000011-*.npz"):
        killed(project, f"checkpoints/{moment}")
    done = project.run(*TRAIN)
    assert "train: resuming after epoch 10, step 0" in done.stderr  # the first phase is not trained again
    assert "computing" not in done.stderr
    assert outputs(project) == outputs(undisturbed)
    assert [path.name for path in (project.folder / "checkpoints").iterdir()] == ["features"]


@pytest.mark.long
def test_in_bfloat16_on_two_devices_a_killed_run_ends_in_the_same_bytes_too(
    prepared: Project, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    project = copied(prepared, tmp_path / "a")
    for key, value in {"precision": "bfloat16", "emulate": True, "strategy": "mirrored", "devices": 2}.items():
        project.choose(f"runtime.{key}", value)
    other = trained(project, tmp_path / "b")
    for moment in ("*-000004-*.npz", "fine-tuning/*-000011-*.npz"):
        killed(project, f"checkpoints/{moment}")
    project.run(*TRAIN)
    assert outputs(project) == outputs(other)


def test_features_are_computed_once_for_runs_that_differ_after_the_backbone(
    undisturbed: Project, tmp_path: Path
) -> None:
    project = copied(undisturbed, tmp_path)
    project.choose("model.dropout", 0.5)
    project.choose("model.fine_tune_epochs", 0)
    assert "computing" not in project.run(*TRAIN).stderr
    project.choose("train.seed", 1)
    assert "computing" not in project.run(*TRAIN).stderr
    project.choose("runtime.threads", 1)  # other bytes
    assert "computing the backbone's features of 51 train images" in project.run(*TRAIN).stderr
    assert len(list(project.folder.glob("checkpoints/features/0/*"))) == 2


def test_stored_as_uint8_the_images_train_the_same_model(undisturbed: Project, tmp_path: Path) -> None:
    project = copied(undisturbed, tmp_path)
    project.choose("preprocess.storage", "uint8")
    assert project.repro("train") == ["preprocess", "train"]
    model = "models/model.keras"
    assert (project.folder / model).read_bytes() == (undisturbed.folder / model).read_bytes()


def test_with_augmentation_the_whole_network_runs_in_each_epoch(undisturbed: Project, tmp_path: Path) -> None:
    project = copied(undisturbed, tmp_path)
    for key, value in {"train.flip": True, "train.epochs": 2, "model.fine_tune_epochs": 0}.items():
        project.choose(key, value)
    assert "computing" not in project.run(*TRAIN).stderr
    assert Classifier(project.folder / "models/model.keras").record.epoch == 2


def test_a_finished_run_is_continued_without_its_file_of_weights(undisturbed: Project, tmp_path: Path) -> None:
    project = undisturbed.copy(tmp_path / "project")
    model = undisturbed.folder / "models/model.keras"
    for key, value in {
        "train.start_from": str(model),
        "train.start_sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "train.continue": True,
        "train.epochs": 2,
        "model.fine_tune_epochs": 1,
    }.items():
        project.choose(key, value)
    assert "did not keep its state" in project.run(*TRAIN).stderr
    history = pd.read_csv(project.folder / "metrics/history.csv")
    assert history["epoch"].tolist() == [14, 15, 16]
    assert (
        history["val_loss"].iloc[0] < pd.read_csv(undisturbed.folder / "metrics/history.csv")["val_loss"].iloc[0]
    )
    assert Classifier(project.folder / "models/model.keras").record.epoch == 16


def test_evaluation_prediction_and_export_agree(undisturbed: Project, tmp_path: Path) -> None:
    project = copied(undisturbed, tmp_path)
    project.repro()
    classifier = Classifier(project.folder / "models/model.keras")
    files = sorted((project.folder / "pictures").rglob("*.png"))
    card = (project.folder / "models/MODEL_CARD.md").read_text(encoding="utf-8")
    assert "Training began with the weights of MobileNetV3Small, not with random ones." in card
    columns = ["probability_rough", "probability_smooth"]
    table = pd.read_csv(project.folder / "data/predictions.csv", usecols=columns, dtype=np.float32)
    found = {tuple(each.values()) for each in classifier([file.read_bytes() for file in files])}
    assert found >= set(table[columns].astype(float).itertuples(index=False, name=None))
    here, folder = Project(ROOT, project.environment), str(project.folder)
    exported = here.run(sys.executable, "-m", "tools.export", "--folder", folder)
    assert "model.onnx" in exported.stdout
    predicted = here.run(sys.executable, "-m", "tools.predict", "--folder", folder, "--json", str(files[0]))
    assert json.loads(predicted.stdout)["class"] in ("rough", "smooth")
    here.run(sys.executable, "-m", "tools.report", folder)
    assert "16 filters of 3 x 3" in (project.folder / "report/index.html").read_text(encoding="utf-8")
