"""Write a report of the last run as a single offline page, report/index.html: `make report`.

`python -m tools.report FOLDER` does the same for the checkout in FOLDER, such as demo. The template is
tools/report/report.html.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from stages.common import failure
from stages.common.outputs import replacing
from tools.report import results
from tools.report.page import render


def main(arguments: Sequence[str]) -> None:
    """Read the run, write the page and print its path."""
    parser = argparse.ArgumentParser(prog="python -m tools.report", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path(), help="the checkout; . by default")
    folder = parser.parse_args(arguments).folder
    page = render(results.read(folder))
    path = folder / "report" / "index.html"
    with replacing(path) as partial:
        partial.write_text(page, encoding="utf-8")
    print(f"{path}: {len(page.encode()) / 1e6:.1f} MB; open {path.resolve().as_uri()}")


if __name__ == "__main__":
    sys.exit(failure.run("report", main))
