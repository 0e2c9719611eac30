"""The figures of a stage: the few that people decide by as DVC metrics, and all of them as a table beside those.

DVC makes a column of every key of a metrics file, so metrics/NAME.json holds a handful of numbers.
metrics/NAME.csv holds every figure, and what the figures belong to: dataset, hashes, counts.
"""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.common.failure import StageError
from stages.common.outputs import replacing, require_finite, write_json

HEADER = ["name", "value"]
INTEGER, FLOAT = re.compile(r"-?\d{1,18}"), re.compile(r"-?(\d+\.\d+|\d+(\.\d+)?e[-+]\d+|inf)|nan")


def write_figures(path: Path, figures: Mapping[str, Any], metrics: Sequence[str]) -> None:
    """Write `figures` as the table `path`, NAME.csv, and those named in `metrics` as NAME.json beside it.

    A figure is a number or a text; None leaves it out. A section of figures is written under dotted names. Raises
    `StageError` when a number is not finite.
    """
    rows = {name: value for name, value in flat(figures).items() if value is not None}
    require_finite(path, rows)
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([HEADER, *rows.items()])
    write_json(path.with_suffix(".json"), {name: rows[name] for name in metrics if name in rows})


def parse_figures(content: bytes, source: str) -> dict[str, Any]:
    """Return the figures of a table that `write_figures` wrote, by dotted name.

    Raises `StageError`, which names `source`, when it is no such table.
    """
    try:
        header, *rows = csv.reader(io.StringIO(content.decode()))
        if header != HEADER or not rows or {len(row) for row in rows} != {2}:
            raise ValueError("expected the columns name and value")
    except (ValueError, csv.Error) as error:  # cut short, not UTF-8, or with git's conflict marks
        raise StageError(f"{source}: not a table of figures ({error}); run: dvc repro") from None
    return {name: _number(text) for name, text in rows}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested `values` as one level of dotted names, such as `views_2.accuracy`; lists count as values."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        section = isinstance(value, Mapping) and value
        found |= flat(value, f"{prefix}{name}.") if section else {f"{prefix}{name}": value}
    return found


def _number(text: str) -> int | float | str:
    if INTEGER.fullmatch(text):
        return int(text)
    return float(text) if FLOAT.fullmatch(text) else text
