"""stages/common/records.py: a stage's input is what the previous stage recorded, or an error."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.common import splits
from stages.common.failure import StageError
from stages.common.outputs import write_json
from stages.common.records import DatasetRecord, Source, SplitRecord, Statistics, read_record, read_split

LABELS = np.array([0, 1, 1, 2, 2], np.uint8)
IMAGES = np.arange(5 * 4 * 3 * 2, dtype=np.uint8).reshape(5, 4, 3, 2)


def written(folder: Path, pixels: NDArray[Any], labels: NDArray[Any], **changes: Any) -> Source | Statistics:
    """Write the split `train` and return its record, with some facts changed."""
    facts = {
        "images": 5,
        "shape": [4, 3, 2],
        "class_counts": [1, 2, 2],
        "official": 0,
        "sha256": splits.write(folder / "train.npz", pixels, labels),
    }
    record = Source(
        dataset=DatasetRecord(name="some", edition="first", sha256="0"),
        classes=["a", "b", "c"],
        splits={"train": SplitRecord.model_validate(facts | changes)},
    )
    if pixels.dtype == np.uint8:
        return record
    return Statistics(**record.model_dump(exclude_none=True), scaling="unit", mean=[0.5], std=[0.1])


@pytest.fixture
def record(tmp_path: Path) -> Path:
    path = tmp_path / "source.json"
    write_json(path, written(tmp_path, IMAGES, LABELS).model_dump())
    return path


def test_a_record_is_read_back_as_it_was(record: Path, tmp_path: Path) -> None:
    assert read_record(record, Source) == written(tmp_path, IMAGES, LABELS)


def test_a_missing_record_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"source\.json: no such file; run: dvc repro"):
        read_record(tmp_path / "source.json", Source)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.update(version=2), r"version: Extra inputs"),
        (lambda record: record.update(schema_version=2), r"schema_version: Input should be 1"),
        (lambda record: record.pop("classes"), r"classes: Field required"),
        (lambda record: record["splits"]["train"].update(images="5"), r"splits\.train\.images: .*valid integer"),
        (lambda record: record["dataset"].pop("sha256"), r"dataset\.sha256: Field required"),
    ],
)
def test_a_changed_record_is_refused_by_key(
    record: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    content = json.loads(record.read_text())
    change(content)
    write_json(record, content)
    with pytest.raises(StageError, match=rf"source\.json: {message}.*; dvc repro"):
        read_record(record, Source)


def test_a_record_cut_short_anywhere_is_refused(record: Path) -> None:
    whole = record.read_bytes().rstrip()
    for length in range(len(whole)):
        record.write_bytes(whole[:length])
        with pytest.raises(StageError, match=r"source\.json: the file: Invalid JSON"):
            read_record(record, Source)


def test_the_record_of_another_stage_is_refused(record: Path) -> None:
    with pytest.raises(StageError, match="scaling: Field required"):
        read_record(record, Statistics)


def test_a_recorded_split_is_read(tmp_path: Path) -> None:
    split = read_split(tmp_path, "train", written(tmp_path, IMAGES, LABELS))
    np.testing.assert_array_equal(split.images, IMAGES)
    np.testing.assert_array_equal(split.labels, LABELS)


def test_a_recorded_split_with_one_hot_labels_is_read(tmp_path: Path) -> None:
    images, labels = IMAGES.astype(np.float32), np.eye(3, dtype=np.float32)[LABELS]
    split = read_split(tmp_path, "train", written(tmp_path, images, labels))
    np.testing.assert_array_equal(split.labels, labels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": "0" * 64}, "checksum mismatch .expected 00000000…"),
        ({"images": 6}, r"expected uint8 images \(6, 4, 3, 2\), found uint8 \(5, 4, 3, 2\)"),
        ({"shape": [3, 4, 2]}, r"expected uint8 images \(5, 3, 4, 2\), found uint8 \(5, 4, 3, 2\)"),
        ({"class_counts": [2, 1, 2]}, r"expected class counts \[2, 1, 2\], found \[1, 2, 2\]"),
    ],
)
def test_a_split_that_is_not_the_recorded_one_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(StageError, match=rf"train\.npz: {message}"):
        read_split(tmp_path, "train", written(tmp_path, IMAGES, LABELS, **changes))


@pytest.mark.parametrize("one_hot", [False, True])
def test_a_label_of_no_class_is_refused_by_its_image(tmp_path: Path, one_hot: bool) -> None:
    labels = np.array([0, 1, 1, 3, 2], np.uint8)
    record = (
        written(tmp_path, IMAGES.astype(np.float32), np.eye(4, dtype=np.float32)[labels])
        if one_hot
        else written(tmp_path, IMAGES, labels)
    )
    with pytest.raises(StageError, match=r"train\.npz: image 3 has the label 3, but there are only 3 classes"):
        read_split(tmp_path, "train", record)


def test_a_record_without_the_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"test\.npz: not in the record beside it"):
        read_split(tmp_path, "test", written(tmp_path, IMAGES, LABELS))


def test_only_the_validation_split_can_be_empty(tmp_path: Path) -> None:
    pixels, labels = np.zeros((0, 4, 3, 2), np.float32), np.zeros((0, 3), np.float32)
    record = written(tmp_path, pixels, labels, images=0, class_counts=[0, 0, 0])
    record.splits["validation"] = record.splits["train"]
    (tmp_path / "validation.npz").write_bytes((tmp_path / "train.npz").read_bytes())
    assert read_split(tmp_path, "validation", record).images.shape == (0, 4, 3, 2)
    with pytest.raises(StageError, match=r"train\.npz: no images in it"):
        read_split(tmp_path, "train", record)
