"""Check the whole params.yaml at once, before any stage runs: `python -m tools.check [params.yaml]`.

Each stage checks the sections that it reads when it starts. A slip in the last section would then show up
after hours of download and training; `make repro` calls this first.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages import failure
from stages.download import DatasetParams
from stages.engine import TrainParams
from stages.evaluate import EvaluateParams
from stages.failure import StageError
from stages.model import ModelParams
from stages.params import Section, load
from stages.preprocess import PreprocessParams
from stages.runtime import RuntimeParams

CLASSES: dict[str, type[Section]] = {
    "dataset": DatasetParams,
    "preprocess": PreprocessParams,
    "model": ModelParams,
    "train": TrainParams,
    "runtime": RuntimeParams,
    "evaluate": EvaluateParams,
}


def main(arguments: Sequence[str]) -> None:
    """Load every section; the first mistake is the error."""
    path = Path(arguments[0]) if arguments else Path("params.yaml")
    sections: dict[str, Any] = {section: load(path, section, model) for section, model in CLASSES.items()}
    pictures = sections["dataset"].folder.path
    # DVC watches it whatever the dataset, and its own message names neither the key nor a remedy.
    if not Path(pictures).exists():
        raise StageError(f"dataset.folder.path: {pictures}: no such folder; make it, even when it is empty")


if __name__ == "__main__":
    sys.exit(failure.run("params", main))
