"""tools/predict: pictures in, the model's probabilities out, whatever else is in the folder."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages.common.failure import StageError
from stages.common.splits import read
from tests.project import ROOT, Project
from tools.export import __main__ as export
from tools.predict.__main__ import main
from tools.predict.sources import BATCH, find

pytestmark = pytest.mark.usefixtures("started")
COUNT = 2 * BATCH + 3


@pytest.fixture(scope="module")
def project(first_run: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project with test images as PNGs, in pictures/CLASS."""
    project = first_run.copy(tmp_path_factory.mktemp("predict") / "project")
    test = read(project.folder / "data/raw/test.npz")
    for number in range(COUNT):
        path = project.folder / "pngs" / str(test.labels[number]) / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.array(test.images[number, :, :, 0])).save(path)
    return project


def expected(project: Project) -> pd.DataFrame:
    return pd.read_csv(project.folder / "data/predictions.csv", dtype=str)[:COUNT]


def test_csv_has_the_probabilities_of_evaluate(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--folder", str(project.folder), "--csv", str(project.folder / "pngs")])
    rows = sorted(
        (line.split(",") for line in capsys.readouterr().out.splitlines()[1:]), key=lambda row: row[0][-7:]
    )
    table = expected(project)
    assert [row[1] for row in rows] == table["prediction"].tolist()
    threshold = json.loads((project.folder / "models/confidence.json").read_bytes())["threshold"]
    assert [row[-1] for row in rows] == [str(float(row[2]) >= (threshold or 0)).lower() for row in rows]
    assert [row[3:-1] for row in rows] == table.filter(like="probability_").to_numpy().tolist()


def test_what_cannot_be_read_is_listed_and_does_not_stop_the_rest(project: Project, tmp_path: Path) -> None:
    picture = next((project.folder / "pngs").rglob("*.png"))
    (tmp_path / "words.png").write_text("no picture")
    command = [sys.executable, "-m", "tools.predict", "--folder", str(project.folder), "--json", str(tmp_path)]
    with picture.open("rb") as stdin:
        done = subprocess.run(
            [*command, "missing.png", "-"], cwd=ROOT, stdin=stdin, capture_output=True, text=True, check=False
        )
    lines = {line["path"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert "No such file" in lines["missing.png"]["error"]
    assert "not a picture" in lines[str(tmp_path / "words.png")]["error"]
    assert lines["-"]["probabilities"][lines["-"]["class"]] == lines["-"]["probability"]
    assert done.returncode == 1
    assert "predict: 2 of 3 pictures cannot be read (listed above)" in done.stderr
    assert "Traceback" not in done.stderr


def test_labelled_pictures_are_scored_with_the_metrics_of_evaluate(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--folder", str(project.folder), "--labelled", "--top", "1", str(project.folder / "pngs")])
    table = expected(project)
    accuracy = (table["label"] == table["prediction"]).mean()
    assert f"{'accuracy':20} {accuracy:.4f}" in capsys.readouterr().err


def test_an_export_of_the_model_answers_without_tensorflow(project: Project) -> None:
    project_with_export = project.copy(project.folder.parent / "exported")
    export.main(["onnx", "--folder", str(project_with_export.folder)])
    code = "import sys; from tools.predict.__main__ import main; main(sys.argv[1:])"
    code += "; print('tensorflow' in sys.modules)"
    picture = str(next((project.folder / "pngs").rglob("*.png")))
    command = [sys.executable, "-c", code, "--json", picture, "--folder", str(project_with_export.folder)]
    outputs = [
        subprocess.run([*command, *more], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
        for more in ([], ["--exact"])
    ]
    assert [lines[1] for lines in outputs] == ["False", "True"]
    fast, exact = (list(json.loads(lines[0])["probabilities"].values()) for lines in outputs)
    np.testing.assert_allclose(fast, exact, rtol=0, atol=1e-5)


def test_the_model_of_another_revision_answers(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    picture = str(next((project.folder / "pngs").rglob("*.png")))
    other = project.copy(project.folder.parent / "other")
    main(["--folder", str(other.folder), "--json", picture])
    (other.folder / "models/model.keras").unlink()
    main(["--folder", str(other.folder), "--json", "--model", "HEAD", picture])
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    with pytest.raises(StageError, match=r"--model nowhere: models/model\.json cannot be fetched"):
        main(["--folder", str(other.folder), "--model", "nowhere", picture])


def test_globs_and_folders_give_sorted_files_without_hidden_ones(tmp_path: Path) -> None:
    for name in ("b/2.png", "a/1.png", ".hidden/3.png", "a/.4.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    files = [str(tmp_path / "a/1.png"), str(tmp_path / "b/2.png")]
    assert find([str(tmp_path)]) == files
    assert find([str(tmp_path / "*/*.png")]) == files
    with pytest.raises(StageError, match="no pictures here"):
        find([str(tmp_path / "*.jpg")])
