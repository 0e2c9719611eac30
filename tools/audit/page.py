"""A page of pictures that opens offline, in the colors of tools.report."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.common.outputs import replacing
from tools.report.markup import Markup, element, image, join
from tools.report.pictures import data_uri

STYLE = """
:root { color-scheme: light dark; }
body { margin: 0 auto; max-width: 76rem; padding: 2rem 1rem; font: 1rem/1.6 system-ui, sans-serif; }
table { border-collapse: collapse; } caption { text-align: left; font-weight: 600; }
th, td { padding: 0.2rem 1rem 0.2rem 0; text-align: left; } .number { text-align: right; }
.gallery { display: flex; flex-wrap: wrap; gap: 1rem; padding: 0; list-style: none; font-size: 0.8rem; }
.gallery li { display: flex; gap: 0.3rem; flex-wrap: wrap; max-width: 15rem; padding: 0.5rem;
  border: 1px solid #8885; border-radius: 0.5rem; }
figure { margin: 0; width: 7rem; } img { width: 6rem; image-rendering: pixelated; }
"""


def page(path: Path, title: str, body: Iterable[object]) -> None:
    """Write a page with a heading and the parts of its body."""
    head = join(
        [
            Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
            element("title", title),
            element("style", Markup(STYLE)),
        ]
    )
    content = join([element("h1", title), *body])
    with replacing(path) as partial:
        partial.write_text(
            f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{content}\n</body>\n</html>\n',
            encoding="utf-8",
        )


def picture(pixels: NDArray[np.uint8], caption: str) -> Markup:
    """Return a picture, uint8 (H, W, 1 or 3), with its caption."""
    return element("figure", join([image(data_uri(pixels), caption), element("figcaption", caption)]))
