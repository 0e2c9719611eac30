"""Rebuild a revision from scratch and compare it with its claim: `python -m tools.verify [REVISION]`.

The revision (HEAD by default) is cloned into an empty folder, with an empty DVC cache and the params of its
dvc.lock, and all stages run. Each output is then compared with the hash in that dvc.lock and, where git has it,
with the file. `--dataset digits` rebuilds the demo instead, and compares it with tools/demo.json. `--twice`
rebuilds twice and compares the two. `--stale` rebuilds nothing and needs no data: it reports whether dvc.lock
belongs to the current code and params; `-S` works as in `dvc exp run -S`.

In exact mode all bytes must match. In tolerance mode, for another kind of machine, figures must be within
tools/verify/tolerances.yaml. By default the mode follows from environment/, the records of the two machines.

Exits with 0 if the result is reproduced (or up to date), 1 if not (or stale), 2 if that could not be decided.
"""

import argparse
import json
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stages.common import failure
from stages.common.params import read
from tools.tables import table
from tools.verify.lock import NAME
from tools.verify.stale import stale
from tools.verify.verdict import CODES, paragraphs, verify

UNDECIDED = 2


def main(arguments: Sequence[str]) -> None:
    """Parse, rebuild, compare, print; `SystemExit` with a code other than 0 unless reproduced."""
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
    """Return a value as in params.yaml, where 1e-3 is a number."""
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
    parser.add_argument("--dataset", help="digits: the demo, compared with tools/demo.json")
    parser.add_argument("--stage", help="rebuild up to this stage, and compare only its outputs")
    parser.add_argument("--twice", action="store_true", help="rebuild twice and compare the two")
    parser.add_argument("--folder", type=Path, help="rebuild in this empty folder, and keep it")
    parser.add_argument(
        "--stale", action="store_true", help="no rebuild: does dvc.lock belong to the current code and params?"
    )
    parser.add_argument(
        "-S",
        dest="set",
        type=_choice,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a param for --stale",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--exact", action="store_true", help="compare bytes, as on the same kind of machine")
    mode.add_argument("--tolerance", action="store_true", help="figures within tools/verify/tolerances.yaml")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print everything, for programs")
    form.add_argument("--md", action="store_true", help="print Markdown, for a job's summary")
    options = parser.parse_args(arguments)
    if options.set and not options.stale:
        parser.error("-S needs --stale; a rebuild uses the params of dvc.lock")
    if options.stale and (options.revision != "HEAD" or options.twice or options.dataset):
        parser.error("--stale checks the working directory: it excludes REVISION, --dataset and --twice")
    return options


def run() -> int:
    """Return the exit code: 1 only for a difference."""
    try:
        code = failure.run("verify", main)
    except Exception:  # a bug: nothing was decided
        traceback.print_exc()
        return UNDECIDED
    # `failure.run` returns 1 for every StageError.
    return UNDECIDED if code == 1 else code


if __name__ == "__main__":
    # So that the stages end and the folder is removed when CI cancels the job.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    sys.exit(run())
