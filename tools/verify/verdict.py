"""Rebuild a revision, compare it with what it claims, and say what came of it."""

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


BESIDES = 100_000_000  # bytes for code, logs and DVC's databases; with none left for those, DVC waits forever


@dataclass(frozen=True)
class Report:
    """What `--json` prints, with the sentence that says it."""

    commit: str
    against: str  # what the rebuild was held to
    mode: str  # exact or tolerance
    why: str  # that mode
    result: Result  # the one that decides
    sentence: str
    outputs: list[Row]
    reasons: list[str]  # likely ones, of the first difference
    notes: list[str]


def verify(options: argparse.Namespace) -> Report:
    """Rebuild and compare; raises `StageError` when that could not be done."""
    rules = load_rules()
    commit = find_commit(options.revision)
    notes = (
        [] if clean() else [f"the working directory has changes that no commit has; {options.revision} has not"]
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
        # A key that the revision's params.yaml lacks is one that its code does not know.
        choices = {key: value for key, value in params.items() if key in values}
        # Each output stands in the folder and in its DVC cache.
        size = BESIDES + 2 * sum(output.size for output in claim.outputs.values())
        require_space(place, size * (2 if options.twice else 1))
        made_before = [NAME, "environment", *claim.outputs]
        new = _made_anew(folder, kept, made_before, choices, options.stage)
        if options.twice:
            claim = Claim("the first rebuild", new.outputs(), folder, environment=read_environments(folder))
            folder = place / "second"
            clone(commit, folder)
            new = _made_anew(folder, place / "aside", made_before, choices, options.stage)
        elif old is not None:
            notes += (words for _, words in changed_inputs(old, new))
        here = read_environments(folder)
        exact, why = _mode(options, claim, here)
        rows = judge(claim, new, folder, None if exact else rules, options.stage)
    return summarize(commit, claim, rows, ("exact" if exact else "tolerance", why), here, notes)


def summarize(
    commit: str, claim: Claim, rows: Sequence[Row], mode: tuple[str, str], here: Environments, notes: Sequence[str]
) -> Report:
    """Return the report of the rows: the deciding result, its sentence, and likely reasons of a difference."""
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
    """Yield what people read."""
    yield table(
        ("stage", "output", "result"), [(row.stage, row.path, row.result) for row in report.outputs], markdown
    )
    told = [row for row in report.outputs if row.detail]
    if told:
        yield _list("What differs:", [f"{row.path}: {row.detail}" for row in told], markdown)
    if report.reasons:
        yield _list("Likely reasons:", report.reasons, markdown)
    if notes := [note for note in report.notes if note not in report.reasons]:
        yield _list("Of note:", notes, markdown)
    mode = {"exact": "Exact", "tolerance": "With tolerances"}[report.mode]
    yield f"{report.commit[:10]}, held to {report.against}. {mode}: {report.why}."
    yield f"**{report.sentence}**" if markdown else report.sentence


def _made_anew(
    folder: Path, aside: Path, made_before: Sequence[str], choices: Mapping[str, Any], stage: str | None
) -> Lock:
    """Run the clone in `folder` with `choices`, up to `stage`; what it had of `made_before` goes to `aside`."""
    set_aside(made_before, folder, aside)
    choose(folder / PARAMS, choices)
    _bring_pictures(choices, folder)
    return rebuild(folder, stage)


def _bring_pictures(choices: Mapping[str, Any], folder: Path) -> None:
    """Copy a person's own pictures, which git has not, from the working directory; dvc.lock tells other ones.

    Those at an absolute path are found where they are.
    """
    if choices.get("dataset.name") == "folder":
        pictures = Path(choices["dataset.folder.path"])
        if pictures.is_dir() and not pictures.is_absolute():
            shutil.copytree(pictures, folder / pictures, dirs_exist_ok=True)
        elif pictures.is_file() and not pictures.is_absolute():
            shutil.copy(pictures, folder / pictures)


def _refuse_another_dataset(asked: str | None, found: Any) -> None:
    if asked not in (None, found):
        raise StageError(f"--dataset {asked}: {NAME} is of {found}; name that, or digits for the demo")


def _mode(options: argparse.Namespace, claim: Claim, here: Environments) -> tuple[bool, str]:
    """Tell whether bytes are held to be the same, and why."""
    others = machine.other_kind(claim.environment, here)
    if options.exact:
        return True, "as asked"
    if options.tolerance:
        kind = "" if others or not claim.environment else ", though it was made on this kind of machine"
        return False, f"as asked{kind}"
    if options.twice:
        return True, "both were made here"
    if options.dataset == "digits":
        promised = machine.portable_here(here)
        kind = "such a machine" if promised else "none"
        return promised, f"the demo's bytes are promised on Linux x86-64 with AVX2, and this is {kind}"
    if not claim.environment:
        return True, "no environment is recorded that would tell of another kind of machine"
    if others:
        return False, f"recorded on another kind of machine ({'; '.join(others)})"
    return True, "recorded on this kind of machine"


def _sentence(rows: Sequence[Row], result: Result) -> str:
    counts = {name: sum(row.result == name for row in rows) for name in CODES}
    first = next((row.path for row in rows if row.result == result), "")
    total = f"{counts[result]} of {len(rows)} outputs"
    match result:
        case "identical":
            return f"Reproduced: all {len(rows)} outputs have the recorded bytes."
        case "differs":
            return f"Not reproduced: {total} differ, the first is {first}."
        case "could not be compared":
            return f"Could not be decided: {total} could not be compared, the first is {first or 'missing'}."
        case _:
            parts = [f"{count} {name}" for name, count in counts.items() if count]
            return f"Reproduced within tolerance, not byte for byte: of {len(rows)} outputs {', '.join(parts)}."


def _but(notes: Sequence[str], result: Result) -> str:
    """Return what a pass does not say: a revision whose dvc.lock is of other params or code than its own."""
    if CODES[result] == 0 and any(NAME in note for note in notes):
        return f" But {NAME} is not that of this commit's own params or code: see above."
    return ""


def _list(title: str, items: Sequence[str], markdown: bool) -> str:
    return "\n".join(
        [title, *([""] if markdown else []), *(f"{'-' if markdown else ' '} {item}" for item in items)]
    )
