"""The small tools: check, demo, figures."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from stages.common.failure import StageError
from stages.common.figures import flat
from stages.common.params import SECTIONS, read
from tests.project import ROOT
from tools import check, demo, figures, plots
from tools.recipe import with_recipe
from tools.report import __main__ as report


def test_the_committed_params_pass_the_check() -> None:
    check.main([str(ROOT / "params.yaml")])


def test_every_section_is_checked(tmp_path: Path) -> None:
    assert {*check.CLASSES, "model"} == set(SECTIONS)
    for section in SECTIONS:
        values = read(ROOT / "params.yaml")
        values[section]["surplus"] = 1
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        with pytest.raises(StageError, match=rf"{section}\.surplus: unknown key"):
            check.main([str(path)])


def test_a_failed_check_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text("utf-8").replace("epochs: 20", "epochs: 0"), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "tools.check", str(path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "train.epochs: it should be greater than or equal to 1, found 0" in done.stderr


@pytest.mark.parametrize(
    "content", ["", "schema: '2.0'\nstages:\n  download:\n   cmd: [", "schema: '2.0'\n", "[]"]
)
def test_a_truncated_lock_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.lock").write_text(content, encoding="utf-8")
    with pytest.raises(
        StageError, match=r"^dvc\.lock: incomplete, .*; run: git checkout dvc\.lock, or rm dvc\.lock"
    ):
        check.main([str(ROOT / "params.yaml")])


def test_a_folder_of_pictures_that_dvc_cannot_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy2(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        StageError, match=r"^params\.yaml: dataset\.folder\.path: pictures: not found; make the folder"
    ):
        check.main([])
    (tmp_path / "pictures" / "cat").mkdir(parents=True)
    check.main([])
    (tmp_path / "pictures" / "dog").symlink_to("cat")
    with pytest.raises(StageError, match=r"^pictures/dog: a link to a folder, in which DVC sees no change; move"):
        check.main([])
    (tmp_path / "pictures" / "dog").unlink()
    (tmp_path / "pictures" / "cat" / "1.png").symlink_to("gone.png")
    with pytest.raises(StageError, match=r"^pictures/cat/1\.png: a link to a file that is not there.*remove"):
        check.main([])


@pytest.mark.parametrize("tool", [figures, plots, report])
def test_help_is_printed_and_nothing_is_written(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="0"):
        tool.main(["--help"])
    assert capsys.readouterr().out.startswith(f"usage: python -m {tool.__name__.removesuffix('.__main__')} ")
    assert list(tmp_path.iterdir()) == []


def test_the_demo_copies_code_and_configuration_but_no_outputs(tmp_path: Path) -> None:
    demo.copy_tracked(ROOT, tmp_path / "demo")
    copied = {path.name for path in (tmp_path / "demo").iterdir()}
    assert copied == {".dvc", ".dvcignore", "dvc.yaml", "params.yaml", "pictures", "stages"}
    assert (tmp_path / "demo/stages/train.py").read_bytes() == (ROOT / "stages/train.py").read_bytes()


def test_the_hashes_of_the_demo_are_those_of_every_output_in_dvc_yaml() -> None:
    listed: set[str] = set()
    for stage in yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"].values():
        for out in (*stage["outs"], *stage.get("metrics", []), *stage.get("plots", [])):
            listed.add(out if isinstance(out, str) else next(iter(out)))
    recorded = json.loads(demo.HASHES.read_text("utf-8"))
    assert set(recorded["outputs"]) == listed
    assert set(recorded["params"]) == set(flat(read(ROOT / "params.yaml")))


def test_a_demo_with_other_bytes_says_so_and_fails_with_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "HASHES", tmp_path / "demo.json")
    monkeypatch.setattr(demo, "run", lambda command, folder: None)
    monkeypatch.chdir(ROOT)
    folder = tmp_path / "demo"
    folder.mkdir()
    lock = {"stages": {"train": {"outs": [{"path": "model", "md5": "1"}, {"path": "figures", "md5": "2"}]}}}
    (folder / "dvc.lock").write_text(yaml.safe_dump(lock), encoding="utf-8")
    demo.main([str(folder), "--record"])
    assert "All 2 outputs match the committed hashes." in capsys.readouterr().out
    demo.main([str(folder), "--exact"])
    (folder / "dvc.lock").write_text(yaml.safe_dump(lock).replace("'1'", "'3'"), encoding="utf-8")
    demo.main([str(folder)])
    assert "1 of 2 outputs do not match the committed hashes (first: model)." in capsys.readouterr().out
    with pytest.raises(StageError, match=r"^model: not the hashes in demo\.json"):
        demo.main([str(folder), "--exact"])


def test_a_file_that_was_removed_is_removed_from_the_demo(tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "old.py").touch()
    demo.copy_tracked(ROOT, tmp_path)
    assert not (tmp_path / "stages" / "old.py").exists()


def test_choices_replace_the_values_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("train: {learning_rate: 1e-3, epochs: 2}\n", encoding="utf-8")
    demo.choose(path, {"train.epochs": 3})
    assert read(path) == {"train": {"learning_rate": 0.001, "epochs": 3}}


def test_a_choice_that_is_not_a_key_of_the_file_is_a_bug(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("train: {epochs: 2}\n", encoding="utf-8")
    with pytest.raises(KeyError, match=r"train\.epoch is not a key"):
        demo.choose(path, {"train.epoch": 3})
    assert read(path) == {"train": {"epochs": 2}}


def test_a_demo_outside_a_checkout_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="git cannot list its files"):
        demo.copy_tracked(tmp_path, tmp_path / "demo")


def test_a_command_that_fails_in_the_demo_is_named(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="'false' failed in"):
        demo.run(["false"], tmp_path)


def test_the_pictures_are_drawn_from_the_committed_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    figures.main([str(tmp_path)])
    for file in figures.CHARTS.values():
        assert (tmp_path / file).read_text(encoding="utf-8").startswith("<svg")


def test_a_pretrained_network_without_a_pin_or_with_standardized_pixels_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    recipe = (ROOT / "recipes/pretrained.yaml").read_text(encoding="utf-8")
    (tmp_path / "pictures").mkdir()
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "params.yaml"
    path.write_text(with_recipe(text, recipe), encoding="utf-8")
    check.check_params(path)
    with pytest.raises(StageError, match=r"^model\.sha256: not set\. Download https"):
        check.main([str(path)])
    demo.choose(path, {"model.weights": "none", "preprocess.scaling": "standardize"})
    with pytest.raises(StageError, match=r"^preprocess\.scaling: standardize does not go with"):
        check.main([str(path)])
