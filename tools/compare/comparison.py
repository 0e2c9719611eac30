"""Compare the predictions of two runs: verdict, metrics side by side, images whose prediction changed."""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from stages.common.failure import StageError
from tools.compare.gate import Pair, Ruling
from tools.compare.paired import PredictedSplit, intervals, mcnemar
from tools.compare.runs import PREDICTIONS, Run
from tools.tables import Row, table

LEVEL = 0.05  # of significance
SHOWN = 10  # images in each table; --json has all


@dataclass(frozen=True)
class Comparison:
    """What `--json` prints."""

    a: str
    b: str
    images: int
    verdict: str  # better, worse or not significant
    sentence: str
    gained: int  # images that only B classifies correctly
    lost: int
    p_value: float
    metrics: dict[str, Pair]
    classes: list[dict[Hashable, Any]]
    flips: list[dict[Hashable, Any]]
    gate: list[Ruling]


def compare(a: Run, b: Run) -> Comparison:
    """Compare `b` with `a`; raises `StageError` if they were evaluated on different test images."""
    if a.dataset_sha256 != b.dataset_sha256 or a.classes != b.classes or not np.array_equal(a.labels, b.labels):
        what = (
            "dataset_sha256 differs" if a.dataset_sha256 != b.dataset_sha256 else f"labels in {PREDICTIONS} differ"
        )
        raise StageError(
            f"{a.name} and {b.name} were evaluated on different test images: {what}; set dataset and preprocess "
            "of one as in the other, then run: dvc repro"
        )
    before, after = (PredictedSplit(run.labels, run.probabilities, run.top_k) for run in (a, b))
    gained, lost = after.right & ~before.right, before.right & ~after.right
    p_value = mcnemar(int(gained.sum()), int(lost.sum()))
    verdict = "not significant" if p_value >= LEVEL else "better" if gained.sum() > lost.sum() else "worse"
    names = np.asarray(a.classes)
    masks = {
        "images": lost | True,
        "correct_a": before.right,
        "correct_b": after.right,
        "gained": gained,
        "lost": lost,
    }
    counts = {name: np.bincount(a.labels[mask], minlength=len(names)) for name, mask in masks.items()}
    flips = pd.DataFrame(
        {
            "image": np.arange(len(a.labels)),
            "label": names[a.labels],
            "a": names[before.predicted],
            "b": names[after.predicted],
            "flip": np.select([gained, lost], ["gained", "lost"], "wrong in both"),
        }
    )
    return Comparison(
        a=a.name,
        b=b.name,
        images=len(a.labels),
        verdict=verdict,
        sentence=_sentence(a, b, verdict, int(gained.sum()), int(lost.sum()), p_value),
        gained=int(gained.sum()),
        lost=int(lost.sum()),
        p_value=p_value,
        metrics=_pairs(a, b, intervals(before, after)),
        classes=pd.DataFrame({"class": names, **counts}).to_dict("records"),
        flips=flips[before.predicted != after.predicted].to_dict("records"),
        gate=[],
    )


def report(comparison: Comparison, markdown: bool) -> Iterator[str]:
    """Yield the report's paragraphs."""
    a, b = comparison.a, comparison.b
    yield f"**{comparison.sentence}**" if markdown else comparison.sentence
    rows = [(name, *_cells(pair)) for name, pair in comparison.metrics.items()]
    yield table(("metric", a, b, "difference", "95 % interval"), rows, markdown)
    rows = [tuple(map(str, row.values())) for row in comparison.classes]
    yield table(("class", "images", f"correct in {a}", f"in {b}", "gained", "lost"), rows, markdown)
    for flip in ("lost", "gained"):
        rows = [tuple(map(str, row.values()))[:-1] for row in comparison.flips if row["flip"] == flip]
        more = f" (first {SHOWN}; --json lists all)" if len(rows) > SHOWN else ""
        yield f"Images {flip}: {len(rows):,}{more}"
        if rows:
            yield table(("image", "label", a, b), rows[:SHOWN], markdown)
    if comparison.gate:
        rows = [(ruling.metric, ruling.limit, ruling.found, ruling.result) for ruling in comparison.gate]
        yield table(("gate", "limit", "found", "result"), rows, markdown)


def _sentence(a: Run, b: Run, verdict: str, gained: int, lost: int, p_value: float) -> str:
    images = f"{len(a.labels):,} image{'' if len(a.labels) == 1 else 's'}"
    if verdict == "not significant":
        words = f"No significant difference between {a.name} and {b.name} on {images}"
    else:
        words = f"{b.name} is {verdict} than {a.name} on {images}"
    return f"{words} ({gained:,} gained, {lost:,} lost, exact McNemar p = {p_value:.2g})."


def _pairs(a: Run, b: Run, found: dict[str, tuple[float, float]]) -> dict[str, Pair]:
    pairs = {}
    for name in a.metrics | b.metrics:
        old, new = a.metrics.get(name), b.metrics.get(name)
        if old is None or new is None:
            pairs[name] = Pair(old, new)
        else:
            pairs[name] = Pair(old, new, new - old, *found.get(name.removeprefix("evaluate."), ()))
    return pairs


def _cells(pair: Pair) -> Row:
    interval = "-" if pair.low is None else f"{pair.low:+.4f} to {pair.high:+.4f}"
    return _cell(pair.a), _cell(pair.b), _cell(pair.difference, "+"), interval


def _cell(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.4f}" if isinstance(value, float) else f"{value:{sign}}"
