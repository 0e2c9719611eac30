"""Labels that are probably wrong, by confident learning (Northcutt, Jiang and Chuang 2021, section 3.1)."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from stages.common.failure import StageError
from stages.common.outputs import replacing, write_json
from tools.audit.data import Data
from tools.audit.folds import cross_fitted
from tools.audit.page import page, picture
from tools.predict.models import find_model
from tools.report.markup import element, join

SHOWN = 200  # images on the page
STEP = 512  # images between two movements of the progress bar

Row = tuple[str, int, int, int, float]


def suspicious(
    labels: NDArray[np.integer[Any]], probabilities: NDArray[np.floating[Any]]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return the images with a probably wrong label, int64 (M,), their likely labels and scores, float64 (M,).

    labels: (N,); probabilities: (N, classes), of a model that was not fitted to the images. A class's threshold
    is the mean probability that the images with its label have for it. An image counts as a member of the most
    probable class of those whose threshold it reaches; if this is not its label, the label is suspicious. Score:
    the probability of the likely label minus that of the given one; the highest come first.
    """
    classes = probabilities.shape[1]
    values = probabilities.astype(np.float64)
    thresholds = np.array(
        [values[labels == label, label].mean() if (labels == label).any() else np.inf for label in range(classes)]
    )
    confident = np.where(values >= thresholds - 1e-6, values, -1)
    likely = confident.argmax(axis=1)
    everything = np.arange(len(labels))
    found = np.flatnonzero((confident[everything, likely] >= 0) & (likely != labels))
    scores = values[found, likely[found]] - values[found, labels[found]]
    order = np.argsort(-scores, kind="stable")
    return found[order], likely[found][order], scores[order]


def audit(data: Data, out: Path, folds: int) -> tuple[list[str], list[Row]]:
    """Write labels.html, labels.csv and labels.json; return a summary and the suspicious labels."""
    model, record, _ = find_model(data.folder, data.folder / "models" / "model.keras", exact=True)
    run = model.open()
    if record.dataset != data.source.dataset or record.classes != data.source.classes:
        raise StageError("the model was trained on other data than data/raw; run: dvc repro")
    train, test = data.splits["train"], data.splits["test"]
    indices = {"test": np.arange(len(test.labels))}
    if len(data.held_out):  # none after a final fit
        indices["train"] = data.held_out
    probabilities = {}
    with tqdm(total=sum(map(len, indices.values())), desc="images", unit="", leave=False, disable=None) as bar:
        for name in indices if not folds else ("test",):
            parts = []
            for start in range(0, len(indices[name]), STEP):
                images, _ = data.splits[name].take(indices[name][start : start + STEP])
                parts.append(run(images))
                bar.update(len(images))
            probabilities[name] = np.concatenate(parts)
    if folds:
        indices["train"], probabilities["train"] = np.arange(len(train.labels)), cross_fitted(data, out, folds)
    rows: list[Row] = []
    for name, of_split in probabilities.items():
        found, likely, scores = suspicious(data.splits[name].labels[indices[name]], of_split)
        given = data.splits[name].labels[indices[name][found]]
        columns = (indices[name][found], given, likely, scores.round(6))
        rows += [(name, *row) for row in zip(*(column.tolist() for column in columns), strict=True)]
    rows.sort(key=lambda row: -row[4])
    _write(data, out, rows)
    counts = {name: sum(row[0] == name for row in rows) for name in probabilities}
    titles = {"test": "test", "train": "training" if folds else "validation"}
    lines = [
        f"{titles[name]}: {count:,} of {len(indices[name]):,} labels are suspicious"
        for name, count in counts.items()
    ]
    if not folds and not len(data.held_out):
        lines.append("There are no validation images to audit (preprocess.validation_fraction: 0)")
    if not folds:
        lines.append("The images that the model was trained on were not audited; to train five models: --folds 5")
    summary = {f"suspicious_{name}": count for name, count in counts.items()}
    summary |= {f"audited_{name}": len(indices[name]) for name in probabilities}
    write_json(out / "labels.json", {"model_sha256": record.sha256, "folds": folds, **summary})
    return lines, rows


def _write(data: Data, out: Path, rows: list[Row]) -> None:
    classes = data.source.classes
    paths = data.paths() if rows else None
    with replacing(out / "labels.csv") as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*(["path"] if paths else []), "label", "given", "score", "split", "index"])
        for split, index, given, likely, score in rows:
            path = [paths[split][index]] if paths else []
            writer.writerow([*path, classes[likely], classes[given], score, split, index])
    shown = [
        element(
            "li",
            picture(
                data.splits[split].images[index],
                f"{split} {index}: {classes[given]}, likely {classes[likely]} ({score:.3f})",
            ),
        )
        for split, index, given, likely, score in rows[:SHOWN]
    ]
    body = [
        element(
            "p",
            f"{len(shown):,} of {len(rows):,} suspicious labels, most suspicious first; all: labels.csv",
        ),
        element(
            "p",
            "Each picture: split and index in data/raw, given label, likely label, in brackets the probability"
            " of the likely label minus that of the given one",
        ),
        element("ul", join(shown), class_="gallery"),
    ]
    page(out / "labels.html", "Labels that are probably wrong", body)
