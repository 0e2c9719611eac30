"""Draw DVC's plots of the last run as SVG files for the README: `make figures`."""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import vl_convert

from stages.common import failure
from stages.common.failure import StageError
from stages.common.outputs import replacing

CHARTS = {"Accuracy": "accuracy.svg", "Loss": "loss.svg", "metrics/confusion.csv": "confusion.svg"}


def main(arguments: Sequence[str]) -> None:
    """Write each chart to the given folder, docs/ by default."""
    parser = argparse.ArgumentParser(prog="python -m tools.figures", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("docs"))
    folder = parser.parse_args(arguments).folder
    shown = subprocess.run(["dvc", "plots", "show", "--json"], check=False, capture_output=True, text=True)
    if shown.returncode:
        raise StageError(f"'dvc plots show' failed: {shown.stderr}")
    charts = json.loads(shown.stdout)["data"]
    for name, file in CHARTS.items():
        if not charts.get(name):
            raise StageError(
                f"there is nothing to draw for {name}; run: make repro, with preprocess.validation_fraction "
                "above 0"
            )
        chart = {**charts[name][0]["content"], "background": "white"}
        with replacing(folder / file) as partial:
            partial.write_text(vl_convert.vegalite_to_svg(chart), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(failure.run("figures", main))
