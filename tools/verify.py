"""Rebuild a revision from nothing and hold what comes out to what it claims: `python -m tools.verify [REVISION]`.

The revision (HEAD by default) is cloned into an empty folder, with an empty DVC cache and the params of its
dvc.lock, and all stages run. Each output is then compared with the hash in that dvc.lock and, where git has it,
with the file. `--dataset digits` rebuilds the demo instead, and holds it to tools/demo.json. `--twice` rebuilds
twice here and compares those. `--stale` rebuilds nothing: it tells whether the dvc.lock at hand is that of the
code and params at hand, without data; `-S` as in `dvc exp run -S`.

Exact, all bytes must be the recorded ones. With tolerances, for another kind of machine, figures are held to
tools/tolerances.yaml. Which of them by default, environment/ decides: recorded by the run, and by the rebuild.

Exits with 0 when it is reproduced (or up to date), with 1 when not (or stale), with 2 when that could not be
decided.
"""

import argparse
import json
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stages import failure
from stages.failure import StageError
from stages.outputs import require_space
from stages.params import read
from tools.demo import choose
from tools.metrics import flat
from tools.tables import table
from tools.verification import machine
from tools.verification.claims import Claim, claim_of_demo, claim_of_lock, remarks
from tools.verification.judgement import Result, Row, judge, load_rules, worst
from tools.verification.lock import NAME, PARAMS, Lock, changed_inputs, read_lock
from tools.verification.machine import Environments, read_environments
from tools.verification.rebuild import clean, clone, find_commit, rebuild, say, set_aside, workplace
from tools.verification.stale import stale

CODES: Mapping[Result, int] = {
    "identical": 0,
    "within tolerance": 0,
    "differs as expected": 0,
    "differs": 1,
    "could not be compared": 2,
}
UNDECIDED = 2
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


def main(arguments: Sequence[str]) -> None:
    """Parse, rebuild, compare, print; `SystemExit` with the code of what is not reproduced, or stale."""
    options = _parse(arguments)
    if options.stale:
        _tell_stale(options)
        return
    report = verify(options)
    if options.json:
        print(json.dumps(asdict(report), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print("\n\n".join(paragraphs(report, options.md)))
    if code := CODES[report.result]:
        raise SystemExit(code)


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


def _tell_stale(options: argparse.Namespace) -> None:
    findings = stale(Path.cwd(), {key: _parsed(value) for key, value in options.set}, options.stage)
    sentence = (
        f"{NAME} is {'stale: dvc repro, then commit it' if findings else 'up to date with code and params'}."
    )
    if options.json:
        stages = [{"stage": stage, "reason": reason} for stage, reason in findings]
        print(json.dumps({"stale": bool(findings), "findings": stages}, indent=2, ensure_ascii=False))
    else:
        if findings:
            print(table(("stage", "what changed"), findings, options.md), end="\n\n")
        print(f"**{sentence}**" if options.md else sentence)
    if findings:
        raise SystemExit(1)


def _parsed(value: str) -> Any:
    """Return a value as params.yaml would have it, where 1e-3 is a number."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "-S"
        path.write_text(f"value: {value}", encoding="utf-8")
        return read(path)["value"]


def _choice(text: str) -> tuple[str, str]:
    key, found, value = text.partition("=")
    if not found:
        raise argparse.ArgumentTypeError(f"{text}: write KEY=VALUE")
    return key, value


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.verify", description=__doc__.partition("\n")[0])
    parser.add_argument("revision", nargs="?", default="HEAD", help="commit, tag or branch; HEAD by default")
    parser.add_argument("--dataset", help="digits: the demo, held to tools/demo.json; by default that of dvc.lock")
    parser.add_argument("--stage", help="rebuild up to this stage, and compare its outputs only")
    parser.add_argument("--twice", action="store_true", help="rebuild twice here, and compare those")
    parser.add_argument("--folder", type=Path, help="rebuild in this empty folder, and keep it")
    parser.add_argument("--stale", action="store_true", help="no rebuild: is dvc.lock that of code and params?")
    parser.add_argument(
        "-S",
        dest="set",
        type=_choice,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a param, for --stale",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--exact", action="store_true", help="the same bytes, as on the same kind of machine")
    mode.add_argument("--tolerance", action="store_true", help="figures within tools/tolerances.yaml")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print everything, for programs")
    form.add_argument("--md", action="store_true", help="print Markdown, for a job's summary")
    options = parser.parse_args(arguments)
    if options.set and not options.stale:
        parser.error("-S goes with --stale; a rebuild takes the params of dvc.lock")
    if options.stale and (options.revision != "HEAD" or options.twice or options.dataset):
        parser.error("--stale is of the working directory; leave REVISION, --dataset and --twice out")
    return options


def run() -> int:
    """Return the process's exit code, in which 1 says that it differs, and nothing else."""
    try:
        code = failure.run("verify", main)
    except Exception:  # a defect: its traceback says where, and nothing was decided
        traceback.print_exc()
        return UNDECIDED
    # Every StageError is 1 to `failure.run`.
    return UNDECIDED if code == 1 else code


if __name__ == "__main__":
    # When CI gives up, too, the stages must end and the folder must go.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    sys.exit(run())
