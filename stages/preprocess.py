"""Stage 2: scale the pixels, one-hot the labels, and set part of the training images aside for validation.

Run as `python -m stages.preprocess`, with the options of `--help`; `dvc repro` does. Reads train.npz,
test.npz and source.json of data/raw; writes train.npz, validation.npz, test.npz and statistics.json, which
says what they are, to data/processed. The memory it needs does not grow with the images.
"""

import argparse
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from stages import failure, splits
from stages.exclusive import exclusive
from stages.failure import StageError
from stages.outputs import require_space, write_json
from stages.params import Section, load
from stages.records import Source, SplitRecord, Statistics, read_record, read_split


class PreprocessParams(Section):
    """`preprocess` of params.yaml."""

    scaling: Literal["unit", "standardize"]
    validation_fraction: float = Field(gt=0, le=0.5)
    validation_split: Literal["last", "stratified"]
    seed: int = Field(ge=0)


def main(arguments: Sequence[str]) -> None:
    """Parse, load, call; `preprocess` saves."""
    options = _parse(arguments)
    params = load(options.params, "preprocess", PreprocessParams)
    with exclusive(options.out):
        preprocess(options.raw, options.out, params)


def preprocess(raw: Path, out: Path, params: PreprocessParams) -> None:
    """Write the processed splits of the raw ones to `out`.

    Raises `StageError` when what is in `raw` is not what source.json says, when a split would be empty or
    cannot be standardized, and when the disk is too full.
    """
    source = read_record(raw / "source.json", Source)
    train, test = read_split(raw, "train", source), read_split(raw, "test", source)
    shape, classes = train.images.shape[1:], len(source.classes)
    if test.images.shape[1:] != shape:
        found = test.images.shape[1:]
        raise splits.changed(raw / "test.npz", f"images of {shape}, as in train.npz, expected, {found} found")
    kept, held_out = choose_validation(train.labels, params)
    parts = {
        "train": (train, kept, source.splits["train"]),
        "validation": (train, held_out, source.splits["train"]),
        "test": (test, np.arange(len(test.labels)), source.splits["test"]),
    }
    size = sum(len(indices) * (math.prod(shape) + classes) * 4 + 4096 for _, indices, _ in parts.values())
    require_space(out, size)

    mean, std = channel_statistics(train, kept)
    by_channel = (mean, std) if params.scaling == "standardize" else None
    records = {}
    for name, (split, indices, record) in parts.items():
        labels = split.labels[indices]
        images = splits.Parts((len(indices), *shape), scale(split.chunks(indices), by_channel))
        records[name] = SplitRecord(
            images=len(indices),
            shape=list(shape),
            class_counts=np.bincount(labels, minlength=classes).tolist(),
            official=int(np.count_nonzero(indices < record.official)),  # the first: indices ascend
            sha256=splits.write(out / f"{name}.npz", images, np.eye(classes, dtype=np.float32)[labels]),
        )
    statistics = Statistics(
        dataset=source.dataset,
        classes=source.classes,
        scaling=params.scaling,
        mean=mean,
        std=std,
        splits=records,
    )
    write_json(out / "statistics.json", statistics.model_dump())


def choose_validation(
    labels: NDArray[np.uint8], params: PreprocessParams
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the ascending indices, int64, of the images to train on and of those held out for validation.

    labels: uint8 (N,). As many are held out as by Keras's `validation_split`. "last": the last ones.
    "stratified": of each class its share, by largest remainder, drawn with `seed`.
    """
    total = len(labels)
    held_out = total - math.floor(total * (1 - params.validation_fraction))
    if not 0 < held_out < total:
        raise StageError(
            f"preprocess.validation_fraction: {params.validation_fraction} of {total} images leaves "
            f"{total - held_out} to train on and {held_out} for validation; use another fraction"
        )
    chosen = np.zeros(total, dtype=bool)
    if params.validation_split == "last":
        chosen[total - held_out :] = True
    else:
        counts = np.bincount(labels)
        quotas, remainders = np.divmod(counts * held_out, total)
        quotas[np.argsort(-remainders, kind="stable")[: held_out - quotas.sum()]] += 1
        # Sorting raw words, as NumPy promises PCG64's stream for ever, but not that of permutation().
        order = np.argsort(np.random.PCG64(params.seed).random_raw(total), kind="stable")
        for label, quota in enumerate(quotas):
            chosen[order[labels[order] == label][:quota]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def channel_statistics(split: splits.Split, indices: NDArray[np.int64]) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation by channel, of pixel / 255 over the images at `indices`.

    Sums of integers are exact, so neither the order of adding nor the machine can change them.
    """
    height, width, channels = split.images.shape[1:]
    totals = np.zeros((2, channels), np.uint64)
    for chunk in split.chunks(indices):
        rows = chunk.reshape(len(chunk), -1)
        # First along the images, as NumPy adds long rows quickest, in uint32, which holds 2**16 times 255**2;
        # then over the pixels of each channel.
        values = rows.sum(axis=0, dtype=np.uint32)
        squares = np.square(rows, dtype=np.uint16).sum(axis=0, dtype=np.uint32)
        totals += np.stack([values, squares]).reshape(2, -1, channels).sum(axis=1, dtype=np.uint64)
    count = len(indices) * height * width
    pairs = list(zip(*totals.tolist(), strict=True))
    mean = [value / (255 * count) for value, _ in pairs]
    std = [math.sqrt(count * square - value * value) / (255 * count) for value, square in pairs]
    return mean, std


def scale(
    chunks: Iterable[NDArray[np.uint8]], by_channel: tuple[Sequence[float], Sequence[float]] | None
) -> Iterator[NDArray[np.float32]]:
    """Yield uint8 (n, H, W, C) chunks as float32: x / 255, and with (mean, std) then (x - mean) / std.

    Each is one float32 operation, which IEEE 754 rounds alike on every machine. Raises `StageError` when a
    deviation is zero.
    """
    mean, std = (np.asarray(values, np.float32) for values in by_channel or ((0,), (1,)))
    if not std.all():
        raise StageError(
            f"preprocess.scaling: channel {std.argmin()} is constant in the training images, which cannot be "
            "standardized; use: unit"
        )
    for chunk in chunks:
        scaled = np.divide(chunk, np.float32(255), dtype=np.float32)
        if by_channel:
            scaled -= mean
            scaled /= std
        yield scaled


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stages.preprocess", description=__doc__.partition("\n")[0])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the pipeline's choices")
    parser.add_argument("--raw", type=Path, default=Path("data/raw"), help="folder of the raw splits")
    parser.add_argument("--out", type=Path, default=Path("data/processed"), help="folder of the results")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(failure.run("preprocess", main))
