"""Stage 1: fetches the dataset that params.yaml names and writes it unchanged, as raw splits.

    python -m stages.download --out data/raw

Writes train.npz, test.npz and source.json, which describes them. Where the bytes come from does not affect the
results, so it is set in the environment: DATASET_SOURCES lists local copies (a path or file://) and mirrors
(http:// or https://) to try first, separated by spaces and quoted as in a shell; DATASET_CACHE is the folder for
fetched archives.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stages.common import failure, splits
from stages.common.exclusive import exclusive
from stages.common.outputs import require_space, write_json
from stages.common.params import load
from stages.common.records import DatasetRecord, Source, SplitRecord
from stages.datasets import Dataset, Images
from stages.datasets.registry import DatasetParams, load_dataset


def main(arguments: Sequence[str]) -> None:
    """Parse, load, save."""
    options = _parse(arguments)
    params = load(options.params, "dataset", DatasetParams)
    with exclusive(options.out), load_dataset(params, options.out) as dataset:
        save(dataset, options.out)


def save(dataset: Dataset, out: Path) -> None:
    """Write both splits, and source.json, which describes them."""
    size = sum(math.prod(split.images.shape) + split.labels.nbytes for split in (dataset.train, dataset.test))
    require_space(out, size)
    classes = len(dataset.classes)
    source = Source(
        dataset=DatasetRecord(name=dataset.name, edition=dataset.edition, sha256=dataset.sha256),
        classes=list(dataset.classes),
        decoding=dataset.decoding,
        validation_images=dataset.validation or None,
        together=list(dataset.together) or None,
        splits={
            "train": _save_split(dataset.train, out / "train.npz", classes),
            "test": _save_split(dataset.test, out / "test.npz", classes),
        },
    )
    write_json(out / "source.json", source.model_dump(exclude_none=True))


def _save_split(split: Images, path: Path, classes: int) -> SplitRecord:
    return SplitRecord(
        images=len(split.labels),
        shape=list(split.images.shape[1:]),
        class_counts=np.bincount(split.labels, minlength=classes).tolist(),
        official=split.official,
        sha256=splits.write(path, split.images, split.labels),
    )


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stages.download", description=__doc__.partition("\n")[0])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--out", type=Path, default=Path("data/raw"))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(failure.run("download", main))
