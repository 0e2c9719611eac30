"""Pictures that occur twice: the pairs of all splits, as a page and tables."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

from stages.common.outputs import replacing, write_json
from stages.datasets.grouping import connected
from stages.evaluation import duplicates
from tools.audit.data import Data
from tools.audit.page import page, picture
from tools.report.markup import element, join, table

SHOWN = 200  # pairs on the page
Pair = tuple[str, int, str, int, float]


def audit(data: Data, out: Path) -> tuple[list[str], list[Pair]]:
    """Write leaks.html, .csv, .json and, for own pictures, groups.csv; return a summary and the pairs."""
    pairs, skipped = find(data, out)
    counts = Counter((f"{pair[0]} - {pair[2]}", "identical" if pair[4] == 1 else "near") for pair in pairs)
    kinds = ("test - train", "train - train", "test - test")
    tested = {pair[1] for pair in pairs if pair[0] != pair[2]}
    held_out = set(data.held_out.tolist())
    crossing = {
        min(pair[1], pair[3], key=lambda index: index not in held_out)
        for pair in pairs
        if pair[0] == pair[2] == "train" and (pair[1] in held_out) != (pair[3] in held_out)
    }
    lines = [
        f"{kind}: {counts[kind, 'identical']:,} identical and {counts[kind, 'near']:,} near pairs"
        for kind in kinds
    ]
    total = len(data.splits["test"].labels)
    lines.append(f"{len(tested):,} of {total:,} test images have a partner in training")
    lines.append(f"{len(crossing):,} validation images have a partner among the other training images")
    lines += skipped
    paths = data.paths() if pairs else None
    if paths:
        _write_groups(out / "groups.csv", pairs, paths)
        lines.append(
            f"To keep near copies on one side: copy {out}/groups.csv to your pictures and set "
            "dataset.folder.groups to groups.csv"
        )
    with replacing(out / "leaks.csv") as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        header = ["split", "index", "partner_split", "partner_index", "similarity"]
        writer.writerow(header + (["path", "partner_path"] if paths else []))
        for pair in pairs:
            named = [paths[pair[0]][pair[1]], paths[pair[2]][pair[3]]] if paths else []
            writer.writerow([*pair, *named])
    write_json(
        out / "leaks.json",
        {
            "dataset_sha256": data.source.dataset.sha256,
            "pairs": {f"{kind}, {how}": counts[kind, how] for kind in kinds for how in ("identical", "near")},
            "test_images": total,
            "test_images_with_partner_in_training": len(tested),
            "validation_images_with_partner_in_training": len(crossing),
        },
    )
    numbers = table(
        "Pairs by split",
        ["splits", "identical", "near"],
        [[kind, f"{counts[kind, 'identical']:,}", f"{counts[kind, 'near']:,}"] for kind in kinds],
        "-nn",
    )
    shown = [
        element(
            "li",
            join(
                [
                    *(_shown(data, *side) for side in (pair[:2], pair[2:4])),
                    element("span", f"similarity {pair[4]:.4f}"),
                ]
            ),
        )
        for pair in pairs[:SHOWN]
    ]
    what = f"The {len(shown)} most similar of {len(pairs):,} pairs" if len(pairs) > SHOWN else "All pairs"
    body = [
        *(element("p", line) for line in lines[len(kinds) :]),  # the first ones are in the table
        numbers,
        element("h2", what),
        element("p", "Similarity 1 means identical pixels. All pairs are in leaks.csv."),
        element("ul", join(shown), class_="gallery"),
    ]
    page(out / "leaks.html", "Pictures that occur twice", body)
    return lines, pairs


def find(data: Data, scratch: Path) -> tuple[list[Pair], list[str]]:
    """Return the pairs, most similar first, and notes on what was left out.

    Each test image is paired with its most similar training image, and each image with the most similar one of its
    own split.
    """
    train, test = data.splits["train"], data.splits["test"]
    best: dict[tuple[str, int, str, int], float] = {}
    notes = []
    near = min(train.images.shape[1:3]) >= duplicates.SMALLEST
    if not near:
        notes.append(f"Only identical pixels: pictures below {duplicates.SMALLEST} pixels have no near copies")
    amount = 3 * len(test.labels) + 2 * len(train.labels) if near else 0
    bar = tqdm(total=amount, desc="pictures", unit="", leave=False, disable=None)
    with (
        bar,
        duplicates.describe(test, scratch, bar.update) as tests,
        duplicates.describe(train, scratch, bar.update) as trains,
    ):
        for left, right, queries, references in (
            ("test", "train", tests, trains),
            ("train", "train", trains, trains),
            ("test", "test", tests, tests),
        ):
            if near:
                partner, similarity = duplicates.partners(queries, references, bar.update)
            if not near or (similarity > 0).mean() > 0.5:
                partner = duplicates.identical(queries.images, references.images)
                similarity = np.where(partner >= 0, 1.0, 0.0)
                if near:
                    notes.append(f"{left} - {right}: only identical pixels, as most pictures are alike")
            for index in np.flatnonzero(partner >= 0).tolist():
                pair = sorted([index, int(partner[index])]) if left == right else [index, int(partner[index])]
                key = (left, pair[0], right, pair[1])
                best[key] = max(best.get(key, 0.0), float(similarity[index]))
    pairs = [(*key, similarity) for key, similarity in best.items()]
    return sorted(pairs, key=lambda pair: (-pair[4], pair[0] == pair[2], pair)), notes


def _write_groups(path: Path, pairs: list[Pair], paths: dict[str, list[str]]) -> None:
    """Write the table for `dataset.folder.groups`: each chain of pairs is a group."""
    names = sorted({paths[split][index] for pair in pairs for split, index in (pair[:2], pair[2:4])})
    keys: dict[str, list[int]] = {name: [] for name in names}
    for number, pair in enumerate(pairs):
        for split, index in (pair[:2], pair[2:4]):
            keys[paths[split][index]].append(number)
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([("path", "group"), *zip(names, connected(keys.values()), strict=True)])


def _shown(data: Data, split: str, index: int) -> object:
    label = data.source.classes[data.splits[split].labels[index]]
    return picture(data.splits[split].images[index], f"{split} {index}, {label}")
