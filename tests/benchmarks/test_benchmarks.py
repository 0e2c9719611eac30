"""The benchmarks' own code, on so few images that the figures mean nothing."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import vl_convert
import yaml

from benchmarks import ingredients, layouts, machine, recipes
from stages.common.params import load
from stages.datasets import folder
from stages.model.networks import load_network
from stages.training import step
from stages.training.params import TrainParams
from tests.project import ROOT, Project


def benchmark(name: str, *arguments: str, folder: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


def test_accuracy_says_in_one_line_that_there_are_no_splits(tmp_path: Path) -> None:
    done = benchmark("accuracy", "--processed", str(tmp_path))
    assert done.returncode == 1
    assert "statistics.json: no such file; run: dvc repro" in done.stderr and done.stderr.count("\n") == 1


def test_comparisons_with_bare_keras_refuse_images_stored_as_uint8(first_run: Project, tmp_path: Path) -> None:
    record = json.loads((first_run.folder / "data/processed/statistics.json").read_bytes())
    processed = tmp_path / "data/processed"
    processed.mkdir(parents=True)
    (processed / "statistics.json").write_text(json.dumps({**record, "storage": "uint8"}), encoding="utf-8")
    for name, place, options in (
        ("accuracy", ROOT, ["--processed", str(processed)]),
        ("recipes", ROOT, ["--processed", str(processed)]),
        ("evaluation", tmp_path, []),
    ):
        done = benchmark(name, *options, folder=place)
        assert done.returncode == 1
        assert "data/processed: the images are stored as uint8" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.long
def test_accuracy_trains_every_contestant_with_every_seed(first_run: Project) -> None:
    processed = first_run.folder / "data" / "processed"
    done = benchmark("accuracy", "--processed", str(processed), "--epochs", "1", "--seeds", "0", "1")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for name in {"fit", "float32"} | found.keys() - {"epochs", "seeds"}:
        accuracies = found[name]["val_accuracy"]
        assert len(accuracies) == 2 and min(accuracies) > 0.1  # of ten classes
        assert found[name]["mean"] == pytest.approx(sum(accuracies) / 2, abs=1e-4)


@pytest.mark.slow
def test_training_compares_the_chosen_contestants_with_fit(tmp_path: Path) -> None:
    written = tmp_path / "rates.json"
    arguments = ("--rounds", "1", "--images", "64", "--contestants", "float32_bs32_any_order")
    done = benchmark("training", *arguments, "--json", str(written))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == {"float32_bs32_any_order", "per_cpu_second"}
    assert found["per_cpu_second"].keys() == {"float32_bs32_any_order"}
    content = json.loads(written.read_bytes())
    assert content["over_fit"] == found
    assert content["rates"].keys() == {"fit", "float32_bs32_any_order"}
    assert len(content["rates"]["fit"]["images_per_second"]) == 1


@pytest.mark.slow
@pytest.mark.long
def test_recipes_times_each_epoch_of_both_ways_to_train_the_tutorial_s_network(first_run: Project) -> None:
    processed = str(first_run.folder / "data" / "processed")
    for name in ("fit", "tutorial"):
        began = time.time()
        done = benchmark(
            "recipes", "--only", name, "--seeds", "0", "--processed", processed, "--began", str(began)
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout.splitlines()[-1])
        seconds, accuracies = zip(*found["curve"], strict=True)
        assert len(seconds) == 20
        assert seconds[0] > 0 and list(seconds) == sorted(seconds) and seconds[-1] <= found["seconds"]
        assert found["seconds"] <= time.time() - began
        assert found["accuracy"] == accuracies[-1] > 0.8


def test_recipes_keeps_no_run_of_another_recipe_data_or_machine(tmp_path: Path) -> None:
    (tmp_path / "statistics.json").write_text("{}", encoding="utf-8")
    kept = recipes.still_true({}, tmp_path)
    assert kept["runs"] == {"fit": {}, "tutorial": {}, "fast": {}, "accurate": {}}
    for name in kept["runs"]:
        kept["runs"][name] = {"0": {"accuracy": 0.5}}
    here = machine.describe()
    assert recipes.still_true({here: kept}, tmp_path) == kept
    assert not any(recipes.still_true({"another": kept}, tmp_path)["runs"].values())
    changed = {**kept, "subjects": {**kept["subjects"], "fast": "another recipe"}}
    assert recipes.still_true({here: changed}, tmp_path)["runs"] == {**kept["runs"], "fast": {}}
    del changed["subjects"]["fast"], changed["runs"]["fast"]
    assert recipes.still_true({here: changed}, tmp_path)["runs"] == {**kept["runs"], "fast": {}}
    (tmp_path / "statistics.json").write_text("{ }", encoding="utf-8")
    assert not any(recipes.still_true({here: kept}, tmp_path)["runs"].values())


def test_recipes_draws_a_curve_for_each_contestant_that_was_run() -> None:
    runs = {name: {"0": {"curve": [[2.0, 0.5], [4.0, 0.75]]}} for name in ("fit", "fast")} | {"tutorial": {}}
    drawn = vl_convert.vegalite_to_svg(recipes.chart(runs))
    assert ">fast<" in drawn and ">tutorial, fit<" in drawn
    assert "this engine" not in drawn and "accurate" not in drawn


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says there what a process uses")
def test_memory_measures_the_stages_on_an_archive_and_removes_it(tmp_path: Path) -> None:
    done = benchmark("memory", "40", "--archive", "tar", "--last", "preprocess", "--folder", str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines()[2:]]
    assert [row[:2] for row in rows] == [["| 40", "download"], ["| 40", "preprocess"]]
    for _, _, peak, private, mapped, *_ in rows:
        assert 10 < int(private) + int(mapped) <= int(peak) + 1  # rounded each
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("started")
@pytest.mark.parametrize("name", ["as in the recipe", "images of 16 x 16", "Keras's own gradient, 16 x 16"])
def test_ingredients_takes_steps_of_each_variant(name: str) -> None:
    network, params = load_network(ingredients.RECIPE), load(ingredients.RECIPE, "train", TrainParams)
    small = params.model_copy(update={"batch_size": 4})
    try:
        losses, hits = ingredients.compiled(ingredients.VARIANTS[name], network, small)()
    finally:
        keras.config.set_dtype_policy("float32")
    assert losses.shape == hits.shape == (1,)
    assert np.isfinite(losses).all()


def test_ingredients_are_left_out_by_the_names_they_have() -> None:
    for variant in ingredients.VARIANTS.values():
        assert not variant.without or callable(getattr(step, variant.without))


@pytest.mark.slow
@pytest.mark.parametrize("name", layouts.LAYOUTS)
def test_every_labelled_picture_of_each_layout_is_read(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    pictures = {each: list(rng.integers(0, 256, (2600, 4, 4, 3), np.uint8)) for each in names}
    write, _ = layouts.LAYOUTS[name]
    keys = {"dataset.folder.path": str(tmp_path / "set"), **write(tmp_path / "set", pictures)}
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["dataset"]["folder"]
    params |= {key.rpartition(".")[2]: value for key, value in keys.items()}
    written = [path for path in (tmp_path / "set").rglob("*.*") if path.suffix in (".jpg", ".png")]
    readable = [path for path in written if path.stat().st_size and not path.name.startswith("unknown")]
    with folder.load(folder.Params.model_validate(params), tmp_path) as dataset:
        for split in (dataset.train, dataset.test):
            assert all(len(chunk) for chunk in split.images.chunks)
        assert len(dataset.train.labels) + len(dataset.test.labels) == len(readable)
