"""The page of --sheet, which opens offline: each picture as given, as the network sees it, and its classes."""

import base64
import io
import string
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stages.common.confidence import Confidence
from stages.common.outputs import replacing
from stages.common.pictures import Decoding, decode
from tools.predict.printing import Printer
from tools.predict.sources import open_picture

MOST = 1_000  # pictures on a page: browsers become slow with more
LARGEST = 192  # pixels of the longer side of a thumbnail
TEMPLATE = Path(__file__).with_suffix(".html")
EXIF_ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)


class Sheet(Printer):
    """A page that is written picture by picture, so memory does not grow with their number."""

    def __init__(
        self, file: IO[str], classes: Sequence[str], top: int, confidence: Confidence, rules: Decoding
    ) -> None:
        """Write the page's head to `file`; `rules` are those the pictures are decoded by for the network."""
        super().__init__(classes, top, confidence)
        self._file, self._rules = file, rules
        self._count = 0
        style = TEMPLATE.with_suffix(".css").read_text(encoding="utf-8")
        digest = base64.b64encode(sha256(style.encode()).digest()).decode()
        template = string.Template(TEMPLATE.read_text(encoding="utf-8"))
        file.write(template.substitute(style=style, style_hash=f"sha256-{digest}"))

    def picture(self, path: str, image: NDArray[np.uint8], row: NDArray[np.float32]) -> None:
        """Add a picture."""
        if self._is_full():
            return
        given = _data_uri(_thumbnail(path, self._rules), "JPEG")
        lines = []
        for index in np.argsort(-row, kind="stable")[: self._top]:
            rectangle = f'<rect width="{row[index]:.4f}" height="1"/>'
            bar = f'<svg viewBox="0 0 1 1" preserveAspectRatio="none" aria-hidden="true">{rectangle}</svg>'
            percent = f"{100 * row[index]:.1f} %"
            lines.append(f"<dt>{escape(self.classes[index])}</dt><dd>{bar}</dd><dd>{percent}</dd>")
        uncertain = "" if self.certain(row) else '<p class="problem">uncertain</p>'
        self._file.write(
            f'<li><div class="views"><img src="{given}" alt="as given">'
            f'<img class="seen" src="{_data_uri(image, "PNG")}" alt="as the network sees it"></div>'
            f"<dl>{''.join(lines)}</dl>{uncertain}<p>{escape(path)}</p></li>\n"
        )

    def unreadable(self, path: str, problem: str) -> None:
        """Add a picture that cannot be read, with the reason."""
        if not self._is_full():
            self._file.write(f'<li><p>{escape(path)}</p><p class="problem">{escape(problem)}</p></li>\n')

    def close(self) -> None:
        """Write the page's end."""
        more = f"<p>The first {MOST:,} of {self._count:,} pictures.</p>\n" if self._count > MOST else ""
        self._file.write(f"</ul>\n{more}</body>\n</html>\n")

    def _is_full(self) -> bool:
        self._count += 1
        return self._count > MOST


@contextmanager
def open_sheet(
    path: Path, classes: Sequence[str], top: int, confidence: Confidence, rules: Decoding
) -> Iterator[Sheet]:
    """Yield a page to add pictures to; it is at `path` when the block ends without an error."""
    # A path that is not text, which Linux allows, is shown with backslashes.
    with replacing(path) as partial, partial.open("w", encoding="utf-8", errors="backslashreplace") as file:
        sheet = Sheet(file, classes, top, confidence, rules)
        yield sheet
        sheet.close()


def _thumbnail(path: str, rules: Decoding) -> NDArray[np.uint8]:
    """Return the picture in color and with its aspect ratio, decoded as for the network otherwise."""
    with open_picture(path) as file:
        with warnings.catch_warnings(action="ignore"), Image.open(file) as image:  # as decode does
            width, height = image.size
            if image.getexif().get(EXIF_ORIENTATION) in SIDEWAYS:
                width, height = height, width
        file.seek(0)
        scale = min(1, LARGEST / max(width, height))
        size = {"width": max(1, round(width * scale)), "height": max(1, round(height * scale))}
        return decode(file, rules.model_copy(update={**size, "channels": 3, "resize": "stretch"}))


def _data_uri(pixels: NDArray[np.uint8], form: str) -> str:
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    content = io.BytesIO()
    picture.save(content, form)
    return f"data:image/{form.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"
