"""Compare two runs image by image: `python -m tools.compare [A] [B] [--json | --md] [--gate FILE]`.

A and B are git revisions, DVC experiments or `workspace`; by default the last commit and the workspace.
Prints the metrics side by side with bootstrap intervals of their differences, an exact McNemar test on the
predictions, and the images whose prediction changed. The verdict is the test's, at the 5 % level. Metrics that the
predictions alone do not determine (those of training, ROC AUC, calibration) have no interval.

Exit codes: 0 when the runs were compared and every limit of the gate holds (tools/compare/gate.py), 1 when a limit
is violated, 2 when the runs cannot be compared.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from stages.common import failure
from tools.compare import gate
from tools.compare.comparison import compare, report
from tools.compare.runs import WORKSPACE, read_run


def main(arguments: Sequence[str]) -> None:
    """Parse, read, compare, check the limits, print; exits with the gate's code unless it passes."""
    options = _parse(arguments)
    comparison = compare(read_run(options.a), read_run(options.b))
    if options.gate:
        limits = gate.load_limits(options.gate, comparison.metrics)
        comparison = replace(comparison, gate=gate.check(limits, comparison.metrics))
    if options.json:
        print(json.dumps(asdict(comparison), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print("\n\n".join(report(comparison, options.md)))
    if code := gate.exit_code(comparison.gate):
        raise SystemExit(code)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.compare", description=__doc__.partition("\n")[0])
    parser.add_argument("a", nargs="?", default="HEAD", help="revision, experiment or workspace (default: HEAD)")
    parser.add_argument(
        "b", nargs="?", default=WORKSPACE, help="revision, experiment or workspace (default: workspace)"
    )
    parser.add_argument("--gate", type=Path, help="YAML file of limits; see tools/compare/gate.py")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print everything as JSON")
    form.add_argument("--md", action="store_true", help="print Markdown, for a pull request")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    code = failure.run("compare", main)
    # `failure.run` returns 1 for every StageError; here 1 means that a limit is violated.
    sys.exit(gate.UNDECIDED if code == 1 else code)
