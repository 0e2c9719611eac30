"""Compare two runs image by image: `python -m tools.compare [A] [B] [--json | --md] [--gate FILE]`.

A and B are git revisions, DVC experiments or `workspace`; by default the last commit and the workspace.
Shown are the metrics side by side, with a bootstrap interval of each difference (none for what train wrote,
roc_auc_macro, calibration_error, official_accuracy and flip's figures), an exact McNemar test on the predictions,
and the classes and images that flipped. The verdict is the test's, at 5 %.

Exits with 0 when the runs could be compared and the gate's limits hold (tools/compare/gate.py), with 1 when
a limit is broken, and with 2 when that could not be decided.
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
    """Parse, read, compare, judge, print; `SystemExit` with the gate's code unless it passes."""
    options = _parse(arguments)
    comparison = compare(read_run(options.a), read_run(options.b))
    if options.gate:
        limits = gate.load_limits(options.gate, comparison.metrics)
        comparison = replace(comparison, gate=gate.judge(limits, comparison.metrics))
    if options.json:
        print(json.dumps(asdict(comparison), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print("\n\n".join(report(comparison, options.md)))
    if code := gate.exit_code(comparison.gate):
        raise SystemExit(code)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.compare", description=__doc__.partition("\n")[0])
    parser.add_argument("a", nargs="?", default="HEAD", help="revision, experiment or workspace; HEAD by default")
    parser.add_argument("b", nargs="?", default=WORKSPACE, help="the same; workspace by default")
    parser.add_argument("--gate", type=Path, help="YAML file of limits; tools/compare/gate.py describes it")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print everything, for programs")
    form.add_argument("--md", action="store_true", help="print Markdown, for a pull request")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    code = failure.run("compare", main)
    # Every StageError is 1 to `failure.run`; here it says that nothing could be decided, and 1 that a limit broke.
    sys.exit(gate.UNDECIDED if code == 1 else code)
