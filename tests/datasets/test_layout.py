"""stages/datasets/layout.py: which classes and splits are found in which tree of files."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.common.failure import StageError
from stages.datasets.layout import Layout, Table, arrange

FLOWERS = ["daisy/1.jpg", "daisy/2.jpg", "rose/1.jpg"]


def of(*names: str, **options: Any) -> Layout:
    return arrange("pictures", names, **options)


def under(*folders: str, names: list[str] = FLOWERS) -> list[str]:
    return [f"{folder}/{name}" for folder in folders for name in names]


def splits(layout: Layout) -> dict[str, list[str]]:
    """The classes of the pictures by split, each once."""
    found: dict[str, set[str]] = {}
    for split, label in layout.pictures.values():
        found.setdefault(split, set()).add(label)
    return {split: sorted(labels) for split, labels in found.items()}


BOTH = ["daisy", "rose"]


@pytest.mark.parametrize(
    "names",
    [
        FLOWERS,
        under("flowers"),
        under("archive/flowers"),
        under("train"),
        ["daisy/2019/may/1.jpg", "daisy/2.jpg", "rose/2020/1.jpg"],
    ],
    ids=["one folder per class", "a folder around them", "two around them", "train only", "subfolders of classes"],
)
def test_one_tree_is_to_be_divided(names: list[str]) -> None:
    assert splits(of(*names)) == {"": BOTH}


@pytest.mark.parametrize(
    "train",
    ["train", "Train", "training", "TRAINING_SET", "training set", "train-set", "trainset", "train_images"],
)
@pytest.mark.parametrize("test", ["test", "Testing", "test_set", "test1", "Test Data"])
def test_train_and_test_are_found_by_their_usual_names(train: str, test: str) -> None:
    assert splits(of(*under(train, test))) == {"train": BOTH, "test": BOTH}


@pytest.mark.parametrize("val", ["val", "valid", "Validation", "val_set", "dev"])
def test_val_beside_test_is_the_validation_split(val: str) -> None:
    found = splits(of(*under("train", val, "test")))
    assert found == {"train": BOTH, "validation": BOTH, "test": BOTH}


def test_splits_may_have_a_folder_around_all_and_around_their_classes() -> None:
    assert splits(of(*under("set/train/images", "set/test/images"))) == {"train": BOTH, "test": BOTH}


def test_a_test_split_of_one_class_keeps_its_class() -> None:
    assert splits(of(*under("train"), "test/rose/new/1.jpg"))["test"] == ["rose"]


@pytest.mark.parametrize(("val_as", "expected"), [("test", {"train": BOTH, "test": BOTH}), ("train", {"": BOTH})])
def test_val_without_test_is_what_val_as_says(val_as: str, expected: Any) -> None:
    layout = of(*under("train", "val"), val_as=val_as)
    assert splits(layout) == expected
    assert any("val/ is" in note and "dataset.folder.val_as: train" in note for note in layout.notes)


@pytest.mark.parametrize("folder", ["test", "test/images", "test/test"])
def test_test_pictures_without_a_class_are_left_for_prediction(folder: str) -> None:
    layout = of(*under("train"), f"{folder}/1.jpg", f"{folder}/2.jpg")
    assert splits(layout) == {"": BOTH}
    assert layout.unlabeled == [f"{folder}/1.jpg", f"{folder}/2.jpg"]
    assert layout.notes == ["2 pictures without a class are left for prediction, such as " + layout.unlabeled[0]]


def test_val_is_the_test_split_if_test_has_no_classes() -> None:
    assert splits(of(*under("train", "val"), "test/1.jpg")) == {"train": BOTH, "test": BOTH}


def test_classes_may_have_the_name_of_a_split() -> None:
    assert splits(of("train/1.jpg", "bus/1.jpg", "car/1.jpg")) == {"": ["bus", "car", "train"]}


def test_a_name_in_two_unicode_forms_is_one_class() -> None:
    assert splits(of("\xe9t\xe9/1.jpg", "e\u0301te\u0301/2.jpg", "hiver/1.jpg")) == {"": ["hiver", "été"]}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("__MACOSX/daisy/._1.jpg", "hidden or system files"),
        ("daisy/__macosx/1.jpg", "hidden or system files"),
        ("daisy/@eaDir/1.jpg", "hidden or system files"),
        (".ipynb_checkpoints/1.jpg", "hidden or system files"),
        ("rose/THUMBS.DB", "hidden or system files"),
        ("ehthumbs.db", "hidden or system files"),
        ("rose/Desktop.ini", "hidden or system files"),
        ("rose/Icon\r", "hidden or system files"),
        ("$RECYCLE.BIN/1.jpg", "hidden or system files"),
        ("System Volume Information/1.jpg", "hidden or system files"),
        ("README", "without a suffix"),
        ("rose/LICENSE.txt", ".txt"),
        ("rose/1.XML", ".XML"),
        ("annotations/1.json", ".json"),
        ("rose/draft.jpg", "excluded"),
        ("raw/rose/1.jpg", "excluded"),
    ],
)
def test_other_files_are_ignored_and_counted(name: str, reason: str) -> None:
    layout = of(*FLOWERS, name, exclude=["draft*", "raw"])
    assert layout.pictures == of(*FLOWERS).pictures
    assert layout.ignored == {name: reason}
    assert layout.notes == [f"ignored 1 files that are not pictures of the dataset: 1 {reason}"]


@pytest.mark.parametrize(
    "suffix", ["jpg", "JPEG", "jpe", "jfif", "png", "webp", "bmp", "tif", "TIFF", "gif", "avif", "heic"]
)
def test_pictures_are_found_by_their_suffix_in_any_case(suffix: str) -> None:
    assert len(of(*FLOWERS, f"rose/2.{suffix}").pictures) == 4


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"pictures: found 0 classes, expected 2 to 65,536; expected one folder per class"),
        (["a/1.cr2", "b/2.cr2"], r"pictures: found 0 classes, .*; ignored files: 2 \.cr2$"),
        (["rose/1.jpg"], r"pictures: found 1 class \(rose\), expected 2 to 65,536"),
        (
            ["1.jpg", "2.jpg"],
            r"pictures/1\.jpg: this picture is not in the folder of a class; expected one folder",
        ),
        ([*FLOWERS, "1.jpg"], r"pictures/1\.jpg: this picture is not in the folder of a class"),
        (under("test", "val"), r"found test and val, but no training images; expected train/ as well"),
        (under("train", "test", "more"), r"'more' is neither of test, train; move it, or add it to .*exclude"),
        (under("train", "training", "test"), r"test, train, training: two folders for the same split"),
        ([*under("train", "test"), "1.jpg"], r"pictures/1\.jpg: this picture is in none of test, train"),
        (
            [*under("train", "test"), "train/1.jpg"],
            r"pictures/train/1\.jpg: this picture is not in the folder of a",
        ),
        ([*under("train", "test"), "val/1.jpg"], r"pictures/val/1\.jpg: this picture has no class"),
        ([*under("train", "test"), "test/lily/1.jpg"], r"the class 'lily' is in the test split only"),
        ([*under("train"), "test/Rose/1.jpg", "test/daisy/1.jpg"], r"'Rose' .* split only; rename it to 'rose'"),
        (under("train", "masks"), r"train/ looks like the training split, but masks/ beside it is not a split"),
        ([*FLOWERS, "a\nb/1.jpg"], r"the class 'a\\nb' has an unprintable name; rename it"),
    ],
)
def test_what_is_not_a_dataset_is_one_line(names: list[str], message: str) -> None:
    with pytest.raises(StageError, match=message):
        of(*names)


def test_labels_that_are_different_numbers_are_called_a_regression() -> None:
    names = [f"images/{number}.jpg" for number in range(40)]
    ages = [f"{name},{number / 8}" for number, name in enumerate(names)]
    with pytest.raises(
        StageError, match=r"the labels are 40 different numbers for 40 pictures, such as 0\.0: a regression"
    ):
        tabled("path,label", *ages, names=names)
    assert tabled("path,label", *(f"{name},{number % 10}" for number, name in enumerate(names)), names=names)


NAMES = ["images/1.jpg", "images/2.jpg", "images/3.jpg"]


def tabled(*rows: str, name: str = "labels.csv", names: list[str] = NAMES, **columns: str | None) -> Layout:
    return of(*names, name, table=Table(name, "\n".join(rows), columns))


@pytest.mark.parametrize(
    "rows",
    [
        ("path,label", "images/1.jpg,rose", "images/2.jpg,daisy"),
        ("Filename;Class", "1.jpg;rose", "2.jpg;daisy"),
        ("id\tbreed\tage", "1\trose\t3", "2\tdaisy\t4"),
        ("label,extra,image", "rose,,./images/1.jpg", "daisy,,images/2.jpg"),
        ("path,label,fold", "images\\1.jpg,rose,1", "images\\2.jpg,daisy,2"),
    ],
    ids=["paths", "file names", "names without a suffix", "another order", "Windows paths, and folds"],
)
def test_a_table_names_the_class_of_each_picture(rows: tuple[str, ...]) -> None:
    layout = tabled(*rows)
    assert layout.pictures == {NAMES[0]: ("", "rose"), NAMES[1]: ("", "daisy")}
    assert layout.ignored == {NAMES[2]: "not in labels.csv"}


def test_paths_may_be_relative_to_the_table() -> None:
    names = ["a/x/1.jpg", "b/x/1.jpg", "a/x/2.jpg"]
    layout = tabled("path,label", "x/1.jpg,rose", "x/2.jpg,daisy", name="a/labels.csv", names=names)
    assert layout.pictures == {names[0]: ("", "rose"), names[2]: ("", "daisy")}


def test_a_table_can_name_the_split_and_leave_out_labels() -> None:
    layout = tabled("path,label,subset", "1.jpg,rose,Train", "2.jpg,daisy,training", "3.jpg,,test")
    assert splits(layout) == {"": BOTH}
    assert layout.unlabeled == ["images/3.jpg"]


def test_a_column_of_splits_can_be_ignored() -> None:
    assert splits(tabled("path,label,split", "1.jpg,rose,7", "2.jpg,daisy,8", split="")) == {"": BOTH}


def test_columns_can_be_given() -> None:
    layout = tabled("label,a,b", "x,1.jpg,rose", "y,2.jpg,daisy", path="a", label="b", split=None)
    assert splits(layout) == {"": BOTH}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ("name,label", "1.jpg,rose"),
            r"labels\.csv: no column 'path'; its columns are name, label; set dataset\.",
        ),
        (
            ("path,label", "9.jpg,rose", "8.jpg,x"),
            r"labels\.csv:2: '9\.jpg' is not a picture in pictures/, and 1 rows more; .* such as images/1\.jpg",
        ),
        (
            ("path,label", "1.jpg,a", "1.jpg,b"),
            r"labels\.csv:3: '1\.jpg' has another label or split in an earlier",
        ),
        (
            ("path,label,split", "1.jpg,a,2"),
            r"labels\.csv:2: '2' is not a split; write train, val or test, or ignore",
        ),
        (("path,label,split", "1.jpg,a"), r"labels\.csv:2: '' is not a split"),
        (("",), r"labels\.csv: no column 'path'"),
        (("path,label", "x" * 200_000), r"labels\.csv:1: not valid CSV: field larger than field limit"),
    ],
)
def test_a_mistake_in_a_table_is_named_with_its_line(rows: tuple[str, ...], message: str) -> None:
    with pytest.raises(StageError, match=message):
        tabled(*rows)


def test_a_name_of_two_pictures_is_named() -> None:
    with pytest.raises(StageError, match=r"'1\.jpg' is the name of 2 pictures; write the path from pictures/"):
        tabled("path,label", "1.jpg,rose", names=["a/1.jpg", "b/1.jpg"])


PART = st.sampled_from(
    ["train", "Test", "val", "masks", "rose", "daisy", "flowers", ".git", "__MACOSX", "\xe9", "e\u0301", "a\nb"]
)
FILE = st.sampled_from(["1.jpg", "2.PNG", "3.webp", "notes.txt", "README", ".DS_Store", "labels.csv"])
PATHS = st.lists(st.tuples(st.lists(PART, max_size=4), FILE), max_size=12)
ROWS = st.lists(st.tuples(PART, FILE, PART, PART), max_size=5)


@given(
    paths=PATHS,
    exclude=st.lists(PART, max_size=1),
    val_as=st.sampled_from(["test", "train"]),
    rows=st.none() | ROWS,
)
def test_every_file_of_any_tree_is_accounted_for_or_there_is_one_line(
    paths: list[tuple[list[str], str]], exclude: list[str], val_as: Any, rows: list[tuple[str, ...]] | None
) -> None:
    names = list(dict.fromkeys("/".join([*parts, file]) for parts, file in paths))
    table = None
    if rows is not None:
        lines = [f'"{folder}/{file}","{label}","{split}"' for folder, file, label, split in rows]
        table = Table("labels.csv", "\n".join(["path,label,split", *lines]))
    try:
        layout = of(*names, exclude=exclude, val_as=val_as, table=table)
    except StageError as error:
        assert str(error).startswith("pictures")
        return
    used = [*layout.pictures, *layout.unlabeled, *layout.ignored]
    assert sorted(used) == sorted(name for name in names if not table or name != "labels.csv")
    found = splits(layout)
    classes = set(found.get("train", found.get("", [])))
    assert len(classes) >= 2
    assert all(classes.issuperset(labels) for labels in found.values())
    assert set(found) in ({""}, {"train", "test"}, {"train", "validation", "test"})
