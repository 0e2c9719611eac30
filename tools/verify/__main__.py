"""Rebuild a revision from nothing and hold what comes out to what it claims: `python -m tools.verify [REVISION]`.

The revision (HEAD by default) is cloned into an empty folder, with an empty DVC cache and the params of its
dvc.lock, and all stages run. Each output is then compared with the hash in that dvc.lock and, where git has it,
with the file. `--dataset digits` rebuilds the demo instead, and holds it to tools/demo.json. `--twice` rebuilds
twice here and compares those. `--stale` rebuilds nothing: it tells whether the dvc.lock at hand is that of the
code and params at hand, without data; `-S` as in `dvc exp run -S`.

Exact, all bytes must be the recorded ones. With tolerances, for another kind of machine, figures are held to
tools/verify/tolerances.yaml. Which of them by default, environment/ decides: recorded by the run, and by the
rebuild.

Exits with 0 when it is reproduced (or up to date), with 1 when not (or stale), with 2 when that could not be
decided.
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
    mode.add_argument("--tolerance", action="store_true", help="figures within tools/verify/tolerances.yaml")
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
