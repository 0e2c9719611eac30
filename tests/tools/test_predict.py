"""tools/predict: pictures in, the model's probabilities out, whatever else is in the folder."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages.common import failure
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


def test_what_cannot_be_read_is_listed_and_does_not_stop_the_rest(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = next((project.folder / "pngs").rglob("*.png"))
    (tmp_path / "words.png").write_text("no picture")
    command = ["--folder", str(project.folder), "--json", str(tmp_path), "missing.png", "-"]
    with picture.open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        code = failure.run("predict", main, command)
    output, errors = capsys.readouterr()
    lines = {line["path"]: line for line in map(json.loads, output.splitlines())}
    assert "No such file" in lines["missing.png"]["error"]
    assert "not a picture" in lines[str(tmp_path / "words.png")]["error"]
    assert lines["-"]["probabilities"][lines["-"]["class"]] == lines["-"]["probability"]
    assert code == 1
    assert "predict: 2 of 3 pictures cannot be read (listed above)" in errors
    assert "Traceback" not in errors


def test_labelled_pictures_are_scored_with_the_metrics_of_evaluate(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--folder", str(project.folder), "--labelled", "--top", "1", str(project.folder / "pngs")])
    table = expected(project)
    accuracy = (table["label"] == table["prediction"]).mean()
    assert f"{'accuracy':20} {accuracy:.4f}" in capsys.readouterr().err


def test_labelled_pictures_have_the_top_k_accuracy_of_the_params(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    other = project.copy(project.folder.parent / "top")
    other.choose("evaluate.top_k", 2)
    main(["--folder", str(other.folder), "--labelled", "--top", "1", str(project.folder / "pngs")])
    assert "top_2_accuracy" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ("{", "damaged, not used; run: make export"),
        ('{"model_sha256": "MODEL", "files": []}', "damaged, not used; run: make export"),
        ('{"model_sha256": "older", "files": {"model.onnx": FILE}}', ""),
        ('{"model_sha256": "MODEL", "files": {"model.onnx": FILE, "models/model.keras in float32": {}}}', ""),
        ('{"model_sha256": "MODEL", "files": {"model.onnx": FILE}, "temperature": TEMPERATURE}', "changed since"),
    ],
    ids=["not JSON", "other JSON", "of an older model", "of a bfloat16 model", "changed"],
)
def test_the_model_answers_in_place_of_an_export_that_does_not_match_it(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str], report: str, message: str
) -> None:
    pytest.importorskip("onnxruntime")
    confidence = json.loads((project.folder / "models/confidence.json").read_bytes())
    found = {"MODEL": confidence["model_sha256"], "TEMPERATURE": str(confidence["temperature"])}
    found["FILE"] = '{"sha256": "0", "largest_difference": 0}'
    for key, value in found.items():
        report = report.replace(key, value)
    other = project.copy(tmp_path / "project")
    export_folder = other.folder / "exports" / "damaged"
    export_folder.mkdir(parents=True)
    (export_folder / "export.json").write_text(report)
    (export_folder / "model.onnx").write_bytes(b"damaged")
    picture = str(next((project.folder / "pngs").rglob("*.png")))
    main(["--folder", str(other.folder), "--json", picture])
    main(["--folder", str(other.folder), "--json", "--exact", picture])
    output, errors = capsys.readouterr()
    answer, exact = output.splitlines()
    assert answer == exact
    assert message in errors and errors.count("\n") == bool(message)


@pytest.mark.slow
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
    with pytest.raises(StageError, match=r"unknown Git revision 'nowhere'\. Run: dvc exp list --all-commits$"):
        main(["--folder", str(other.folder), "--model", "nowhere", picture])


@pytest.mark.slow
def test_the_model_of_a_revision_comes_from_the_remote_and_its_absence_is_one_line_with_the_remedy(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = str(next((project.folder / "pngs").rglob("*.png")))
    other = project.copy(tmp_path / "other")
    main(["--folder", str(other.folder), "--json", picture])
    other.run("dvc", "remote", "add", "--default", "shared", str(tmp_path / "remote"))
    other.run("git", "commit", "--all", "--message", "A remote")
    other.run("dvc", "push")
    shutil.rmtree(other.folder / ".dvc/cache")
    (other.folder / "models/model.keras").unlink()
    command = ["--folder", str(other.folder), "--json", "--model", "HEAD", picture]
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    main(command)
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    shutil.rmtree(tmp_path / "remote")
    shutil.rmtree(tmp_path / "site")
    shutil.rmtree(other.folder / ".dvc/cache", ignore_errors=True)
    with pytest.raises(StageError, match=r"--model HEAD: .*\. Run: dvc push, where the model was trained$"):
        main(command)


def test_globs_and_folders_give_sorted_files_without_hidden_ones(tmp_path: Path) -> None:
    for name in ("b/2.png", "a/1.png", ".hidden/3.png", "a/.4.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    files = [str(tmp_path / "a/1.png"), str(tmp_path / "b/2.png")]
    assert find([str(tmp_path)]) == files
    assert find([str(tmp_path / "*/*.png")]) == files
    with pytest.raises(StageError, match="no pictures here"):
        find([str(tmp_path / "*.jpg")])


def test_onnx_runtime_sends_no_statistics(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    # Where it would send them, it first writes a device's id to the home folder, but not on known CI services.
    environment = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path), "HOME": str(tmp_path)}
    code = "import tools, onnxruntime"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
    assert list(tmp_path.iterdir()) == []
