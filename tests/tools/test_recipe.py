"""tools/recipe.py and recipes/: applying a recipe, and going back."""

import shutil
from pathlib import Path

import pytest
import yaml

from stages.common.failure import StageError
from stages.common.params import read
from stages.model.networks import build_model, check_smaller, load_network
from stages.training.augmentation import scaled_size
from tests.project import ROOT
from tools import demo, recipe
from tools.check import check_params

PARAMS = (ROOT / "params.yaml").read_text(encoding="utf-8")


def test_the_tutorial_s_recipe_equals_params_yaml() -> None:
    assert recipe.with_recipe(PARAMS, (ROOT / "recipes" / "tutorial.yaml").read_text(encoding="utf-8")) == PARAMS


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    shutil.copytree(ROOT / "pictures", tmp_path / "pictures")
    path = tmp_path / "params.yaml"
    path.write_text(PARAMS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return path


@pytest.mark.parametrize("name", ["fast", "accurate"])
def test_applying_a_recipe_and_going_back_restores_the_file(params: Path, name: str) -> None:
    recipe.main([name])
    check_params(params)
    assert read(params)["model"]["network"] == "fast"
    recipe.main(["tutorial"])
    assert params.read_text(encoding="utf-8") == PARAMS


def test_other_choices_and_comments_stay(params: Path) -> None:
    params.write_text(
        PARAMS.replace("threads: 2 #", "threads: 1 #").replace("name: cifar10 #", "name: digits #"),
        encoding="utf-8",
    )
    recipe.main(["fast"])
    text = params.read_text(encoding="utf-8")
    assert "  threads: 1 # a choice, as another number gives other bytes\n" in text
    assert "  name: digits # cifar10;" in text
    assert text.startswith(PARAMS[: PARAMS.index("dataset:")])


@pytest.mark.parametrize(
    ("vendor", "computes", "amx", "precision"),
    [
        ("AuthenticAMD", True, False, "bfloat16"),
        ("AuthenticAMD", False, False, "float32"),
        ("GenuineIntel", True, True, "bfloat16"),
        ("GenuineIntel", True, False, "float32"),
    ],
)
def test_the_precision_is_the_faster_one_of_this_cpu(
    params: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    vendor: str,
    computes: bool,
    amx: bool,
    precision: str,
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"vendor_id\t: {vendor}\n", encoding="utf-8")
    monkeypatch.setattr(recipe, "CPUINFO", cpuinfo)
    monkeypatch.setattr(recipe, "has_bfloat16", lambda: computes)
    monkeypatch.setattr(recipe, "has_amx", lambda: amx)
    recipe.main(["fast"])
    assert read(params)["runtime"]["precision"] == precision
    assert ("not faster in bfloat16: using float32" in capsys.readouterr().err) is (precision == "float32")


@pytest.mark.usefixtures("started")
def test_the_demo_s_params_fit_the_fast_network(params: Path) -> None:
    assert "model.widths" not in demo.choices(params)
    recipe.main(["fast"])
    demo.choose(params, demo.choices(params))
    network = load_network(params)
    build_model(network, (8, 8, 1), 10)
    for scale in read(params)["train"]["scales"]:
        check_smaller(network, (8, 8, 1), (*scaled_size(scale, 8, 8), 1))


def test_an_unknown_recipe_names_the_available_ones(params: Path) -> None:
    known = "accurate, fast, pretrained, tutorial"
    with pytest.raises(StageError, match=f"^fats: no such recipe; available: {known}$"):
        recipe.main(["fats"])
    assert params.read_text(encoding="utf-8") == PARAMS


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            "evaluate:",
            "evaluates:",
            r": evaluate: missing; a recipe has the whole sections model, train, evaluate",
        ),
        (
            "runtime:",
            "runtimes:",
            r": runtimes: not allowed in a recipe; a recipe has the whole sections model, train, evaluate",
        ),
        ("precision:", "precisions:", r": runtime\.precisions: not allowed in a recipe; a recipe has"),
        ("epochs: ", "epochs: [", r":\d+:\d+: not valid YAML"),
        ("epochs: ", "epochs: -", r": nothing was changed: .*params\.yaml with this recipe:\d+: train\.epochs"),
    ],
)
def test_an_invalid_recipe_changes_nothing(params: Path, old: str, new: str, problem: str) -> None:
    path = Path("recipes") / "fast.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    with pytest.raises(StageError, match=f"^recipes/fast\\.yaml{problem}"):
        recipe.main(["fast"])
    assert params.read_text(encoding="utf-8") == PARAMS


def test_any_layout_with_sections_at_the_margin_is_accepted(params: Path) -> None:
    text = PARAMS.replace("model:\n", "model :\n# a remark\n").replace("train:\n", '"train":\n').rstrip("\n")
    params.write_text(text, encoding="utf-8")
    recipe.main(["fast"])
    assert read(params)["model"]["network"] == "fast"
    assert "a remark" not in params.read_text(encoding="utf-8")
    params.write_text(
        f"{{{', '.join(f'{key}: {value}' for key, value in read(params).items())}}}".replace("None", "0")
    )
    with pytest.raises(StageError, match=r"^section model not found at the left margin"):
        recipe.main(["tutorial"])


def test_a_network_without_its_keys_is_fixed(params: Path) -> None:
    params.write_text(PARAMS.replace("network: tutorial", "network: fast"), encoding="utf-8")
    recipe.main(["fast"])
    check_params(params)


def test_a_recipe_may_leave_runtime_as_it_is(params: Path) -> None:
    path = Path("recipes") / "fast.yaml"
    path.write_text(
        path.read_text(encoding="utf-8").partition("runtime:")[0]
        + "evaluate: {top_k: 1, views: 6, duplicates: near, temperature: none, abstain: 0}\n"
    )
    recipe.main(["fast"])
    assert read(params)["runtime"]["precision"] == "float32"
    assert read(params)["evaluate"]["top_k"] == 1


def test_a_file_rewritten_by_dvc_accepts_a_recipe(params: Path) -> None:
    params.write_text(yaml.safe_dump(yaml.safe_load(PARAMS), sort_keys=False), encoding="utf-8")
    recipe.main(["fast"])
    assert read(params) == read(params) | {
        name: section for name, section in read(ROOT / "recipes" / "fast.yaml").items() if name in recipe.WHOLE
    }
