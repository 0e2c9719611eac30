"""The tables and the plot of tools.robustness."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import pandas as pd

from stages.common.outputs import replacing, write_table
from tools.robustness.corruptions import CORRUPTIONS, SEVERITIES
from tools.tables import table

Accuracy = Mapping[str, Sequence[float]]
Areas = Mapping[str, tuple[int, float, float]]  # images, AUROC of the maximum probability, and of the energy


def mean_corruption_error(accuracy: Accuracy) -> float:
    """Return the mean error rate over all corruptions and severities, not relative to another network's."""
    return 1 - fmean(fmean(accuracy[name]) for name in CORRUPTIONS)


def write(out: Path, accuracy: Accuracy, areas: Areas) -> None:
    """Write robustness.csv, others.csv and robustness.svg to the folder `out`."""
    import vl_convert

    rows = [
        {"corruption": name, "severity": severity, "accuracy": accuracy[name][severity - 1]}
        for name in CORRUPTIONS
        for severity in SEVERITIES
    ]
    clean = {"corruption": "none", "severity": 0, "accuracy": accuracy["none"][0]}
    write_table(out / "robustness.csv", pd.DataFrame([clean, *rows]))
    columns = ["images", "auroc_probability", "auroc_energy"]
    others = pd.DataFrame([dict(zip(["pictures", *columns], [name, *areas[name]], strict=True)) for name in areas])
    write_table(out / "others.csv", others)
    starts = [{**clean, "corruption": name} for name in CORRUPTIONS]
    plot = {
        "data": {"values": [*starts, *rows]},
        "mark": {"type": "line", "point": True},
        "width": 150,
        "height": 110,
        "resolve": {"axis": {"x": "independent"}},  # below each part: the last row is not full
        "encoding": {
            "facet": {"field": "corruption", "columns": 4, "title": None, "sort": list(CORRUPTIONS)},
            "x": {"field": "severity", "type": "quantitative", "axis": {"tickCount": 5}},
            "y": {"field": "accuracy", "type": "quantitative", "scale": {"domain": [0, 1]}},
        },
    }
    with replacing(out / "robustness.svg") as partial:
        partial.write_text(vl_convert.vegalite_to_svg(plot), encoding="utf-8")


def text(accuracy: Accuracy, areas: Areas) -> str:
    """Return both tables as text."""
    cells = [(name, *(f"{value:.4f}" for value in accuracy[name])) for name in CORRUPTIONS]
    corrupted = table(("corruption", *map(str, SEVERITIES)), cells, markdown=False)
    of_others = [
        (name, f"{images:,}", f"{probability:.4f}", f"{energy:.4f}")
        for name, (images, probability, energy) in areas.items()
    ]
    header = ("other pictures", "images", "AUROC of max. probability", "of energy")
    return (
        f"Accuracy by severity\n{corrupted}\n\n"
        f"Accuracy without corruption: {accuracy['none'][0]:.4f}\n"
        f"Mean corruption error: {mean_corruption_error(accuracy):.4f}\n\n"
        f"{table(header, of_others, markdown=False)}"
    )
