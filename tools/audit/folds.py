"""Probabilities for the training images from models that were not fitted to them: k-fold cross-fitting.

Each fold is a small DVC project in audit/folds/ with the code and params of the checkout. Its data/raw has the
training images without the fold, and the fold as test split. Its stages are preprocess, train and evaluate. So a
fold that is killed continues from its checkpoint, and a complete one runs again only after a change.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from stages.common import splits
from stages.common.outputs import write_json
from stages.common.records import SplitRecord
from tools.audit.data import Data
from tools.demo import choose, prepare, run
from tools.rwlock import remove_unreadable_rwlock

ROOT = Path(__file__).parents[2]


def cross_fitted(data: Data, out: Path, folds: int) -> NDArray[np.float32]:
    """Return probabilities of all training images, float32 (N, classes), each from the model without its fold."""
    labels = data.splits["train"].labels
    classes = len(data.source.classes)
    result = np.zeros((len(labels), classes), np.float32)
    number = fold_of(labels, folds, data.source.together or ())
    for fold in range(folds):
        folder = out / "folds" / f"{fold + 1}-of-{folds}"
        print(f"fold {fold + 1} of {folds}: {folder}", file=sys.stderr)
        held_out = np.flatnonzero(number == fold)
        _prepare(data, folder, np.flatnonzero(number != fold), held_out)
        remove_unreadable_rwlock(folder)
        run(["dvc", "repro", "--quiet"], folder)
        table = pd.read_csv(folder / "data" / "predictions.csv")
        result[held_out] = table.filter(regex="^probability_").to_numpy(np.float32)
    return result


def fold_of(
    labels: NDArray[np.unsignedinteger[Any]], folds: int, together: Sequence[tuple[int, int]] = ()
) -> NDArray[np.int64]:
    """Return the fold of each image, int64 (N,): equal parts of each class, at random but always the same."""
    order = np.argsort(np.random.PCG64(0).random_raw(len(labels)), kind="stable")
    number = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        number[members] = np.arange(len(members)) % folds
    for start, stop in together:
        number[start:stop] = number[start]
    return number


def _prepare(data: Data, folder: Path, kept: NDArray[np.int64], held_out: NDArray[np.int64]) -> None:
    """Make the project of a fold; `kept` and `held_out` are ascending positions in the training split."""
    folder.mkdir(parents=True, exist_ok=True)
    prepare(ROOT, folder)
    shutil.copyfile(data.folder / "params.yaml", folder / "params.yaml")
    choose(folder / "params.yaml", {"preprocess.storage": "uint8"})  # the same model from a quarter of the space
    pipeline = yaml.safe_load((folder / "dvc.yaml").read_bytes())
    del pipeline["stages"]["download"]
    (folder / "dvc.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False), encoding="utf-8")
    raw, train = folder / "data" / "raw", data.splits["train"]
    records = {}
    for name, indices in (("train", kept), ("test", held_out)):
        labels = train.labels[indices]
        shape = train.images.shape[1:]
        images = splits.ChunkedArray((len(indices), *shape), np.dtype(np.uint8), train.chunks(indices))
        records[name] = SplitRecord(
            images=len(indices),
            shape=list(shape),
            class_counts=np.bincount(labels, minlength=len(data.source.classes)).tolist(),
            official=0,
            sha256=splits.write(raw / f"{name}.npz", images, labels),
        )
    source = data.source.model_copy(update={"splits": records, "validation_images": None, "together": None})
    write_json(raw / "source.json", source.model_dump(exclude_none=True))
