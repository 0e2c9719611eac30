"""Check this checkout and name the command that fixes each problem: `make doctor`.

Run as `python -m tools.doctor` from the repository's root; `--offline` does not use the network, `--json` is for
programs. Prints a line for each finding: `ok`, `note`, or `wrong` with the command that fixes it. It changes
nothing, and nothing needs to exist yet. Exits with 0 when nothing is wrong, 1 otherwise.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from stages.common import failure
from stages.common.failure import StageError
from tools.doctor.checks import all_checks, examine
from tools.doctor.finding import Finding


def main(arguments: Sequence[str]) -> None:
    """Check, print, exit."""
    options = _parse(arguments)
    if not Path("dvc.yaml").exists():
        raise StageError(
            f"{Path.cwd()}: there is no dvc.yaml; run from the repository's root, or: git checkout dvc.yaml"
        )
    found: list[tuple[str, Finding]] = []
    for name, findings in examine(all_checks(options.offline)):
        found += [(name, finding) for finding in findings]
        if not options.json:
            print("\n".join(_line(name, finding) for finding in findings), flush=True)
    counts = Counter(finding.state for _, finding in found)
    if options.json:
        lines = [{"check": name, **asdict(finding)} for name, finding in found]
        print(json.dumps({"wrong": counts["wrong"], "findings": lines}, indent=2, ensure_ascii=False))
    else:
        print(f"\n{counts['wrong'] or 'nothing'} wrong, {counts['note']} to note, {counts['ok']} ok")
    sys.exit(1 if counts["wrong"] else 0)


def _line(name: str, finding: Finding) -> str:
    remedy = f"; run: {finding.remedy}" if finding.remedy else ""
    return f"{finding.state:5}  {name:11}  {finding.found}{remedy}"


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.doctor", description=__doc__.partition("\n")[0])
    parser.add_argument("--offline", action="store_true", help="do not contact mirrors and the remote")
    parser.add_argument("--json", action="store_true", help="print the findings for programs")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(failure.run("doctor", main))
