"""What a stage says of the splits that it wrote, as JSON beside them; the next stage holds them to it."""

from pathlib import Path
from typing import ClassVar, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from stages.common.failure import StageError
from stages.common.splits import Split, changed, read

R = TypeVar("R", bound="Record")


class SplitRecord(BaseModel):
    """A split: how many images of which (H, W, C), how many of each class, and its digest.

    official: how many of its first images are byte for byte those that the dataset's authors published.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    images: int
    shape: list[int]
    class_counts: list[int]
    official: int
    sha256: str


class DatasetRecord(BaseModel):
    """Which dataset: its name, what was read in plain words, and that file's SHA-256."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: str
    edition: str
    sha256: str


class Record(BaseModel):
    """What both JSON files say."""

    model_config = ConfigDict(strict=True, extra="forbid")

    dtype: ClassVar[str]  # of the splits' arrays

    schema_version: Literal[1] = 1
    dataset: DatasetRecord
    classes: list[str]
    splits: dict[str, SplitRecord]


class Source(Record):
    """data/raw/source.json: the splits train and test."""

    dtype = "uint8"


class Statistics(Record):
    """data/processed/statistics.json: the splits train, validation and test, and their scaling.

    mean and std: of each channel of the training split's pixels / 255.
    """

    dtype = "float32"

    scaling: str
    mean: list[float]
    std: list[float]


def read_record(path: Path, model: type[R]) -> R:
    """Return the record at `path`; `StageError` when it is missing or not what the stage before writes."""
    try:
        return model.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise StageError(f"{path}: no such file; run: dvc repro") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise changed(path, f"{where}: {first['msg']}") from None


def read_split(folder: Path, name: str, record: Record) -> Split:
    """Return the split `name` of `folder`, or raise `StageError` when it is not the one that `record` names.

    The digest covers dtypes, shapes and every byte; labels and counts are looked at as well, since a record
    and a split that a defect wrote together would agree on it.
    """
    path = folder / f"{name}.npz"
    if name not in record.splits:
        raise changed(path, "the record beside it does not name it")
    expected = record.splits[name]
    split = read(path, expected.sha256)
    shape = (expected.images, *expected.shape)
    if split.images.dtype != record.dtype or split.images.shape != shape:
        found = f"{split.images.dtype} {split.images.shape}"
        raise changed(path, f"images of {record.dtype} {shape} expected, {found} found")
    classes = len(record.classes)
    labels = split.labels if split.labels.ndim == 1 else split.labels.argmax(axis=1)
    if labels.max() >= classes:
        image = int(labels.argmax())
        raise changed(path, f"label {labels[image]} of image {image} is none of {classes} classes")
    counts = np.bincount(labels, minlength=classes).tolist()
    if counts != expected.class_counts:
        raise changed(path, f"class counts {expected.class_counts} expected, {counts} found")
    return split
