"""Rebuilds a revision, compares it with its claim, and reports the result."""

import argparse
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.common.failure import StageError
from stages.common.figures import flat
from stages.common.outputs import require_space
from stages.common.params import read
from tools.demo import choose
from tools.tables import table
from tools.verify import machine
from tools.verify.claims import Claim, claim_of_demo, claim_of_lock, remarks
from tools.verify.judgement import Result, Row, judge, load_rules, worst
from tools.verify.lock import NAME, PARAMS, Lock, changed_inputs, read_lock
from tools.verify.machine import Environments, read_environments
from tools.verify.rebuild import clean, clone, find_commit, rebuild, say, set_aside, workplace

CODES: Mapping[Result, int] = {
    "identical": 0,
    "within tolerance": 0,
    "differs as expected": 0,
    "differs": 1,
    "could not be compared": 2,
}


BESIDES = 100_000_000  # bytes for code, logs and DVC's databases; on a full disk DVC waits forever


@dataclass(frozen=True)
class Report:
    """The report that `--json` prints, with a summarizing sentence."""

    commit: str
    against: str  # what the rebuild was compared with
    mode: str  # exact or tolerance
    why: str  # the reason for the mode
    result: Result  # the worst of all outputs
    sentence: str
    outputs: list[Row]
    reasons: list[str]  # likely reasons for the differences
    notes: list[str]


def verify(options: argparse.Namespace) -> Report:
    """Rebuild and compare; raises `StageError` when that is not possible."""
    rules = load_rules()
    commit = find_commit(options.revision)
    notes = (
        []
        if clean()
        else [f"the working directory has uncommitted changes, which {options.revision} does not include"]
    )
    with workplace(options.folder) as place:
        folder, kept = place / "rebuild", place / "committed"
        clone(commit, folder)
        values = flat(read(folder / PARAMS))
        say(f"{options.revision} is {commit[:10]}, rebuilt in {folder}")
        if options.dataset == "digits":
            old = None
            claim, params = claim_of_demo(folder, commit, place / "none")
        else:
            old = read_lock(folder / NAME, f" of {commit[:10]}")
            params = old.params()
            claim = claim_of_lock(old, folder, kept)
            notes += remarks(old, values, claim.environment, machine.of_other_models(folder))
            _refuse_another_dataset(options.dataset, params.get("dataset.name"))
        # The code of the revision does not know keys that its params.yaml does not have.
        choices = {key: value for key, value in params.items() if key in values}
        # Each output exists in the folder and in its DVC cache.
        size = BESIDES + 2 * sum(output.size for output in claim.outputs.values())
        require_space(place, size * (2 if options.twice else 1))
        made_before = [NAME, "environment", *claim.outputs]
        new = _rebuild(folder, kept, made_before, choices, options.stage)
        if options.twice:
            claim = Claim("the first rebuild", new.outputs(), folder, environment=read_environments(folder))
            folder = place / "second"
            clone(commit, folder)
            new = _rebuild(folder, place / "aside", made_before, choices, options.stage)
        elif old is not None:
            notes += (words for _, words in changed_inputs(old, new))
        here = read_environments(folder)
        exact, why = _mode(options, claim, here)
        rows = judge(claim, new, folder, None if exact else rules, options.stage)
    return summarize(commit, claim, rows, ("exact" if exact else "tolerance", why), here, notes)


def summarize(
    commit: str, claim: Claim, rows: Sequence[Row], mode: tuple[str, str], here: Environments, notes: Sequence[str]
) -> Report:
    """Return the report for the rows: the worst result, a sentence, and likely reasons for differences."""
    result = worst(row.result for row in rows)
    reasons: list[str] = []
    if result not in ("identical", "could not be compared"):
        reasons = [
            *machine.differences(claim.environment, here).values(),
            *(note for note in notes if NAME in note),
        ]
        unknown = "no environment is recorded" if not claim.environment else "none recorded"
        reasons = reasons or [f"{unknown}: code, params or data"]
    return Report(
        commit=commit,
        against=claim.name,
        mode=mode[0],
        why=mode[1],
        result=result,
        sentence=_sentence(rows, result) + _but(notes, result),
        outputs=list(rows),
        reasons=reasons,
        notes=list(notes),
    )


def paragraphs(report: Report, markdown: bool) -> Iterator[str]:
    """Yield the paragraphs of the report for people."""
    yield table(
        ("stage", "output", "result"), [(row.stage, row.path, row.result) for row in report.outputs], markdown
    )
    described = [row for row in report.outputs if row.detail]
    if described:
        yield _list("What differs:", [f"{row.path}: {row.detail}" for row in described], markdown)
    if report.reasons:
        yield _list("Likely reasons:", report.reasons, markdown)
    if notes := [note for note in report.notes if note not in report.reasons]:
        yield _list("Of note:", notes, markdown)
    mode = {"exact": "Exact", "tolerance": "With tolerances"}[report.mode]
    yield f"{report.commit[:10]}, compared with {report.against}. {mode}: {report.why}."
    yield f"**{report.sentence}**" if markdown else report.sentence


def _rebuild(
    folder: Path, aside: Path, made_before: Sequence[str], choices: Mapping[str, Any], stage: str | None
) -> Lock:
    """Run the clone in `folder` with `choices`, up to `stage`, after moving `made_before` to `aside`."""
    set_aside(made_before, folder, aside)
    choose(folder / PARAMS, choices)
    _bring_pictures(choices, folder)
    return rebuild(folder, stage)


def _bring_pictures(choices: Mapping[str, Any], folder: Path) -> None:
    """Copy your own pictures, which git does not have, from the working directory.

    Other pictures would not match dvc.lock. Pictures at an absolute path stay where they are.
    """
    if choices.get("dataset.name") == "folder":
        pictures = Path(choices["dataset.folder.path"])
        if pictures.is_dir() and not pictures.is_absolute():
            shutil.copytree(pictures, folder / pictures, dirs_exist_ok=True)
        elif pictures.is_file() and not pictures.is_absolute():
            shutil.copy(pictures, folder / pictures)


def _refuse_another_dataset(asked: str | None, found: Any) -> None:
    if asked not in (None, found):
        raise StageError(f"--dataset {asked}: {NAME} belongs to {found}; use that, or digits for the demo")


def _mode(options: argparse.Namespace, claim: Claim, here: Environments) -> tuple[bool, str]:
    """Return whether the comparison is exact, and why."""
    others = machine.other_kind(claim.environment, here)
    if options.exact:
        return True, "as asked"
    if options.tolerance:
        kind = "" if others or not claim.environment else ", though it was made on this kind of machine"
        return False, f"as asked{kind}"
    if options.twice:
        return True, "both rebuilds were made here"
    if options.dataset == "digits":
        promised = machine.portable_here(here)
        kind = "one" if promised else "not one"
        return promised, f"the demo's bytes are promised on Linux x86-64 with AVX2, and this machine is {kind}"
    if not claim.environment:
        return True, "no environment is recorded, so the machine counts as the same kind"
    if others:
        return False, f"recorded on another kind of machine ({'; '.join(others)})"
    return True, "recorded on this kind of machine"


def _sentence(rows: Sequence[Row], result: Result) -> str:
    counts = {name: sum(row.result == name for row in rows) for name in CODES}
    first = next((row.path for row in rows if row.result == result), "")
    total = f"{counts[result]} of {len(rows)} outputs"
    match result:
        case "identical":
            return f"Reproduced: all {len(rows)} outputs match byte for byte."
        case "differs":
            return f"Not reproduced: {total} differ (first: {first})."
        case "could not be compared":
            return f"Undecided: {total} could not be compared (first: {first or 'missing'})."
        case _:
            parts = [f"{count} {name}" for name, count in counts.items() if count]
            return f"Reproduced within tolerance, not byte for byte. Of {len(rows)} outputs: {', '.join(parts)}."


def _but(notes: Sequence[str], result: Result) -> str:
    """Return a caveat for a revision whose dvc.lock does not belong to its own params or code."""
    if CODES[result] == 0 and any(NAME in note for note in notes):
        return f" But {NAME} does not belong to this commit's params or code: see above."
    return ""


def _list(title: str, items: Sequence[str], markdown: bool) -> str:
    return "\n".join(
        [title, *([""] if markdown else []), *(f"{'-' if markdown else ' '} {item}" for item in items)]
    )
