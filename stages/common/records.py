"""The JSON records that a stage writes beside its splits; the next stage checks the splits against them."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stages.common.failure import StageError
from stages.common.pictures import Decoding
from stages.common.scaling import ByChannel, ScaledImages
from stages.common.splits import Split, damaged, read

R = TypeVar("R", bound=BaseModel)


class SplitRecord(BaseModel):
    """A split: its number of images, their shape (H, W, C), the number of images of each class, and its digest.

    official: how many of its first images are identical to those that the dataset's authors published.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    images: int
    shape: list[int]
    class_counts: list[int]
    official: int
    sha256: str


class DatasetRecord(BaseModel):
    """The dataset's name, a description of what was read, and the SHA-256 of that."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: str
    edition: str
    sha256: str


class Record(BaseModel):
    """The fields that both records have."""

    model_config = ConfigDict(strict=True, extra="forbid")

    schema_version: Literal[1] = 1
    dataset: DatasetRecord
    classes: list[str]
    decoding: Decoding | None = None  # of datasets that are picture files
    splits: dict[str, SplitRecord]

    @property
    def dtype(self) -> str:
        """The dtype of the images in the files."""
        return "uint8"

    @property
    def picture_rules(self) -> Decoding:
        """How to decode a picture for this data: as download did, or else to the shape of the splits."""
        height, width, channels = next(iter(self.splits.values())).shape
        return self.decoding or Decoding(height=height, width=width, channels=channels)


class Source(Record):
    """data/raw/source.json: describes the splits train and test.

    validation_images: how many of the last training images are the dataset's own validation split, if it has one.
    together: where runs of training images start and stop that must be on the same side of the validation split.
    """

    validation_images: int | None = Field(default=None, gt=0)
    together: list[tuple[int, int]] | None = None


class Scaled(BaseModel):
    """How pixels are scaled, and the mean and standard deviation of each channel of pixel / 255 in training."""

    scaling: str
    mean: list[float]
    std: list[float]

    @property
    def by_channel(self) -> ByChannel | None:
        """What `scaling.scale` takes."""
        return (self.mean, self.std) if self.scaling == "standardize" else None


class Statistics(Scaled, Record):
    """data/processed/statistics.json: describes the splits train, validation and test, and their scaling.

    validation has 0 images with `preprocess.validation_fraction: 0`.
    storage: uint8 if the images in the files are not scaled yet.
    """

    storage: Literal["uint8"] | None = None

    @property
    def dtype(self) -> str:
        """The dtype of the images in the files."""
        return self.storage or "float32"


class Origin(BaseModel):
    """The weights that training began with, when they were not random.

    weights: what they are of; sha256: of their file; epochs: of an earlier run, which this one continued.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    weights: str
    sha256: str
    epochs: int = 0


class ModelRecord(Scaled):
    """models/model.json: what it takes to use the model.keras beside it, whose SHA-256 it holds.

    epoch: the one whose weights were saved. class_weights: factors on the training loss, by class name, if any.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    schema_version: Literal[1] = 1
    sha256: str
    dataset: DatasetRecord
    classes: list[str]
    decoding: Decoding
    epoch: int
    parameters: int
    origin: Origin | None = None
    class_weights: dict[str, float] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of the network's images, (H, W, C)."""
        return self.decoding.height, self.decoding.width, self.decoding.channels


def read_record(path: Path, model: type[R]) -> R:
    """Return the record at `path`; raises `StageError` when it is missing or not valid."""
    try:
        return model.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise StageError(f"{path}: no such file; run: dvc repro") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise damaged(path, f"{where}: {first['msg']}") from None


def require_same_data(model: ModelRecord, statistics: Statistics) -> None:
    """Raise `StageError` unless the model was trained on the data that `statistics` describe."""
    for name in ("dataset", "classes", "scaling", "mean", "std"):
        if getattr(model, name) != getattr(statistics, name):
            raise StageError(f"the model was trained on other data ({name} differs); run: dvc repro")


def read_split(folder: Path, name: str, record: Record) -> Split:
    """Return the split `name` of `folder`; raises `StageError` when it does not match its record.

    The images of a processed split are float32, however they are stored. The digest covers every byte. Labels and
    class counts are checked too, because a bug in the stage before would write a digest that matches.
    """
    path = folder / f"{name}.npz"
    if name not in record.splits:
        raise damaged(path, "not in the record beside it")
    expected = record.splits[name]
    split = read(path, expected.sha256)
    shape = (expected.images, *expected.shape)
    if split.images.dtype != record.dtype or split.images.shape != shape:
        found = f"{split.images.dtype} {split.images.shape}"
        raise damaged(path, f"expected {record.dtype} images {shape}, found {found}")
    classes = len(record.classes)
    labels = split.labels if split.labels.ndim == 1 else split.labels.argmax(axis=1)
    if not len(labels) and name != "validation":  # which is empty after a final fit
        raise damaged(path, "no images in it")
    if labels.max(initial=0) >= classes:
        image = int(labels.argmax())
        raise damaged(path, f"image {image} has the label {labels[image]}, but there are only {classes} classes")
    counts = np.bincount(labels, minlength=classes).tolist()
    if counts != expected.class_counts:
        raise damaged(path, f"expected class counts {expected.class_counts}, found {counts}")
    if isinstance(record, Statistics) and record.storage:
        # Not an array, but all that is done with the images of processed splits works with it.
        images = cast("NDArray[Any]", ScaledImages(split.images, record.by_channel))
        return replace(
            split, images=images, scaled=lambda pixels: np.asarray(ScaledImages(pixels, record.by_channel))
        )
    return split
