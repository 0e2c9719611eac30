"""Compares each output with its claim: identical, within tolerance, differs as expected, differs, not comparable.

In exact mode every output must match byte for byte. In tolerance mode, for another kind of machine,
tools/verify/tolerances.yaml says which figures may differ and by how much. Outputs that it does not list must
match byte for byte there, too.
"""

import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from stages.common.failure import StageError
from stages.common.params import Section, read
from tools.verify import counts, machine
from tools.verify.claims import Claim
from tools.verify.differences import Change, changed_figures, describe, digest, in_words, is_number
from tools.verify.lock import Lock, Output

TOLERANCES = Path(__file__).with_name("tolerances.yaml")

Result = Literal["identical", "within tolerance", "differs as expected", "differs", "could not be compared"]
EXCUSED = ("within tolerance", "differs as expected")


class Tolerance(Section):
    """The allowed difference from the recorded figure."""

    absolute: float | None = Field(None, ge=0)
    relative: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.absolute is None) == (self.relative is None):
            raise ValueError("give either absolute or relative")
        return self

    def allowed(self, old: float) -> float:
        """Return the largest difference from `old` that passes."""
        return self.absolute if self.absolute is not None else (self.relative or 0) * abs(old)


Rule = Literal["any"] | Tolerance
Whole = Literal["any", "arithmetic"]
Rules = Mapping[str, Whole | Mapping[str, Rule]]


@dataclass(frozen=True)
class Row:
    """The result for one output, with a description of the differences."""

    stage: str
    path: str
    result: Result
    detail: str = ""


def load_rules(path: Path = TOLERANCES) -> Rules:
    """Return the tolerances; raises `StageError` with file and key when they are not valid."""
    try:
        return TypeAdapter(dict[str, Whole | dict[str, Rule]]).validate_python(read(path))
    except ValidationError as error:
        # One error for each member of the union: the one with the longest location is what was meant.
        first = max(error.errors(), key=lambda found: len(found["loc"]))
        where = ".".join(str(part) for part in first["loc"][:2] if not str(part).startswith(("literal", "dict")))
        raise StageError(f"{path}: {where}: {first['msg']}; write any, or {{absolute: 0.02}}") from None


def judge(claim: Claim, lock: Lock, folder: Path, rules: Rules | None, stage: str | None = None) -> list[Row]:
    """Return a row for each output of `claim` and of the rebuild in `folder`; `rules` is None in exact mode."""
    made = lock.outputs()
    rows = []
    for path in {**made, **claim.outputs}:
        found, expected = made.get(path), claim.outputs.get(path)
        name = (found or claim.outputs[path]).stage
        if stage in (None, name):
            rows.append(Row(name, path, *_judge(claim, path, expected, found, folder / path, rules)))
    rows = [_excuse_only_by_its_counts(row, claim.committed) for row in _excuse_only_beside_figures(rows, rules)]
    return _excuse_only_with_other_arithmetic(rows, _same_arithmetic(rows, rules or {}, claim.committed, folder))


def _judge(
    claim: Claim, path: str, expected: Output | None, found: Output | None, new: Path, rules: Rules | None
) -> tuple[Result, str]:
    if found is None:
        return "differs", f"{claim.name} has it, and the rebuild did not make it"
    if expected is None or expected.md5 is None:
        return "could not be compared", f"{claim.name} has no hash of it"
    committed = claim.committed / path
    if path in claim.tracked and not committed.is_file():
        return "could not be compared", f"{claim.name} has its hash, and git has no such file"
    try:
        if committed.is_file() and digest(committed) != expected.md5:
            return _contradicted(claim, path, committed, new)
        if expected.md5 == found.md5:
            return "identical", ""
        old = claim.file(path)
        rule = _find(rules or {}, path)
        if rule is None:
            return "differs", _described(path, old, new) if old else _hashes(expected, found)
        if rule in ("any", "arithmetic"):
            return "differs as expected", "not judged; its stage's metrics are"
        if old is None:
            return "could not be compared", f"{_hashes(expected, found)}, and no copy of the recorded file is here"
        return _within(changed_figures(path, old, new), rule)
    except StageError as error:
        return "could not be compared", str(error)


def _described(path: str, old: Path, new: Path) -> str:
    try:
        return describe(path, old, new)
    except StageError as error:
        return str(error)  # the hashes show that it differs, even if the files cannot be compared


def _contradicted(claim: Claim, path: str, committed: Path, new: Path) -> tuple[Result, str]:
    """Describe a file in git that does not match the lock in the same commit: the two are not from one run."""
    if path.endswith((".json", ".csv")):
        for change in changed_figures(path, committed, new):
            if _not_finite(change.old):
                return "could not be compared", f"in git, {change.name} is {change.old}, not a finite number"
    held = "it is what the rebuild made"
    if digest(committed) != digest(new):
        held = f"in git and in the rebuild: {describe(path, committed, new)}"
    return "differs", f"the file in git is not the one that {claim.name} names; {held}"


def _within(changes: Sequence[Change], rules: Mapping[str, Rule]) -> tuple[Result, str]:
    """Apply the rules to the figures that differ. The worst result is that of the file."""
    verdicts: dict[Result, list[str]] = {}
    for change in changes:
        result, words = _hold(change, _find(rules, change.name))
        verdicts.setdefault(result, []).append(words)
    # If some figures have a tolerance and meet it, the file is within tolerance, whatever its other figures are.
    order: tuple[Result, ...] = ("differs", "could not be compared", "within tolerance", "differs as expected")
    if not verdicts:
        return "within tolerance", "the same figures in other bytes"
    result = next(result for result in order if result in verdicts)
    reasons = verdicts[result]
    # Figures with a tolerance that are equal meet it.
    if result == "differs as expected" and any(isinstance(rule, Tolerance) for rule in rules.values()):
        result = "within tolerance"
    return result, "; ".join(reasons[:3]) + (f"; and {len(reasons) - 3} more" if len(reasons) > 3 else "")


def _hold(change: Change, rule: Rule | None) -> tuple[Result, str]:
    words = in_words(change)
    if change.old is None or _not_finite(change.old):
        return "could not be compared", f"{words}: the recorded value cannot be compared"
    if rule == "any":
        return "differs as expected", words
    if not is_number(change.new) or not is_number(change.old) or _not_finite(change.new):
        return "differs", words
    if rule is None:
        return "differs", f"{words}, and must be equal"
    allowed = rule.allowed(change.old)
    # Rounding must not reject a difference that is exactly the allowed one.
    within = abs(change.new - change.old) <= allowed or math.isclose(abs(change.new - change.old), allowed)
    return "within tolerance" if within else "differs", f"{words}, {allowed:.3g} allowed"


def _excuse_only_beside_figures(rows: Sequence[Row], rules: Rules | None) -> list[Row]:
    """Accept files that may differ only if figures of the same stage were compared."""
    judged = {
        row.stage
        for row in rows
        if row.result in ("identical", "within tolerance", "differs") and _judges(rules, row.path)
    }
    return [
        Row(row.stage, row.path, "could not be compared", f"not judged, and no metric of {row.stage} was either")
        if row.result == "differs as expected" and row.stage not in judged
        else row
        for row in rows
    ]


def _excuse_only_by_its_counts(row: Row, committed: Path) -> Row:
    """Reject figures that do not follow from the confusion matrix recorded with them, however close they are."""
    if row.path not in (counts.EVALUATION, counts.METRICS) or row.result not in EXCUSED:
        return row
    try:
        found = counts.contradicted(committed)
    except StageError as error:
        return replace(row, result="could not be compared", detail=str(error))
    return replace(row, result="differs", detail="; ".join(found)) if found else row


def _same_arithmetic(rows: Sequence[Row], rules: Rules, committed: Path, folder: Path) -> dict[str, str]:
    """Return the stages whose arithmetic was the same here as in the record, with the evidence."""
    same = {
        row.stage: f"{row.path} is identical"
        for row in rows
        if row.result == "identical" and _find(rules, row.path) == "arithmetic"
    }
    model = machine.recorded_model(folder)
    if model and model == machine.recorded_model(committed):
        same |= {row.stage: f"{row.path} names this very model" for row in rows if row.path == machine.TRAINING}
    return same


def _excuse_only_with_other_arithmetic(rows: Sequence[Row], same: Mapping[str, str]) -> list[Row]:
    """Reject differences in stages whose arithmetic was the same."""
    return [
        replace(row, result="differs", detail=f"{row.detail}; but {same[row.stage]}, so nothing else may differ")
        if row.result in EXCUSED and row.stage in same
        else row
        for row in rows
    ]


def _judges(rules: Rules | None, path: str) -> bool:
    rule = _find(rules or {}, path)
    return isinstance(rule, Mapping) and any(isinstance(each, Tolerance) for each in rule.values())


def _find(rules: Mapping[str, Any], name: str) -> Any:
    return next((rule for pattern, rule in rules.items() if fnmatch.fnmatchcase(name, pattern)), None)


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _hashes(expected: Output, found: Output) -> str:
    sizes = f", {expected.size:,} bytes" if expected.size else ""
    return f"md5 {expected.md5}{sizes}, now {found.md5}, {found.size:,} bytes"


def worst(results: Iterable[Result]) -> Result:
    """Return the worst result: first a difference, then an output that could not be compared."""
    order: Sequence[Result] = (
        "differs",
        "could not be compared",
        "differs as expected",
        "within tolerance",
        "identical",
    )
    found = set(results)
    # Without any comparison nothing is proved.
    return next((result for result in order if result in found), "could not be compared")
