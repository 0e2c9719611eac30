"""Stage 2: scales the pixels, one-hot encodes the labels, and splits validation images off the training images.

    python -m stages.preprocess --raw data/raw --out data/processed

Reads train.npz, test.npz and source.json; writes train.npz, validation.npz, test.npz and statistics.json, which
describes them. Memory use does not depend on the number of images.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from stages.common import failure, splits
from stages.common.drawing import draw
from stages.common.exclusive import exclusive
from stages.common.failure import StageError
from stages.common.final_fit import check_final_fit
from stages.common.outputs import require_space, write_json
from stages.common.params import Section, load
from stages.common.records import Source, SplitRecord, Statistics, read_record, read_split
from stages.common.scaling import channel_statistics, check_variation, scale


class PreprocessParams(Section):
    """`preprocess` of params.yaml."""

    scaling: Literal["unit", "standardize"]
    validation_fraction: float = Field(ge=0, le=0.5)  # 0: a final fit on all training images
    validation_split: Literal["last", "stratified"]
    seed: int = Field(ge=0)
    storage: Literal["float32", "uint8"]  # uint8: a quarter of the disk; train and evaluate scale when they read


def main(arguments: Sequence[str]) -> None:
    """Parse, load, call."""
    options = _parse(arguments)
    params = load(options.params, "preprocess", PreprocessParams)
    if not params.validation_fraction:
        check_final_fit(options.params)
    with exclusive(options.out):
        preprocess(options.raw, options.out, params)


def preprocess(raw: Path, out: Path, params: PreprocessParams) -> None:
    """Read the raw splits in `raw` and write the processed ones to `out`.

    Raises `StageError` when the raw splits do not match source.json, when a split would be empty or cannot be
    standardized, and when the disk is too full.
    """
    source = read_record(raw / "source.json", Source)
    train, test = read_split(raw, "train", source), read_split(raw, "test", source)
    shape, classes = train.images.shape[1:], len(source.classes)
    if test.images.shape[1:] != shape:
        found = test.images.shape[1:]
        raise splits.damaged(raw / "test.npz", f"expected images {shape}, as in train.npz, found {found}")
    own = source.validation_images
    if own and params.validation_fraction:
        kept, held_out = np.split(np.arange(len(train.labels)), [-own])
        print(
            f"preprocess: the dataset has its own {own:,} validation images; validation_fraction is not used",
            file=sys.stderr,
        )
    else:
        if own:
            print(
                f"preprocess: preprocess.validation_fraction is 0: the dataset's own {own:,} validation images "
                "are used for training",
                file=sys.stderr,
            )
        kept, held_out = choose_validation(train.labels, params, source.together or ())
    chosen = {
        "train": (train, kept, source.splits["train"]),
        "validation": (train, held_out, source.splits["train"]),
        "test": (test, np.arange(len(test.labels)), source.splits["test"]),
    }
    image_bytes = math.prod(shape) * np.dtype(params.storage).itemsize + classes * 4
    size = sum(len(indices) * image_bytes + 4096 for _, indices, _ in chosen.values())
    require_space(out, size)

    mean, std = channel_statistics(train, kept)
    by_channel = (mean, std) if params.scaling == "standardize" else None
    if by_channel:
        check_variation(std)
    records = {}
    for name, (split, indices, record) in chosen.items():
        labels = split.labels[indices]
        chunks = split.chunks(indices)
        images = splits.ChunkedArray(
            (len(indices), *shape),
            np.dtype(params.storage),
            chunks if params.storage == "uint8" else scale(chunks, by_channel),
        )
        records[name] = SplitRecord(
            images=len(indices),
            shape=list(shape),
            class_counts=np.bincount(labels, minlength=classes).tolist(),
            official=int(np.count_nonzero(indices < record.official)),  # the first ones: indices ascend
            sha256=splits.write(out / f"{name}.npz", images, _one_hot(labels, classes)),
        )
    statistics = Statistics(
        dataset=source.dataset,
        classes=source.classes,
        decoding=source.decoding,
        scaling=params.scaling,
        mean=mean,
        std=std,
        storage="uint8" if params.storage == "uint8" else None,
        splits=records,
    )
    write_json(out / "statistics.json", statistics.model_dump(exclude_none=True))


def _one_hot(labels: NDArray[np.integer[Any]], classes: int) -> splits.ChunkedArray:
    rows = max(1, splits.CHUNK // (4 * classes))
    chunks = (
        (labels[start : start + rows, None] == np.arange(classes)).astype(np.float32)
        for start in range(0, len(labels), rows)
    )
    return splits.ChunkedArray((len(labels), classes), np.dtype(np.float32), chunks)


def choose_validation(
    labels: NDArray[np.integer[Any]], params: PreprocessParams, together: Sequence[tuple[int, int]] = ()
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the ascending int64 indices of the images for training and of those for validation.

    labels: uint8 or uint16 (N,). Holds out as many images as Keras's `validation_split` would. "last": the last
    ones. "stratified": the same fraction of each class, by largest remainder, drawn with `seed`. `together`:
    starts and stops of runs of images that stay on one side, so the fraction can differ a little.
    """
    total = len(labels)
    if not params.validation_fraction:
        return np.arange(total), np.arange(0)
    held_out = total - math.floor(total * (1 - params.validation_fraction))
    if not 0 < held_out < total:
        raise StageError(
            f"preprocess.validation_fraction: {params.validation_fraction} of {total} images leaves "
            f"{total - held_out} for training and {held_out} for validation; use another fraction"
        )
    chosen = np.zeros(total, dtype=bool)
    if params.validation_split == "last":
        cut = total - held_out
        for start, stop in together:
            if start < cut < stop:
                cut = min(
                    (end for end in (start, stop) if 0 < end < total), key=lambda end: abs(end - cut), default=cut
                )
                break
        chosen[cut:] = True
    else:
        counts = np.bincount(labels)
        quotas, remainders = np.divmod(counts * held_out, total)
        quotas[np.argsort(-remainders, kind="stable")[: held_out - quotas.sum()]] += 1
        # NumPy guarantees the stream of PCG64 across versions, but not the result of permutation().
        order = np.argsort(np.random.PCG64(params.seed).random_raw(total), kind="stable")
        if together:
            units = _units(order, together)
            drawn = draw([labels[unit].tolist() for unit in units], quotas.tolist(), counts.tolist())
            for position in drawn:
                chosen[units[position]] = True
        else:
            for label, quota in enumerate(quotas):
                chosen[order[labels[order] == label][:quota]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _units(order: NDArray[np.int64], together: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Return the positions of each run, and of each other image by itself, in the order of their first images."""
    runs = {start: list(range(start, stop)) for start, stop in together}
    inside = {position for run in runs.values() for position in run[1:]}
    return [runs.get(position, [position]) for position in order.tolist() if position not in inside]


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stages.preprocess", description=__doc__.partition("\n")[0])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the params file")
    parser.add_argument("--raw", type=Path, default=Path("data/raw"), help="folder of the raw splits")
    parser.add_argument("--out", type=Path, default=Path("data/processed"), help="folder of the results")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(failure.run("preprocess", main))
