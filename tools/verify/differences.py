"""Describes the differences between two versions of an output: which array, weight, figure or column, how much."""

import csv
import hashlib
import io
import json
import math
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from stages.common.failure import StageError
from stages.common.figures import HEADER, flat, parse_figures

CHUNK = 1 << 22  # array elements compared at a time, so that two large arrays need no third and fourth
NAMED = 3  # differences that a sentence names; it counts the rest


@dataclass(frozen=True)
class Change:
    """A figure that differs, by its dotted name, or by its column and, in `where`, its row. None: missing."""

    name: str
    where: str
    old: Any
    new: Any


def digest(path: Path) -> str:
    """Return the MD5 of a file, as in DVC."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def describe(path: str, old: Path, new: Path) -> str:
    """Describe how the output `path` differs; raises `StageError` when a file cannot be read."""
    with _readable(path):
        differences = list(_DESCRIBED.get(Path(path).suffix, _bytes)(old, new))
        # The same content in other bytes: zip details, the order of keys, digits of a number.
        differences = differences or [f"the same content; {next(_bytes(old, new))}"]
    more = f"; and {len(differences) - NAMED} more" if len(differences) > NAMED else ""
    return "; ".join(differences[:NAMED]) + more


def changed_figures(path: str, old: Path, new: Path) -> list[Change]:
    """Return the figures of a JSON or CSV output that differ; raises `StageError` when a file cannot be read."""
    with _readable(path):
        return _in_json(old, new) if path.endswith(".json") else _in_csv(old, new)


def _in_json(old: Path, new: Path) -> list[Change]:
    a, b = (flat(json.loads(path.read_bytes())) for path in (old, new))
    return _changes(a, b)


def _changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Change]:
    return [Change(key, "", a.get(key), b.get(key)) for key in {**a, **b} if not _equal(a.get(key), b.get(key))]


def _in_csv(old: Path, new: Path) -> list[Change]:
    if new.read_text("utf-8").startswith(f"{','.join(HEADER)}\n"):
        a, b = (parse_figures(path.read_bytes(), path.name) for path in (old, new))
        return _changes(a, b)
    first, second = (list(csv.DictReader(io.StringIO(path.read_text("utf-8")))) for path in (old, new))
    if len(first) != len(second):
        return [Change("rows", "", len(first), len(second))]
    return [
        Change(column, f"row {number}", _number(a.get(column)), _number(b.get(column)))
        for number, (a, b) in enumerate(zip(first, second, strict=True), 1)
        for column in {**a, **b}
        if a.get(column) != b.get(column)
    ]


def in_words(change: Change) -> str:
    """Return a description: the figure, both values and the difference."""
    name = f"{change.name} in {change.where}" if change.where else change.name
    by = ""
    if is_number(change.old) and is_number(change.new):
        by = f" ({change.new - change.old:+.3g})"
    return f"{name} {_text(change.old)}, now {_text(change.new)}{by}"


def is_number(value: Any) -> bool:
    """Return whether `value` is a number that a float can hold; booleans are not."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return isinstance(value, float) or abs(value) <= sys.float_info.max


def _arrays(old: Path, new: Path) -> Iterator[str]:
    with np.load(old) as a, np.load(new) as b:
        for name in sorted({*a, *b}):
            yield from _array(f"array {name}", a.get(name), b.get(name))


def _weights(old: Path, new: Path) -> Iterator[str]:
    """Compare two .keras archives, which hold the weights as HDF5, one dataset per weight."""
    with zipfile.ZipFile(old) as a, zipfile.ZipFile(new) as b:
        with closing(_hdf5(a)) as one, closing(_hdf5(b)) as other:
            first, second = _datasets(one), _datasets(other)
            for name in sorted(first | second):
                yield from _array(f"weight {name}", first.get(name), second.get(name))
        for name in sorted({*a.namelist(), *b.namelist()} - {"model.weights.h5"}):
            if name not in a.namelist() or name not in b.namelist() or a.read(name) != b.read(name):
                yield f"{name} in the archive"


def _hdf5(archive: zipfile.ZipFile) -> Any:
    return h5py.File(io.BytesIO(archive.read("model.weights.h5")), "r")


def _datasets(file: Any) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    file.visititems(visit)
    return found


def _array(name: str, old: NDArray[Any] | None, new: NDArray[Any] | None) -> Iterator[str]:
    if old is None or new is None:
        yield f"{name} only in the {'new' if old is None else 'old'}"
    elif old.shape != new.shape or old.dtype != new.dtype:
        yield f"{name} {old.dtype} {old.shape}, now {new.dtype} {new.shape}"
    elif not np.issubdtype(old.dtype, np.number):
        if not np.array_equal(old, new):
            yield f"{name} has other values"
    else:
        a, b = old.reshape(-1), new.reshape(-1)
        count, largest = 0, 0.0
        for start in range(0, len(a), CHUNK):
            part = slice(start, start + CHUNK)
            other = a[part] != b[part]
            if np.issubdtype(a.dtype, np.inexact):
                other &= ~(np.isnan(a[part]) & np.isnan(b[part]))
            count += int(other.sum())
            gaps = np.abs(a[part][other].astype(np.float64) - b[part][other].astype(np.float64))
            largest = max(largest, float(gaps.max(initial=0.0)) if not np.isnan(gaps).any() else math.inf)
        if count:
            yield f"{name} {old.shape}: {count:,} of {old.size:,} values differ, by at most {largest:.3g}"


def _bytes(old: Path, new: Path) -> Iterator[str]:
    a, b = old.read_bytes(), new.read_bytes()
    first = next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    line = a.count(b"\n", 0, first) + 1
    yield f"{len(a):,} bytes, now {len(b):,}, the first that differs is byte {first:,}, in line {line:,}"


@contextmanager
def _readable(path: str) -> Iterator[None]:
    try:
        yield
    # Whatever can happen with files that do not have the format of their name.
    except (ValueError, AttributeError, TypeError, KeyError, zipfile.BadZipFile, csv.Error, OSError) as error:
        raise StageError(f"one of the two files cannot be read as {Path(path).suffix} ({error})") from None


def _equal(a: Any, b: Any) -> bool:
    # Types count, because 1 == True. NaN differs from itself, so it is always reported.
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


def _number(text: str | None) -> Any:
    try:
        return text if text is None else float(text)
    except ValueError:
        return text


def _text(value: Any) -> str:
    if value is None:
        return "missing"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 24 else f"{text[:12]}…"


_DESCRIBED: dict[str, Callable[[Path, Path], Iterable[str]]] = {
    ".npz": _arrays,
    ".keras": _weights,
    ".json": lambda old, new: map(in_words, _in_json(old, new)),
    ".csv": lambda old, new: map(in_words, _in_csv(old, new)),
}
