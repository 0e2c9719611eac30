"""Make one page of the last run that opens from a file, offline: `make report`, which writes report/index.html.

`python -m tools.report FOLDER` does it for the checkout in FOLDER, such as demo. The page's words and styles are
in tools/report/report.html; what fills it comes from tools/report/.
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
    """Read the run, write the page, say where it is."""
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
