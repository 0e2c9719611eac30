"""The raw splits of a checkout, which of the training images validate, and the paths of own pictures."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.common.failure import StageError
from stages.common.params import load
from stages.common.records import Source, read_record, read_split
from stages.common.splits import Split
from stages.datasets.registry import DatasetParams, load_dataset
from stages.preprocess import PreprocessParams, choose_validation


@dataclass(frozen=True, eq=False)
class Data:
    """folder: the checkout; splits: train and test of data/raw; held_out: training images that validate, int64."""

    folder: Path
    source: Source
    splits: dict[str, Split]
    held_out: NDArray[np.int64]

    @staticmethod
    def read(folder: Path) -> "Data":
        """Read and verify data/raw; raises `StageError` when it is missing or damaged."""
        raw = folder / "data" / "raw"
        source = read_record(raw / "source.json", Source)
        splits = {name: read_split(raw, name, source) for name in ("train", "test")}
        count = len(splits["train"].labels)
        params = load(folder / "params.yaml", "preprocess", PreprocessParams)
        if source.validation_images and params.validation_fraction:
            held_out = np.arange(count - source.validation_images, count)
        else:
            held_out = choose_validation(splits["train"].labels, params, source.together or ())[1]
        return Data(folder, source, splits, held_out)

    def paths(self) -> dict[str, list[str]] | None:
        """Return the paths of own pictures by split, in order; None for other datasets.

        Decodes the pictures once more: their order depends on their content. Raises `StageError` when they have
        changed since data/raw was made.
        """
        if self.source.dataset.name != "folder":
            return None
        params = load(self.folder / "params.yaml", "dataset", DatasetParams)
        path = str(self.folder / params.folder.path)
        params = params.model_copy(update={"folder": params.folder.model_copy(update={"path": path})})
        print("Reading the pictures for their paths", file=sys.stderr)
        with load_dataset(params, self.folder / "audit") as dataset:
            if dataset.sha256 != self.source.dataset.sha256:
                raise StageError("the pictures have changed since data/raw was made; run: dvc repro")
            return {"train": list(dataset.train.names), "test": list(dataset.test.names)}
