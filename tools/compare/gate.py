"""Hold a comparison to limits, for CI: `python -m tools.compare A B --gate gate.yaml`.

The file names the stage that wrote a metric, the metric, and its limits:

    evaluate:
      accuracy: {floor: 0.75, drop: 0.005, significant: true}
      loss: {ceiling: 0.9}
    train:
      parameters: {direction: lower, drop: 0}

- floor, ceiling: B must not be below, or above.
- drop: the most by which B may be worse than A.
- direction: higher or lower, which of them is better; by default lower for losses and errors.
- significant: true lets a larger drop pass while the bootstrap's interval of the difference holds zero.

A metric that A or B lacks, or that has no interval where one is asked for, is undecided: never a pass.
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
    """One metric of both runs and the interval of the difference b - a; None where there is none."""

    a: float | None
    b: float | None
    difference: float | None = None
    low: float | None = None
    high: float | None = None


class Limits(Section):
    """What a gate file may say of one metric."""

    floor: float | None = None
    ceiling: float | None = None
    drop: float | None = Field(None, ge=0)
    direction: Literal["higher", "lower"] | None = None
    significant: bool = False

    @model_validator(mode="after")
    def _limit_something(self) -> Self:
        if self.floor is None and self.ceiling is None and self.drop is None:
            raise ValueError("it limits nothing; give a floor, a ceiling or a drop")
        if self.drop is None and (self.significant or self.direction):
            raise ValueError("significant and direction say how a drop is judged; give a drop too")
        return self


@dataclass(frozen=True)
class Ruling:
    """What became of one limit."""

    metric: str
    limit: str
    found: str
    result: Result


def load_limits(path: Path, metrics: Iterable[str]) -> dict[str, Limits]:
    """Return the limits of the file by metric; `metrics`, as `evaluate.loss`, are those that may be named.

    Raises `StageError`, with file, line and key, for whatever is not as the module's docstring has it.
    """
    if not path.is_file():
        raise StageError(f"{path}: no such file; name the file of the limits with --gate")
    known: dict[str, dict[str, Any]] = {}
    for stage, _, name in (metric.partition(".") for metric in metrics):
        known.setdefault(stage, {})[name] = (Limits, None)
    limits = {}
    for stage in read(path):
        # Also for the stages without metrics, so that what is said of them is refused and not passed over.
        model = create_model(stage, __base__=Section, **known.get(stage, {}))
        for name, value in load(path, stage, model):
            if value is not None:
                limits[f"{stage}.{name}"] = value
    if not limits:
        raise StageError(f"{path}: it limits no metric; the stages with metrics are {', '.join(known)}")
    return limits


def lower_is_better(metric: str) -> bool:
    """Tell whether less of `metric` is better, with or without its stage before it: loss, train.val_loss."""
    return metric.split(".")[-1] in LOWER_IS_BETTER


def judge(limits: Mapping[str, Limits], pairs: Mapping[str, Pair]) -> list[Ruling]:
    """Hold each metric to its limits."""
    return [ruling for name, limit in limits.items() for ruling in _judge(name, limit, pairs[name])]


def exit_code(rulings: Iterable[Ruling]) -> int:
    """Return FAIL when a limit is broken, whatever the others; else UNDECIDED when one could not be judged."""
    results = {ruling.result for ruling in rulings}
    return FAIL if "fail" in results else UNDECIDED if "undecided" in results else PASS


def _judge(name: str, limits: Limits, pair: Pair) -> Iterator[Ruling]:
    if pair.b is None or pair.difference is None:
        yield Ruling(name, "any", f"none in {'B' if pair.b is None else 'A'}", "undecided")
        return
    if limits.floor is not None:
        yield Ruling(name, f"floor {limits.floor:g}", f"{pair.b:g}", _result(pair.b >= limits.floor))
    if limits.ceiling is not None:
        yield Ruling(name, f"ceiling {limits.ceiling:g}", f"{pair.b:g}", _result(pair.b <= limits.ceiling))
    if limits.drop is None:
        return
    lower = limits.direction == "lower" if limits.direction else lower_is_better(name)
    drop = pair.difference if lower else -pair.difference
    # A drop of just what is allowed must not fail by the rounding of the difference.
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
