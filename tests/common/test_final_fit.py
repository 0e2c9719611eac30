"""stages/common/final_fit.py: what needs validation images is refused in one line when there are none."""

from pathlib import Path

import pytest

from stages.common.failure import StageError
from stages.common.final_fit import OFF, check_final_fit
from tests.project import ROOT
from tools.demo import choose


@pytest.fixture
def params(tmp_path: Path) -> Path:
    """The committed params, with everything off that needs validation images."""
    path = tmp_path / "params.yaml"
    path.write_bytes((ROOT / "params.yaml").read_bytes())
    choose(path, OFF)
    return path


def test_params_without_validation_are_accepted(params: Path) -> None:
    check_final_fit(params)


@pytest.mark.parametrize(
    ("key", "value"),
    [("train.early_stopping", 3), ("evaluate.temperature", "validation"), ("evaluate.abstain", 0.05)],
)
def test_a_key_that_needs_validation_is_refused_with_the_value_to_set(
    params: Path, key: str, value: object
) -> None:
    choose(params, {key: value})
    expected = (
        rf"params.yaml: {key} needs validation images, but preprocess\.validation_fraction is 0; "
        rf"set {key}: {OFF[key]}, or a fraction above 0$"
    )
    with pytest.raises(StageError, match=expected):
        check_final_fit(params)


def test_all_keys_are_in_one_line(params: Path) -> None:
    choose(params, {"train.early_stopping": 3, "evaluate.abstain": 0.05})
    expected = "stopping and evaluate.abstain need .*; set train.early_stopping: 0, evaluate.abstain: 0, or a"
    with pytest.raises(StageError, match=expected):
        check_final_fit(params)
