"""Show DVC's own charts on a page that opens offline: `make plots`, which writes dvc_plots/index.html.

DVC's pages load their scripts from a host. This project's template, .dvc/plots/page.html, takes them from the
file that is written here, out of a locked package, beside the page. It stays: from then on `dvc plots show`,
`dvc plots diff` and their options work offline too. `python -m tools.plots FOLDER` is for the checkout in FOLDER.
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

SCRIPTS = Path("dvc_plots") / "vega.js"  # where the template looks: DVC writes the page into this folder


def main(arguments: Sequence[str]) -> None:
    """Write the scripts, then the page."""
    parser = argparse.ArgumentParser(prog="python -m tools.plots", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path(), help="the checkout; . by default")
    folder = parser.parse_args(arguments).folder
    page = (folder / SCRIPTS).with_name("index.html")
    page.unlink(missing_ok=True)  # one of an earlier run would hide that DVC wrote none, which it calls a success
    write_scripts(folder / SCRIPTS)
    run(["dvc", "plots", "show"], folder)
    if not page.exists():
        raise StageError("there is nothing to draw; run: make repro")


def write_scripts(path: Path) -> None:
    """Write Vega, Vega-Lite and Vega-Embed as one script that defines `vegaEmbed`."""
    with replacing(path) as partial:
        # In a scope of its own: the bundle's names would meet those of the page's other scripts.
        partial.write_text(
            f"(() => {{\n{vl_convert.javascript_bundle('window.vegaEmbed = vegaEmbed;')}\n}})();\n",
            encoding="utf-8",
        )


if __name__ == "__main__":
    sys.exit(failure.run("plots", main))
