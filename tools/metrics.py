"""Print the figures of the last run, one a line: `python -m tools.metrics [folder]`.

`dvc metrics show` has one column a metric, which is wider than a screen; to compare two runs there is
`dvc metrics diff`.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from stages import failure
from stages.failure import StageError


def main(arguments: Sequence[str]) -> None:
    """Print metrics/train.json and metrics/evaluation.json of the folder."""
    folder = Path(arguments[0]) if arguments else Path.cwd()
    for name in ("train", "evaluation"):
        path = folder / "metrics" / f"{name}.json"
        try:
            figures = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise StageError(f"{path}: no such file; run: make repro") from None
        print(f"\n{path}")
        for key, value in figures.items():
            text = f"{value:.4f}" if isinstance(value, float) else str(value)
            print(f"  {key:22} {text if len(text) <= 64 else text[:61] + '...'}")


if __name__ == "__main__":
    sys.exit(failure.run("metrics", main))
