"""tools.audit: pairs of pictures and suspicious labels of a real run, and the rule against cleanlab's."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages.common import splits
from tests.evaluation.test_duplicates import crops, jpeg
from tests.project import ROOT, Project
from tools.audit.folds import fold_of
from tools.audit.labels import suspicious


def command(project: Project, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "tools.audit", "--folder", str(project.folder), *arguments]


def run(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(project, *arguments),
        cwd=ROOT,
        env=project.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    return done


def audit(project: Project, *arguments: str) -> Any:
    """The JSON of an audit."""
    done = run(project, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def pictures(first_run: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose raw data are own photographs: some are there twice, or nearly."""
    project = first_run.copy(tmp_path_factory.mktemp("audit") / "project")
    for number, picture in enumerate(crops(32)):
        folder = project.folder / "pictures" / ("tulip" if number % 2 else "temple")
        folder.mkdir(exist_ok=True)
        picture.save(folder / f"{number}.png")
        if number < 4:
            picture.save(folder / f"{number}-again.bmp")
        elif number < 14:
            jpeg(picture).save(folder / f"{number}-near.png")
    project.choose("dataset.name", "folder")
    project.run(sys.executable, "-m", "stages.download", "--out", "data/raw")
    return project


def test_pairs_are_listed_most_similar_first_and_groups_keep_them_together(pictures: Project) -> None:
    pairs = audit(pictures)["pairs"]
    similarities = [pair[4] for pair in pairs]
    assert similarities == sorted(similarities, reverse=True)
    assert similarities.count(1) == 4
    with (pictures.folder / "audit/leaks.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = []
    for row, pair in zip(rows, pairs, strict=True):
        assert [row["split"], int(row["index"]), row["partner_split"], int(row["partner_index"])] == pair[:4]
        found.append({Path(row[name]).stem.partition("-")[0] for name in ("path", "partner_path")})
    assert {frozenset(numbers) for numbers in found} >= {frozenset([str(number)]) for number in range(14)}
    counted = json.loads((pictures.folder / "audit/leaks.json").read_bytes())
    assert counted["test_images_with_partner_in_training"] > 0

    shutil.copy(pictures.folder / "audit/groups.csv", pictures.folder / "pictures/groups.csv")
    pictures.choose("dataset.folder.groups", ["groups.csv"])
    pictures.run(sys.executable, "-m", "stages.download", "--out", "data/raw")
    again = audit(pictures)["pairs"]
    assert len(again) == len(pairs)
    assert all(pair[0] == pair[2] for pair in again)


def test_the_page_shows_the_pairs_and_asks_for_no_other_file(pictures: Project) -> None:
    run(pictures)
    page = (pictures.folder / "audit/leaks.html").read_text(encoding="utf-8")
    assert page.count("<figure") >= 28
    assert "test images have a partner in training" in page
    assert "http" not in page.replace("http-equiv", "")


def test_small_pictures_are_only_compared_for_identity(first_run: Project) -> None:
    done = run(first_run, "--json")
    assert json.loads(done.stdout) == {"pairs": []}
    assert "Only identical pixels: pictures below 16 pixels" in done.stderr


def test_wrong_labels_of_images_that_are_clear_to_the_model_come_first(first_run: Project, tmp_path: Path) -> None:
    project = first_run.copy(tmp_path / "project")
    raw = project.folder / "data/raw"
    test = splits.read(raw / "test.npz")
    labels, images = test.labels.copy(), test.images.copy()
    sure = pd.read_csv(project.folder / "data/predictions.csv").filter(like="probability_").to_numpy()
    changed = sure[np.arange(len(labels)), labels].argsort()[-3:].tolist()
    labels[changed] = (labels[changed] + 3) % 10
    source = json.loads((raw / "source.json").read_bytes())
    for name in ("test.npz", "source.json"):
        (raw / name).unlink()
    source["splits"]["test"]["sha256"] = splits.write(raw / "test.npz", images, labels)
    source["splits"]["test"]["class_counts"] = np.bincount(labels, minlength=10).tolist()
    (raw / "source.json").write_text(json.dumps(source), encoding="utf-8")
    rows = [row for row in audit(project, "labels")["labels"] if row[0] == "test"]
    assert {row[1] for row in rows[:3]} == set(changed)
    for _, index, given, likely, score in rows[:3]:
        assert given == labels[index]
        assert likely == test.labels[index]
        assert 0 < score <= 1
    page = (project.folder / "audit/labels.html").read_text(encoding="utf-8")
    assert f"test {rows[0][1]}: {rows[0][2]}, likely {rows[0][3]}" in page


def test_a_model_of_other_data_is_refused(first_run: Project, tmp_path: Path) -> None:
    project = first_run.copy(tmp_path / "project")
    raw = project.folder / "data/raw/source.json"
    content = raw.read_text(encoding="utf-8").replace('"digits"', '"others"')
    raw.unlink()
    raw.write_text(content, encoding="utf-8")
    done = run(project, "labels")
    assert done.returncode == 1
    assert done.stderr.endswith("audit: the model was trained on other data than data/raw; run: dvc repro\n")


@pytest.mark.parametrize("seed", range(3))
def test_the_suspicious_labels_are_those_of_cleanlab(seed: int) -> None:
    cleanlab = pytest.importorskip("cleanlab.count")
    random = np.random.default_rng(seed)
    true = random.integers(0, 5, 2000)
    labels = np.where(random.random(2000) < 0.1, random.integers(0, 5, 2000), true)
    probabilities = random.dirichlet(np.ones(5), 2000) + 1.5 * np.eye(5)[true] * random.random((2000, 1))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    found, likely, scores = suspicious(labels, probabilities)
    _, expected = cleanlab.compute_confident_joint(
        labels, probabilities, calibrate=False, return_indices_of_off_diagonals=True
    )
    assert sorted(found) == sorted(expected)
    assert (likely != labels[found]).all()
    assert (np.diff(scores) <= 0).all()


def test_a_class_without_images_is_never_likely() -> None:
    labels = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.6, 0.1, 0.3], [0.1, 0.1, 0.8], [0.2, 0.8, 0], [0.1, 0.3, 0.6]])
    _, likely, _ = suspicious(labels, probabilities)
    assert 2 not in likely


def test_folds_have_the_same_part_of_each_class_and_separate_no_copies() -> None:
    labels = np.repeat(np.arange(4, dtype=np.uint8), 50)
    number = fold_of(labels, 5, [(10, 13)])
    assert len(set(number[10:13])) == 1
    counts = [np.bincount(number[labels == label], minlength=5) for label in range(1, 4)]
    assert (np.array(counts) == 10).all()


@pytest.mark.slow
def test_the_folds_of_a_killed_audit_are_continued_and_cover_every_training_image(
    first_run: Project, tmp_path: Path
) -> None:
    project = first_run.copy(tmp_path / "project")
    folds = ("labels", "--folds", "2")
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            command(project, *folds),
            cwd=ROOT,
            env=project.environment,
            stderr=stderr,
            stdout=stderr,
            start_new_session=True,
        )
        first = project.folder / "audit/folds/1-of-2/dvc.lock"
        while not first.exists() and process.poll() is None:
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    rows = audit(project, *folds)["labels"]
    summary = json.loads((project.folder / "audit/labels.json").read_bytes())
    assert summary["audited_train"] == 1437
    assert {row[0] for row in rows} <= {"train", "test"}
    before = (project.folder / "audit/folds/2-of-2/metrics/train.csv").stat().st_mtime_ns
    assert audit(project, *folds)["labels"] == rows
    assert (project.folder / "audit/folds/2-of-2/metrics/train.csv").stat().st_mtime_ns == before
