"""docs/export.md: its table and its code, in a second repository with only the model."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages.common import splits
from tests.project import ROOT, Project
from tools.export.formats import FORMATS

PAGE = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")


def test_the_table_has_every_format_and_its_file() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| (\S+) \|", PAGE, flags=re.MULTILINE)
    assert dict(rows) == {name: form.file for name, form in FORMATS.items()}


@pytest.mark.slow
def test_an_empty_repository_gets_the_model_by_version_and_the_same_predictions(
    first_run: Project, tmp_path: Path
) -> None:
    author = first_run.copy(tmp_path / "author")
    author.run("dvc", "remote", "add", "--default", "team", str(tmp_path / "remote"))
    author.commit("A remote")
    author.run("dvc", "push", "--quiet")
    author.run("gto", "register", "classifier", "--version", "v1.0.0")
    # A later model, which nobody has published.
    author.choose("train.seed", 1)
    author.repro("train")
    author.commit("Another seed")
    author.run("dvc", "push", "--quiet")
    published, latest = tmp_path / "published", tmp_path / "second"
    author.run("git", "clone", "--quiet", str(author.folder), str(published))
    latest.mkdir()
    second = Project(latest, first_run.environment)
    second.run("git", "init", "--quiet")
    second.run("dvc", "init", "--quiet")

    for name in ("model.keras", "model.json"):
        second.run("dvc", "get", "--rev", "classifier@v1.0.0", str(published), f"models/{name}")
    second.run(
        "dvc", "artifacts", "get", str(published), "classifier", "--rev", "v1.0.0", "--out", "version.keras"
    )
    model = (first_run.folder / "models" / "model.keras").read_bytes()
    assert (latest / "model.keras").read_bytes() == model
    assert (latest / "version.keras").read_bytes() == model
    assert (author.folder / "models" / "model.keras").read_bytes() != model

    images = splits.read(first_run.folder / "data" / "raw" / "test.npz").images
    Image.fromarray(np.array(images[5]).squeeze()).save(latest / "picture.png")
    row = pd.read_csv(first_run.folder / "data" / "predictions.csv", dtype={"prediction": str}).iloc[5]
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=latest, capture_output=True, text=True, check=True)
    name, probability = done.stdout.split()
    assert name == row["prediction"]
    assert float(probability) == pytest.approx(row[f"probability_{name}"], abs=1e-6)
