"""Make one page of the last run that opens from a file, offline: `make report`, which writes report/index.html.

`python -m tools.report FOLDER` does it for the checkout in FOLDER, such as demo. The page's words and styles are
in tools/report.html; what fills it comes from tools/reporting/.
"""

import argparse
import string
import sys
from collections.abc import Sequence
from pathlib import Path

from stages import failure
from stages.outputs import replacing
from tools.reporting import drawn, experiments, headline, pictures, provenance, results
from tools.reporting.markup import text
from tools.reporting.results import Results

TEMPLATE = Path(__file__).with_name("report.html")


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


def render(run: Results) -> str:
    """Return the page."""
    return string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=text(run.statistics.dataset.name),
        lead=text(lead(run)),
        tiles=headline.tiles(run),
        beside=text(headline.beside(run)),
        intervals=headline.intervals(run),
        every=headline.every(run),
        experiments_link=experiments.link(run.experiments),
        experiments=experiments.section(run.experiments),
        curves=drawn.curves(run),
        notes=drawn.notes(run),
        confusion=drawn.confusion(run),
        per_class=drawn.per_class(run),
        reliability=drawn.reliability(run),
        mistakes=pictures.mistakes(run),
        hits=pictures.hits(run),
        filters=pictures.filters(run),
        grid=pictures.grid(run),
        splits=provenance.splits(run),
        changed=provenance.changed(run),
        params=provenance.params(run),
        machine=provenance.machine(run),
        hashes=provenance.hashes(run),
    )


def lead(run: Results) -> str:
    """Return a sentence or two on what ran."""
    splits, epochs = run.statistics.splits, len(run.history)
    return (
        f"{run.train['parameters']:,} parameters, trained for {epochs} {'epoch' if epochs == 1 else 'epochs'} on "
        f"{splits['train'].images:,} images, tested on {splits['test'].images:,}. "
        f"Data: {run.statistics.dataset.edition}."
    )


if __name__ == "__main__":
    sys.exit(failure.run("report", main))
