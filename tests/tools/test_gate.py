"""tools/compare/gate.py: limits that pass, fail or are undecided, and invalid files."""

from pathlib import Path

import pytest

from stages.common.failure import StageError
from tools.compare.gate import FAIL, PASS, UNDECIDED, Pair, check, exit_code, load_limits


def pair(a: float, b: float, low: float | None = None, high: float | None = None) -> Pair:
    return Pair(a, b, b - a, low, high)


PAIRS = {
    "evaluate.accuracy": pair(0.76, 0.75, -0.02, 0.001),
    "evaluate.f1_macro": pair(0.76, 0.74, -0.03, -0.01),
    "evaluate.loss": pair(0.8, 0.9, 0.05, 0.15),
    "evaluate.brier": pair(0.35, 0.36, -0.01, 0.03),
    "evaluate.official_accuracy": Pair(None, 0.8),
    "evaluate.top_3_accuracy": Pair(0.9, None),
    "train.val_accuracy": pair(0.77, 0.78),
    "train.parameters": pair(1000, 1001),
}


def write(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "gate.yaml"
    path.write_text(content, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("evaluate: {accuracy: {floor: 0.75}}", PASS),
        ("evaluate: {accuracy: {floor: 0.7501}}", FAIL),
        ("evaluate: {loss: {ceiling: 0.9}}", PASS),
        ("evaluate: {loss: {ceiling: 0.89}}", FAIL),
        ("evaluate: {accuracy: {drop: 0.01}}", PASS),  # 0.76 - 0.75 is a little more in floating point
        ("evaluate: {accuracy: {drop: 0.0099}}", FAIL),
        ("evaluate: {accuracy: {drop: 0, significant: true}}", PASS),
        ("evaluate: {f1_macro: {drop: 0, significant: true}}", FAIL),
        ("evaluate: {f1_macro: {drop: 0.02, significant: true}}", PASS),
        ("evaluate: {loss: {drop: 0}}", FAIL),
        ("evaluate: {loss: {drop: 0, direction: higher}}", PASS),
        ("evaluate: {loss: {drop: 0, significant: true}}", FAIL),
        ("evaluate: {brier: {drop: 0, significant: true}}", PASS),
        ("evaluate: {brier: {drop: 0}}", FAIL),
        ("train: {val_accuracy: {drop: 0}}", PASS),
        ("train: {val_accuracy: {drop: 0, direction: lower}}", FAIL),
        ("train: {parameters: {drop: 0, direction: lower}}", FAIL),
        ("train: {parameters: {drop: 1, direction: lower}}", PASS),
        ("train: {parameters: {drop: 0, direction: lower, significant: true}}", UNDECIDED),
        ("train: {val_accuracy: {drop: 0, significant: true}}", UNDECIDED),
        ("evaluate: {official_accuracy: {floor: 0.5}}", UNDECIDED),
        ("evaluate: {top_3_accuracy: {drop: 1}}", UNDECIDED),
        ("evaluate: {accuracy: {floor: 0.5}, official_accuracy: {floor: 0.5}}", UNDECIDED),
        ("evaluate: {accuracy: {floor: 0.9}, official_accuracy: {floor: 0.5}}", FAIL),
        ("evaluate: {accuracy: {floor: 0.5}}\ntrain: {val_accuracy: {floor: 0.9}}", FAIL),
        ("evaluate: {accuracy: {floor: 0.5, ceiling: 0.6}}", FAIL),
    ],
)
def test_limits_pass_fail_or_are_undecided(tmp_path: Path, content: str, expected: int) -> None:
    assert exit_code(check(load_limits(write(tmp_path, content), PAIRS), PAIRS)) == expected


def test_the_sign_of_a_drop_depends_on_the_metric(tmp_path: Path) -> None:
    path = write(
        tmp_path, "evaluate: {f1_macro: {drop: 0, significant: true}, loss: {drop: 0, significant: true}}"
    )
    rulings = check(load_limits(path, PAIRS), PAIRS)
    assert [ruling.found for ruling in rulings] == ["+0.02, +0.01 to +0.03", "+0.1, +0.05 to +0.15"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("evaluate:\n  acuracy: {floor: 0.5}", r":2: evaluate\.acuracy: unknown key; did you mean 'accuracy'"),
        ("evaluate:\n  accuracy: {flor: 0.5}", r":2: evaluate\.accuracy\.flor: unknown key; did you mean 'floor'"),
        ("evaluate:\n  accuracy:\n    drop: -1", r":3: evaluate\.accuracy\.drop: .* greater than or equal to 0"),
        ("evaluate: {accuracy: {floor: '0.5'}}", r"evaluate\.accuracy\.floor: .* number, found '0\.5'"),
        ("evaluate: {accuracy: {floor: .nan}}", r"evaluate\.accuracy\.floor: .* finite number"),
        ("evaluate: {accuracy: {drop: .inf}}", r"evaluate\.accuracy\.drop: .* finite number"),
        ("evaluate: {accuracy: {drop: 0, direction: hihger}}", "did you mean 'higher'"),
        ("evaluate: {accuracy: {significant: true}}", "no limit is set"),
        ("evaluate: {accuracy: {floor: 0, significant: true}}", "add a drop"),
        ("evaluate: {accuracy: {}}", r"evaluate\.accuracy: no limit is set"),
        ("evaluate: {accuracy: }", r"evaluate\.accuracy: expected keys: floor, ceiling, drop"),
        ("evaluate: {accuracy: 0.5}", r"evaluate\.accuracy: expected keys"),
        ("evaluate: {accuracy: {floor: 1}, accuracy: {floor: 0}}", "duplicate key"),
        ("evaluate: 0.5", r":1: evaluate: expected keys"),
        ("evaluate:", "no limits found; the stages with metrics are evaluate, train"),
        ("{}", "no limits found"),
        ("dataset: {accuracy: {floor: 0.5}}", r"dataset\.accuracy: unknown key"),
        (
            "evaluate: {accuracy: {floor: 0.5}}\ndataset: {accuracy: {floor: 0.5}}",
            r":2: dataset\.accuracy: unknown",
        ),
        ("evaluation: {accuracy: {floor: 0.5}}", "unknown section; did you mean 'evaluate'"),
        ("", "expected sections with keys"),
        ("evaluate: [", "not valid YAML"),
    ],
)
def test_an_invalid_file_is_one_line_with_its_position(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(StageError, match=message) as caught:
        load_limits(write(tmp_path, content), PAIRS)
    assert str(caught.value).startswith(str(tmp_path / "gate.yaml"))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"gate\.yaml: no such file; --gate expects a YAML file of limits"):
        load_limits(tmp_path / "gate.yaml", PAIRS)
