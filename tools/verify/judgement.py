"""What became of each output: identical, within tolerance, differs as expected, differs, could not be compared.

Exact, every output must have the recorded bytes. With tolerances, for another kind of machine,
tools/verify/tolerances.yaml says which figures may differ and by how much; an output that it does not name must
have the recorded bytes there too.
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
    """How far a figure may be from the recorded one."""

    absolute: float | None = Field(None, ge=0)
    relative: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.absolute is None) == (self.relative is None):
            raise ValueError("give absolute or relative, one of them")
        return self

    def allowed(self, old: float) -> float:
        """Return the largest difference from `old` that passes."""
        return self.absolute if self.absolute is not None else (self.relative or 0) * abs(old)


Rule = Literal["any"] | Tolerance
Whole = Literal["any", "arithmetic"]
Rules = Mapping[str, Whole | Mapping[str, Rule]]


@dataclass(frozen=True)
class Row:
    """One output: what became of it, and in words what differs."""

    stage: str
    path: str
    result: Result
    detail: str = ""


def load_rules(path: Path = TOLERANCES) -> Rules:
    """Return the tolerances; raises `StageError`, with file and key, for whatever they cannot be."""
    try:
        return TypeAdapter(dict[str, Whole | dict[str, Rule]]).validate_python(read(path))
    except ValidationError as error:
        # An error a member of the union that was tried: the longest place is that of what was meant.
        first = max(error.errors(), key=lambda found: len(found["loc"]))
        where = ".".join(str(part) for part in first["loc"][:2] if not str(part).startswith(("literal", "dict")))
        raise StageError(f"{path}: {where}: {first['msg']}; write any, or {{absolute: 0.02}}") from None


def judge(claim: Claim, lock: Lock, folder: Path, rules: Rules | None, stage: str | None = None) -> list[Row]:
    """Return a row an output of the rebuild `lock` in `folder` and of `claim`; `rules` is None for exact."""
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
        return str(error)  # the hashes tell that it differs, whether or not it can be told in what


def _contradicted(claim: Claim, path: str, committed: Path, new: Path) -> tuple[Result, str]:
    """The file in git is not the one that the lock beside it names, so that one of the two is no run's."""
    if path.endswith((".json", ".csv")):
        for change in changed_figures(path, committed, new):
            if _not_finite(change.old):
                return "could not be compared", f"in git, {change.name} is {change.old}, not a finite number"
    held = "it is what the rebuild made"
    if digest(committed) != digest(new):
        held = f"in git and in the rebuild: {describe(path, committed, new)}"
    return "differs", f"the file in git is not the one that {claim.name} names; {held}"


def _within(changes: Sequence[Change], rules: Mapping[str, Rule]) -> tuple[Result, str]:
    """Hold each figure that differs to its rule; the worst of them is the file's, and is told."""
    verdicts: dict[Result, list[str]] = {}
    for change in changes:
        result, words = _hold(change, _find(rules, change.name))
        verdicts.setdefault(result, []).append(words)
    # A file of which some figures are judged and hold is within tolerance, whatever of it is not judged.
    order: tuple[Result, ...] = ("differs", "could not be compared", "within tolerance", "differs as expected")
    if not verdicts:
        return "within tolerance", "the same figures in other bytes"
    result = next(result for result in order if result in verdicts)
    told = verdicts[result]
    # Where the figures that are judged are equal, they hold.
    if result == "differs as expected" and any(isinstance(rule, Tolerance) for rule in rules.values()):
        result = "within tolerance"
    return result, "; ".join(told[:3]) + (f"; and {len(told) - 3} more" if len(told) > 3 else "")


def _hold(change: Change, rule: Rule | None) -> tuple[Result, str]:
    words = in_words(change)
    if change.old is None or _not_finite(change.old):
        return "could not be compared", f"{words}: the recorded value is none to compare with"
    if rule == "any":
        return "differs as expected", words
    if not is_number(change.new) or not is_number(change.old) or _not_finite(change.new):
        return "differs", words
    if rule is None:
        return "differs", f"{words}, and must be equal"
    allowed = rule.allowed(change.old)
    # What is just allowed must not fail by the rounding of the difference.
    within = abs(change.new - change.old) <= allowed or math.isclose(abs(change.new - change.old), allowed)
    return "within tolerance" if within else "differs", f"{words}, {allowed:.3g} allowed"


def _excuse_only_beside_figures(rows: Sequence[Row], rules: Rules | None) -> list[Row]:
    """Bytes that may differ are excused only where figures of the same stage were judged, well or not."""
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
    """Figures that do not follow from the confusion that was recorded with them are of no run, however near."""
    if row.path not in (counts.EVALUATION, counts.METRICS) or row.result not in EXCUSED:
        return row
    try:
        found = counts.contradicted(committed)
    except StageError as error:
        return replace(row, result="could not be compared", detail=str(error))
    return replace(row, result="differs", detail="; ".join(found)) if found else row


def _same_arithmetic(rows: Sequence[Row], rules: Rules, committed: Path, folder: Path) -> dict[str, str]:
    """Return, of the stages that computed here as they did there, what shows it."""
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
    """What a stage computed as it did there has no reason to differ at all."""
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
    """Return the result that decides: a difference, whatever else; then what could not be compared."""
    order: Sequence[Result] = (
        "differs",
        "could not be compared",
        "differs as expected",
        "within tolerance",
        "identical",
    )
    found = set(results)
    # Nothing compared is nothing proved.
    return next((result for result in order if result in found), "could not be compared")
