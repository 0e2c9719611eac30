"""Show DVC's plots on a page that opens offline, dvc_plots/index.html: `make plots`.

DVC's own template loads its scripts from a CDN. This project's template, .dvc/plots/page.html, loads them from
dvc_plots/vega.js, which this command writes from a locked package. Then `dvc plots show` and `dvc plots diff` work
offline too. `python -m tools.plots FOLDER` does the same for the checkout in FOLDER.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import vl_convert

from stages.common import failure
from stages.common.failure import StageError
from stages.common.outputs import replacing
from tools.demo import run

SCRIPTS = Path("dvc_plots") / "vega.js"  # the path in the template, next to DVC's page


def main(arguments: Sequence[str]) -> None:
    """Write the scripts, then the page."""
    parser = argparse.ArgumentParser(prog="python -m tools.plots", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path(), help="the checkout; . by default")
    folder = parser.parse_args(arguments).folder
    page = (folder / SCRIPTS).with_name("index.html")
    page.unlink(missing_ok=True)  # DVC exits with 0 even if it writes no page
    write_scripts(folder / SCRIPTS)
    run(["dvc", "plots", "show"], folder)
    if not page.exists():
        raise StageError("there is nothing to draw; run: make repro")


def write_scripts(path: Path) -> None:
    """Write Vega, Vega-Lite and Vega-Embed as one script that defines `vegaEmbed`."""
    with replacing(path) as partial:
        # In a function, so that the bundle's names do not clash with the page's other scripts.
        partial.write_text(
            f"(() => {{\n{vl_convert.javascript_bundle('window.vegaEmbed = vegaEmbed;')}\n}})();\n",
            encoding="utf-8",
        )


if __name__ == "__main__":
    sys.exit(failure.run("plots", main))
