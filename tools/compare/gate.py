"""Check a comparison against limits, for CI: `python -m tools.compare A B --gate gate.yaml`.

The file lists limits by stage and metric:

    evaluate:
      accuracy: {floor: 0.75, drop: 0.005, significant: true}
      loss: {ceiling: 0.9}
    train:
      parameters: {direction: lower, drop: 0}

- floor, ceiling: the lowest and the highest value that B may have.
- drop: how much worse than A B may be.
- direction: whether higher or lower is better; by default lower for losses and errors.
- significant: with true, a larger drop fails only if the bootstrap interval of the difference excludes zero.

A limit is undecided, which is not a pass, if the metric is missing from A or B, or has no interval.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, create_model, model_validator

from stages.common.failure import StageError
from stages.common.params import Section, load, read

LOWER_IS_BETTER = ("loss", "val_loss", "brier", "calibration_error")
PASS, FAIL, UNDECIDED = 0, 1, 2  # exit codes

Result = Literal["pass", "fail", "undecided"]


@dataclass(frozen=True)
class Pair:
    """One metric of both runs and the 95 % interval of b - a; None if unknown."""

    a: float | None
    b: float | None
    difference: float | None = None
    low: float | None = None
    high: float | None = None


class Limits(Section):
    """The limits of one metric."""

    floor: float | None = None
    ceiling: float | None = None
    drop: float | None = Field(None, ge=0)
    direction: Literal["higher", "lower"] | None = None
    significant: bool = False

    @model_validator(mode="after")
    def _limit_something(self) -> Self:
        if self.floor is None and self.ceiling is None and self.drop is None:
            raise ValueError("no limit is set; add a floor, a ceiling or a drop")
        if self.drop is None and (self.significant or self.direction):
            raise ValueError("significant and direction apply to a drop; add a drop")
        return self


@dataclass(frozen=True)
class Ruling:
    """The result of checking one limit."""

    metric: str
    limit: str
    found: str
    result: Result


def load_limits(path: Path, metrics: Iterable[str]) -> dict[str, Limits]:
    """Return the file's limits by metric; `metrics` are the known ones, such as `evaluate.loss`.

    Raises `StageError` with file, line and key if the file is not in the form of the module's docstring.
    """
    if not path.is_file():
        raise StageError(f"{path}: no such file; --gate expects a YAML file of limits")
    known: dict[str, dict[str, Any]] = {}
    for stage, _, name in (metric.partition(".") for metric in metrics):
        known.setdefault(stage, {})[name] = (Limits, None)
    limits = {}
    for stage in read(path):
        # A stage without metrics gets an empty model, which refuses every key.
        model = create_model(stage, __base__=Section, **known.get(stage, {}))
        for name, value in load(path, stage, model):
            if value is not None:
                limits[f"{stage}.{name}"] = value
    if not limits:
        raise StageError(f"{path}: no limits found; the stages with metrics are {', '.join(known)}")
    return limits


def lower_is_better(metric: str) -> bool:
    """Whether lower is better for `metric`, named with or without its stage: loss, train.val_loss."""
    return metric.split(".")[-1] in LOWER_IS_BETTER


def check(limits: Mapping[str, Limits], pairs: Mapping[str, Pair]) -> list[Ruling]:
    """Check each metric against its limits."""
    return [ruling for name, limit in limits.items() for ruling in _check(name, limit, pairs[name])]


def exit_code(rulings: Iterable[Ruling]) -> int:
    """Return FAIL if any limit is violated, else UNDECIDED if any could not be checked, else PASS."""
    results = {ruling.result for ruling in rulings}
    return FAIL if "fail" in results else UNDECIDED if "undecided" in results else PASS


def _check(name: str, limits: Limits, pair: Pair) -> Iterator[Ruling]:
    if pair.b is None or pair.difference is None:
        yield Ruling(name, "any", f"missing in {'B' if pair.b is None else 'A'}", "undecided")
        return
    if limits.floor is not None:
        yield Ruling(name, f"floor {limits.floor:g}", f"{pair.b:g}", _result(pair.b >= limits.floor))
    if limits.ceiling is not None:
        yield Ruling(name, f"ceiling {limits.ceiling:g}", f"{pair.b:g}", _result(pair.b <= limits.ceiling))
    if limits.drop is None:
        return
    lower = limits.direction == "lower" if limits.direction else lower_is_better(name)
    drop = pair.difference if lower else -pair.difference
    # A drop of exactly the limit must not fail because of rounding.
    within = drop <= limits.drop or math.isclose(drop, limits.drop, abs_tol=1e-12)
    if not limits.significant:
        yield Ruling(name, f"drop {limits.drop:g}", f"{drop:+.4g}", _result(within))
    elif pair.low is None or pair.high is None:
        yield Ruling(name, f"drop {limits.drop:g}, significant", f"{drop:+.4g}, no interval", "undecided")
    else:
        least, most = (pair.low, pair.high) if lower else (-pair.high, -pair.low)
        found = f"{drop:+.4g}, {least:+.4g} to {most:+.4g}"
        yield Ruling(name, f"drop {limits.drop:g}, significant", found, _result(within or least <= 0))


def _result(passed: bool) -> Result:
    return "pass" if passed else "fail"
