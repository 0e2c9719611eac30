"""Pieces of HTML for the report. Every text that comes in is escaped; what is HTML already is a `Markup`."""

import html
from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal

import pandas as pd

SPACE = "\N{NO-BREAK SPACE}"  # between a number and its sign
CELLS: dict[str, dict[str, object]] = {"-": {}, "n": {"class_": "number"}, "c": {"class_": "code"}}


class Markup(str):
    """HTML that is put on the page as it is."""


def percent(share: float) -> str:
    """Return a share as a percentage with one decimal that claims neither 0 nor 100 where it is not."""
    if 0.9995 <= share < 1:
        return f">{SPACE}99.9{SPACE}%"
    if 0 < share < 0.0005:
        return f"<{SPACE}0.1{SPACE}%"
    # As a decimal, since 0.7555 in binary is a little less and would come out as 75.5.
    return f"{Decimal(str(share)).scaleb(2).quantize(Decimal('0.1'), ROUND_HALF_UP)}{SPACE}%"


def text(content: object) -> Markup:
    """Return what is shown for `content`: itself where it is HTML, otherwise escaped."""
    return content if isinstance(content, Markup) else Markup(html.escape(str(content)))


def element(name: str, content: object = "", **attributes: object) -> Markup:
    """Return `<name attributes>content</name>`; `class_` is the attribute class."""
    return Markup(f"<{name}{_attributes(attributes)}>{text(content)}</{name}>")


def join(parts: Iterable[object]) -> Markup:
    """Return the parts one after the other, a line each."""
    return Markup("\n".join(map(text, parts)))


def image(source: str, alternative: str) -> Markup:
    """Return a picture with its text alternative; `source` is a data URI."""
    return Markup(f"<img{_attributes({'src': source, 'alt': alternative})}>")


def table(caption: str, headers: Sequence[str], rows: Iterable[Sequence[object]], kinds: str = "") -> Markup:
    """Return a table that scrolls in a frame of its own where it is too wide.

    kinds: of each column n for numbers, aligned to the right, c for code, or - for words.
    """
    looks = [CELLS[kind] for kind in kinds.ljust(len(headers), "-")]
    head = join(element("th", name, scope="col", **look) for name, look in zip(headers, looks, strict=True))
    lines = []
    for row in rows:
        cells = [element("td", cell, **look) for cell, look in zip(row[1:], looks[1:], strict=True)]
        lines.append(join([element("th", row[0], scope="row", **looks[0]), *cells]))
    body = join(element("tr", line) for line in lines)
    parts = [element("caption", caption), element("thead", element("tr", head)), element("tbody", body)]
    # The frame takes the keyboard's focus, or those without a mouse could not scroll it.
    focus = {"tabindex": 0, "role": "region", "aria_label": caption}
    return element("div", element("table", join(parts)), class_="scroll", **focus)


def frame_table(caption: str, frame: pd.DataFrame, formats: Mapping[str, str]) -> Markup:
    """Return a table of the columns named in `formats`, each written by its format."""
    kinds = "".join("n" if pd.api.types.is_numeric_dtype(frame[name]) else "-" for name in formats)
    columns = [[format(value, formats[name]) for value in frame[name]] for name in formats]
    rows = list(zip(*columns, strict=True))
    return table(caption, [name.replace("_", " ") for name in formats], rows, kinds)


def figure(name: str, title: str, summary: str, drawing: str, numbers: Markup) -> Markup:
    """Return a chart with its title, a sentence on what it shows, and its numbers in a table that opens."""
    parts = [
        element("figcaption", join([element("h3", title), element("p", summary)])),
        element("div", Markup(drawing), class_="chart"),
        unfolding(numbers),
    ]
    return element("figure", join(parts), id=name, class_="card")


def unfolding(numbers: Markup) -> Markup:
    """Return a table that shows when asked for."""
    return element("details", join([element("summary", "The numbers"), numbers]))


def _attributes(attributes: Mapping[str, object]) -> str:
    return "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"' for name, value in attributes.items()
    )
