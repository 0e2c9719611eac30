"""The page of a run: the template report.html, filled in."""

import string
from pathlib import Path

from tools.report import augmented, drawn, experiments, headline, pictures, provenance, trust
from tools.report.markup import text
from tools.report.results import Results

TEMPLATE = Path(__file__).with_name("report.html")


def render(run: Results) -> str:
    """Return the page."""
    return string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=text(run.statistics.dataset.name),
        lead=text(lead(run)),
        tiles=headline.tiles(run),
        comparison=text(headline.comparison(run)),
        intervals=headline.intervals(run),
        every=headline.every(run),
        experiments_link=experiments.link(run.experiments),
        experiments=experiments.section(run.experiments),
        curves=drawn.curves(run),
        curves_note=text(drawn.curves_note(run)),
        notes=drawn.notes(run),
        confusion=drawn.confusion(run),
        per_class=drawn.per_class(run),
        reliability=drawn.reliability(run),
        trust=trust.section(run),
        mistakes=pictures.mistakes(run),
        hits=pictures.hits(run),
        filters=pictures.filters(run),
        augmented=augmented.grid(run),
        grid=pictures.grid(run),
        splits=provenance.splits(run),
        changed=provenance.changed(run),
        params=provenance.params(run),
        machine=provenance.machine(run),
        hashes=provenance.hashes(run),
    )


def lead(run: Results) -> str:
    """Return a summary of the run."""
    splits, epochs = run.statistics.splits, len(run.history)
    return (
        f"{run.train['parameters']:,} parameters, trained for {epochs} {'epoch' if epochs == 1 else 'epochs'} on "
        f"{splits['train'].images:,} images, tested on {splits['test'].images:,}. "
        f"Data: {run.statistics.dataset.edition}."
    )
