"""Audit the data of the last run: `python -m tools.audit`.

    python -m tools.audit leaks              pictures that occur twice, in one split or in two (the default)
    python -m tools.audit labels             probably wrong labels of validation and test images
    python -m tools.audit labels --folds 5   of all images: trains five models, each without a fifth of them

Writes a page of pictures and a table to audit/, or prints JSON with --json as well. `leaks` needs data/raw only,
`labels` also the trained model. docs/trust.md explains the results.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from stages.common import failure
from stages.common.failure import StageError
from tools.audit import labels, leaks
from tools.audit.data import Data


def main(arguments: Sequence[str]) -> None:
    """Parse, audit, print."""
    options = _parse(arguments)
    data = Data.read(options.folder)
    out = options.folder / "audit"
    if options.what == "leaks":
        lines, pairs = leaks.audit(data, out)
        result = json.dumps({"pairs": pairs})
    else:
        lines, rows = labels.audit(data, out, options.folds)
        result = json.dumps({"labels": rows})
    if options.json:
        print(result)
    print(*lines, f"Pages and tables: {out}/", sep="\n", file=sys.stderr if options.json else sys.stdout)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.audit", description=__doc__.partition("\n")[0])
    parser.add_argument("what", nargs="?", choices=["leaks", "labels"], default="leaks")
    parser.add_argument(
        "--folds", type=int, default=0, metavar="K", help="labels: audit the training images as well"
    )
    parser.add_argument("--json", action="store_true", help="print the pairs or labels as JSON")
    parser.add_argument("--folder", type=Path, default=Path(), help="the checkout, such as demo; . by default")
    options = parser.parse_args(arguments)
    if options.folds and not (options.what == "labels" and 2 <= options.folds <= 20):
        raise StageError(f"--folds {options.folds}: it should be 2 to 20, with labels")
    return options


if __name__ == "__main__":
    sys.exit(failure.run("audit", main))
