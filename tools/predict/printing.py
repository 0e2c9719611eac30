"""Prints predictions as they are made: lines for people, CSV, or JSON."""

import csv
import json
import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stages.common.confidence import Confidence


class Printer:
    """The lines for people: the `top` most probable classes, the probability of each, and the path."""

    def __init__(self, classes: Sequence[str], top: int, confidence: Confidence) -> None:
        """Prepare to print predictions among `classes`; `confidence` says which are certain."""
        self.classes = classes
        self._confidence = confidence
        self._top = min(top, len(classes))
        self._width = max(map(len, classes))

    def batch(
        self,
        paths: Sequence[str],
        images: NDArray[np.uint8],
        probabilities: NDArray[np.float32],
        problems: Sequence[tuple[str, str]],
    ) -> None:
        """Print the pictures that were read, uint8 (N, H, W, C), then the paths and problems of the others."""
        for path, image, row in zip(paths, images, probabilities, strict=True):
            self.picture(path, image, row)
        for path, problem in problems:
            self.unreadable(path, problem)

    def picture(self, path: str, image: NDArray[np.uint8], row: NDArray[np.float32]) -> None:
        """Print one prediction; image: uint8 (H, W, C), as the network gets it; row: float32 (classes,)."""
        first = np.argsort(-row, kind="stable")[: self._top]
        cells = [f"{self.classes[index]:{self._width}}  {row[index]:.4f}" for index in first]
        print("    ".join([*cells, *([] if self.certain(row) else ["(uncertain)"]), path]))

    def certain(self, row: NDArray[np.float32]) -> bool:
        """Return whether the prediction is an answer, not "none of these"."""
        return bool(self._confidence.certain(row[np.newaxis])[0])

    def unreadable(self, path: str, problem: str) -> None:
        """Print nothing: standard error lists these."""


class CsvPrinter(Printer):
    """Columns: path, class, probability, that of each class as in data/predictions.csv, certain: true or false."""

    def __init__(self, classes: Sequence[str], top: int, confidence: Confidence) -> None:
        """Print the header."""
        super().__init__(classes, top, confidence)
        self._writer = csv.writer(sys.stdout, lineterminator="\n")
        self._writer.writerow(
            ["path", "class", "probability", *(f"probability_{name}" for name in classes), "certain"]
        )

    def picture(self, path: str, image: NDArray[np.uint8], row: NDArray[np.float32]) -> None:
        """Print one row."""
        best = int(row.argmax())
        self._writer.writerow(
            [path, self.classes[best], str(row[best]), *map(str, row), str(self.certain(row)).lower()]
        )


class JsonPrinter(Printer):
    """A JSON object a line, of a picture that cannot be read as well: {"path": …, "error": …}."""

    def picture(self, path: str, image: NDArray[np.uint8], row: NDArray[np.float32]) -> None:
        """Print one object."""
        best = int(row.argmax())
        values = [float(str(value)) for value in row]  # the shortest decimals that are these float32
        print(
            json.dumps(
                {
                    "path": path,
                    "class": self.classes[best],
                    "probability": values[best],
                    "certain": self.certain(row),
                    "probabilities": dict(zip(self.classes, values, strict=True)),
                },
                ensure_ascii=False,
            )
        )

    def unreadable(self, path: str, problem: str) -> None:
        """Print one object."""
        print(json.dumps({"path": path, "error": problem}, ensure_ascii=False))
