"""Prints predictions as they are made: lines for people, CSV, or JSON."""

import csv
import json
import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class Printer:
    """The lines for people: the `top` most probable classes, the probability of each, and the path."""

    def __init__(self, classes: Sequence[str], top: int) -> None:
        """Prepare to print predictions among `classes`."""
        self.classes = classes
        self._top = min(top, len(classes))
        self._width = max(map(len, classes))

    def picture(self, path: str, row: NDArray[np.float32]) -> None:
        """Print one prediction; row: float32 (classes,)."""
        first = np.argsort(-row, kind="stable")[: self._top]
        cells = [f"{self.classes[index]:{self._width}}  {row[index]:.4f}" for index in first]
        print("    ".join([*cells, path]))

    def unreadable(self, path: str, problem: str) -> None:
        """Print nothing: standard error lists these."""


class CsvPrinter(Printer):
    """Columns: path, class, probability, and the probability of each class, as in data/predictions.csv."""

    def __init__(self, classes: Sequence[str], top: int) -> None:
        """Print the header."""
        super().__init__(classes, top)
        self._writer = csv.writer(sys.stdout, lineterminator="\n")
        self._writer.writerow(["path", "class", "probability", *(f"probability_{name}" for name in classes)])

    def picture(self, path: str, row: NDArray[np.float32]) -> None:
        """Print one row."""
        best = int(row.argmax())
        self._writer.writerow([path, self.classes[best], str(row[best]), *map(str, row)])


class JsonPrinter(Printer):
    """A JSON object a line, of a picture that cannot be read as well: {"path": …, "error": …}."""

    def picture(self, path: str, row: NDArray[np.float32]) -> None:
        """Print one object."""
        best = int(row.argmax())
        values = [float(str(value)) for value in row]  # the shortest decimals that are these float32
        print(
            json.dumps(
                {
                    "path": path,
                    "class": self.classes[best],
                    "probability": values[best],
                    "probabilities": dict(zip(self.classes, values, strict=True)),
                },
                ensure_ascii=False,
            )
        )

    def unreadable(self, path: str, problem: str) -> None:
        """Print one object."""
        print(json.dumps({"path": path, "error": problem}, ensure_ascii=False))
