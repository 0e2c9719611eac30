"""Print the figures of the last run, one a line: `python -m tools.metrics [folder]`.

`dvc metrics show` has one column a metric, which is wider than a screen; to compare two runs there is
`dvc metrics diff`.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.common import failure
from stages.common.failure import StageError


def main(arguments: Sequence[str]) -> None:
    """Print metrics/train.json and metrics/evaluation.json of the folder."""
    parser = argparse.ArgumentParser(prog="python -m tools.metrics", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path(), help="the checkout; . by default")
    folder = parser.parse_args(arguments).folder
    for name in ("train", "evaluation"):
        path = folder / "metrics" / f"{name}.json"
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise StageError(f"{path}: no such file; run: make repro") from None
        print(f"\n{path}")
        for key, value in flat(parse(content, str(path))).items():
            text = f"{value:.4f}" if isinstance(value, float) else str(value)
            print(f"  {key:22} {text if len(text) <= 64 else text[:61] + '...'}")


def parse(content: bytes, where: str) -> dict[str, Any]:
    """Return the metrics of a JSON file by name; raises `StageError`, which says `where`, if it holds no such."""
    try:
        metrics: Any = json.loads(content)
    except ValueError as error:  # cut short, or with git's conflict marks in it
        raise StageError(f"{where}: not what a stage writes ({error}); run: dvc repro") from None
    if not isinstance(metrics, dict):
        raise StageError(f"{where}: not what a stage writes (no metrics by name); run: dvc repro")
    return metrics


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values that are no sections under dotted names, as `flip.accuracy`; lists are values."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        section = isinstance(value, Mapping) and value
        found |= flat(value, f"{prefix}{name}.") if section else {f"{prefix}{name}": value}
    return found


if __name__ == "__main__":
    sys.exit(failure.run("metrics", main))
