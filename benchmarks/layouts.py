"""The pipeline on picture sets in six layouts of public sets, made from CIFAR-10's pictures.

Run as `python -m benchmarks.layouts FOLDER` in a checkout whose data/raw holds CIFAR-10. Writes the sets as JPEG
and PNG files to FOLDER, runs the pipeline on each with dataset.name: folder, on the unbalanced one also with class
weights, and prints a row for each.
"""

import argparse
import csv
import json
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stages.common import failure
from stages.common.failure import StageError
from stages.common.figures import parse_figures
from stages.common.records import Source, read_record, read_split
from tools.demo import choose, prepare, run

Pictures = dict[str, list[NDArray[np.uint8]]]  # of each class, uint8 (32, 32, 3)


def flowers(folder: Path, pictures: Pictures) -> dict[str, Any]:
    """A wrapper folder with a folder for each class, and a license beside them."""
    for name, images in first(pictures, 5).items():
        for number, image in enumerate(images[:600]):
            save(image, folder / "flower_photos" / name / f"{number:09d}_{name[:3]}_m.jpg")
    (folder / "flower_photos" / "LICENSE.txt").write_text("CC-BY\n")
    return {}


def three_splits(folder: Path, pictures: Pictures) -> dict[str, Any]:
    """train, valid and test, each with a folder for each class."""
    for name, images in first(pictures, 6).items():
        for split, part in (("train", slice(400)), ("valid", slice(400, 500)), ("test", slice(500, 600))):
            for number, image in enumerate(images[part]):
                save(image, folder / split / name.upper() / f"{number + 1:03d}.jpg")
    return {}


def table(folder: Path, pictures: Pictures) -> dict[str, Any]:
    """All pictures of train in one folder, their labels in a table, and pictures without labels in test."""
    rows = []
    for name, images in first(pictures, 5).items():
        for number, image in enumerate(images[:600]):
            key = f"{zlib.crc32(f'{name} {number}'.encode()):08x}{number:04x}"
            save(image, folder / "train" / f"{key}.jpg")
            rows.append((key, name))
        save(images[600], folder / "test" / f"unknown-{name}.jpg")
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("id", "breed"), *sorted(rows)])
    return {"dataset.folder.labels": "labels.csv"}


def archive(folder: Path, pictures: Pictures) -> dict[str, Any]:
    """A zip file of two classes, with what macOS adds and a damaged picture."""
    plain = folder / "plain"
    for name in ("cat", "dog"):
        for number, image in enumerate(pictures[name][:1500]):
            save(image, plain / "PetImages" / name.capitalize() / f"{number}.jpg")
    (plain / "PetImages" / "Cat" / "666.jpg").write_bytes(b"")
    with zipfile.ZipFile(folder / "pets.zip", "w") as file:
        for path in sorted(plain.rglob("*")):
            file.write(path, path.relative_to(plain))
        file.writestr("__MACOSX/PetImages/Cat/._1.jpg", "resource fork")
    return {"dataset.folder.path": str(folder / "pets.zip"), "dataset.folder.skip_unreadable": True}


def nested(folder: Path, pictures: Pictures) -> dict[str, Any]:
    """Subfolders of a class by camera and day, with annotations between the pictures."""
    for name, images in first(pictures, 8).items():
        for number, image in enumerate(images[:400]):
            path = (
                folder / "Images" / name / f"cam{number % 3}" / f"2024-05-{number % 28 + 1:02d}" / f"{number}.png"
            )
            save(image, path)
            path.with_suffix(".xml").write_text("<annotation/>")
    return {}


def unbalanced(folder: Path, pictures: Pictures) -> dict[str, Any]:
    """training_set and test_set; of ten classes in training, the largest has 50 times as many as the smallest."""
    counts = np.geomspace(2000, 40, len(pictures)).astype(int)
    for (name, images), count in zip(pictures.items(), counts, strict=True):
        for number, image in enumerate(images[:count]):
            save(image, folder / "training_set" / name / f"{number}.jpg")
        for number, image in enumerate(images[2000 : 2000 + max(200, count // 4)]):
            save(image, folder / "test_set" / name / f"{number}.jpg")
    return {}


LAYOUTS: Mapping[str, tuple[Callable[[Path, Pictures], dict[str, Any]], dict[str, Any]]] = {
    "flowers": (flowers, {}),
    "three splits": (three_splits, {}),
    "table": (table, {}),
    "archive": (archive, {}),
    "nested": (nested, {}),
    "unbalanced": (unbalanced, {}),
    "unbalanced, class weights": (unbalanced, {"train.class_weights": "balanced"}),
}


def main(arguments: Sequence[str]) -> None:
    """Parse, write the sets, run, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layouts", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--raw", type=Path, default=Path("data/raw"))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--only", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    options = parser.parse_args(arguments)
    if options.folder.exists():
        raise StageError(f"{options.folder}: exists already; name a folder to make")
    source = read_record(options.raw / "source.json", Source)
    split = read_split(options.raw, "train", source)
    pictures = {
        name: list(split.images[np.flatnonzero(split.labels == label)[:3000]])
        for label, name in enumerate(source.classes)
    }
    print("| layout | training images | classes | test images | accuracy | balanced accuracy | worst recall |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name in options.only:
        write, more = LAYOUTS[name]
        print(
            f"| {name} | {row(options.folder.resolve() / name, pictures, write, more, options.epochs)} |",
            flush=True,
        )


def row(
    folder: Path,
    pictures: Pictures,
    write: Callable[[Path, Pictures], dict[str, Any]],
    more: Mapping[str, Any],
    epochs: int,
) -> str:
    """Write a set, run the pipeline on it, and return its figures as the cells of a row."""
    project = folder / "project"
    prepare(Path.cwd(), project)
    own = {"dataset.name": "folder", "dataset.folder.path": str(folder / "pictures"), "train.epochs": epochs}
    own["preprocess.validation_split"] = "stratified"
    choose(project / "params.yaml", {**own, **write(folder / "pictures", pictures), **more})
    run(["dvc", "repro", "--quiet"], project)
    figures = parse_figures((project / "metrics/evaluation.csv").read_bytes(), "evaluation.csv")
    with (project / "metrics/per_class.csv").open(newline="") as file:
        recalls = [float(each["recall"]) for each in csv.DictReader(file)]
    statistics = json.loads((project / "data/processed/statistics.json").read_bytes())
    cells = [
        f"{statistics['splits']['train']['images']:,}",
        str(len(recalls)),
        f"{figures['test_images']:,}",
        f"{figures['accuracy']:.3f}",
        f"{figures['balanced_accuracy']:.3f}" if "balanced_accuracy" in figures else "",
        f"{min(recalls):.2f}",
    ]
    return " | ".join(cells)


def first(pictures: Pictures, classes: int) -> Pictures:
    """Return the first classes."""
    return dict(list(pictures.items())[:classes])


def save(image: NDArray[np.uint8], path: Path) -> None:
    """Write a picture in the format of its suffix, and its folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=95)


if __name__ == "__main__":
    sys.exit(failure.run("layouts", main))
