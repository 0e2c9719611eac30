"""HTML elements for the report. All text is escaped, unless it is `Markup`."""

import html
from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal

import pandas as pd

SPACE = "\N{NO-BREAK SPACE}"  # between a number and its sign
CELLS: dict[str, dict[str, object]] = {"-": {}, "n": {"class_": "number"}, "c": {"class_": "code"}}


class Markup(str):
    """HTML, which is not escaped again."""


def percent(fraction: float) -> str:
    """Return a fraction as a percentage with one decimal; only exactly 0 and 1 become 0.0 % and 100.0 %."""
    if 0.9995 <= fraction < 1:
        return f">{SPACE}99.9{SPACE}%"
    if 0 < fraction < 0.0005:
        return f"<{SPACE}0.1{SPACE}%"
    # Decimal, because 0.7555 in binary is slightly less and would become 75.5.
    return f"{Decimal(str(fraction)).scaleb(2).quantize(Decimal('0.1'), ROUND_HALF_UP)}{SPACE}%"


def text(content: object) -> Markup:
    """Return `content` escaped, unless it is `Markup`."""
    return content if isinstance(content, Markup) else Markup(html.escape(str(content)))


def element(name: str, content: object = "", **attributes: object) -> Markup:
    """Return `<name attributes>content</name>`; `class_` is the attribute class."""
    return Markup(f"<{name}{_attributes(attributes)}>{text(content)}</{name}>")


def join(parts: Iterable[object]) -> Markup:
    """Return the parts, one per line."""
    return Markup("\n".join(map(text, parts)))


def image(source: str, alternative: str) -> Markup:
    """Return a picture with its text alternative; `source` is a data URI."""
    return Markup(f"<img{_attributes({'src': source, 'alt': alternative})}>")


def table(caption: str, headers: Sequence[str], rows: Iterable[Sequence[object]], kinds: str = "") -> Markup:
    """Return a table that scrolls sideways when it is too wide.

    kinds: a letter for each column: n for numbers (right-aligned), c for code, - for text.
    """
    looks = [CELLS[kind] for kind in kinds.ljust(len(headers), "-")]
    head = join(element("th", name, scope="col", **look) for name, look in zip(headers, looks, strict=True))
    lines = []
    for row in rows:
        cells = [element("td", cell, **look) for cell, look in zip(row[1:], looks[1:], strict=True)]
        lines.append(join([element("th", row[0], scope="row", **looks[0]), *cells]))
    body = join(element("tr", line) for line in lines)
    parts = [element("caption", caption), element("thead", element("tr", head)), element("tbody", body)]
    # Focusable, so that it can be scrolled with the keyboard.
    focus = {"tabindex": 0, "role": "region", "aria_label": caption}
    return element("div", element("table", join(parts)), class_="scroll", **focus)


def frame_table(caption: str, frame: pd.DataFrame, formats: Mapping[str, str]) -> Markup:
    """Return a table of the columns in `formats`, formatted accordingly."""
    kinds = "".join("n" if pd.api.types.is_numeric_dtype(frame[name]) else "-" for name in formats)
    columns = [[format(value, formats[name]) for value in frame[name]] for name in formats]
    rows = list(zip(*columns, strict=True))
    return table(caption, [name.replace("_", " ") for name in formats], rows, kinds)


def figure(name: str, title: str, summary: str, drawing: str, numbers: Markup) -> Markup:
    """Return a chart with its title, a summary, and its numbers in a collapsed table."""
    parts = [
        element("figcaption", join([element("h3", title), element("p", summary)])),
        element("div", Markup(drawing), class_="chart"),
        collapsed(numbers),
    ]
    return element("figure", join(parts), id=name, class_="card")


def collapsed(numbers: Markup) -> Markup:
    """Return a table that is collapsed at first."""
    return element("details", join([element("summary", "The numbers"), numbers]))


def _attributes(attributes: Mapping[str, object]) -> str:
    return "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"' for name, value in attributes.items()
    )
