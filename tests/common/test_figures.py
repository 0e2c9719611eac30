"""common/figures.py: a table of all figures, which reads back as it was written, and a few of them as metrics."""

import json
import math
from pathlib import Path

import pytest

from stages.common.failure import StageError
from stages.common.figures import flat, parse_figures, write_figures

FIGURES = {
    "accuracy": 0.1 + 0.2,
    "one": 1.0,
    "tiny": 5e-324,
    "huge": 1e22,
    "below": -0.5,
    "images": 360,
    "edition": 'the "official", archive',
    "sha256": "1" * 64,
    "views_2": {"accuracy": 0.5},
    "unknown": None,
}


def test_figures_read_back_with_their_values_and_types(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.csv"
    write_figures(path, FIGURES, [])
    found = parse_figures(path.read_bytes(), "evaluation.csv")
    expected = {name: value for name, value in flat(FIGURES).items() if value is not None}
    assert found == expected
    assert list(map(type, found.values())) == list(map(type, expected.values()))


def test_the_metrics_are_the_figures_that_were_named_and_exist(tmp_path: Path) -> None:
    write_figures(tmp_path / "evaluation.csv", FIGURES, ["accuracy", "views_2.accuracy", "unknown"])
    found = json.loads((tmp_path / "evaluation.json").read_bytes())
    assert found == {"accuracy": 0.1 + 0.2, "views_2.accuracy": 0.5}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_figure_that_is_not_finite_is_refused_and_nothing_is_written(tmp_path: Path, value: float) -> None:
    with pytest.raises(StageError, match=r"evaluation\.csv: loss is (nan|inf), not a finite number"):
        write_figures(tmp_path / "evaluation.csv", {"loss": value}, ["loss"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", [b"", b"name,value\n", b"name,value\naccuracy\n", b"a,b\n1,2\n", b"\xff", b"<<<<<<<\n"]
)
def test_what_is_no_table_of_figures_is_named(content: bytes) -> None:
    with pytest.raises(StageError, match=r"^HEAD: metrics/train\.csv: not a table of figures .*; run: dvc repro$"):
        parse_figures(content, "HEAD: metrics/train.csv")
