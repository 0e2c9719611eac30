"""A person's own pictures: a folder, or a .zip or .tar of one. docs/own-pictures.md shows what it can contain.

`layout` finds classes and splits, `stages.common.pictures` decodes. The decoded pixels go to a temporary file in
file order and from there into the splits in their final order, so that memory holds only names and hashes.
"""

import hashlib
import math
import os
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator
from tqdm import tqdm

from stages.common import splits
from stages.common.drawing import draw
from stages.common.failure import StageError
from stages.common.outputs import replacing, require_space
from stages.common.params import Section
from stages.common.pictures import Decoding, Unreadable, decode, used_bits
from stages.datasets import Dataset, Images
from stages.datasets.filetree import FileTree, open_tree
from stages.datasets.grouping import connected, group_keys
from stages.datasets.layout import Role, Table, arrange, normal, relabeled

UNREADABLE = Path("logs/unreadable-pictures.txt")
BATCH = 16  # pictures that a thread decodes at a time


class Labels(Section):
    """`dataset.folder.labels` of params.yaml: a CSV file, and its columns unless they have the usual names."""

    file: str = ""
    path: str | None = None
    label: str | None = None
    split: str | None = None


class Params(Section):
    """`dataset.folder` of params.yaml."""

    path: str = Field("pictures", min_length=1, description="relative to the repository")
    # Height and width. Not named `size`: DVC's run cache ignores keys of that name, and would restore pictures of
    # another size.
    pixels: list[Annotated[int, Field(ge=1, le=4096)]]
    channels: int  # 1 or 3; a Literal would accept true for 1
    resize: Literal["stretch", "crop", "pad"]
    labels: Labels
    exclude: list[str]
    val_as: Literal["test", "train"]
    test_fraction: float = Field(gt=0, lt=1)
    seed: int = Field(ge=0)
    skip_unreadable: bool
    groups: list[str]  # regular expressions or CSV files; one can stand without a list
    relabel: str  # a CSV file, or nothing

    @field_validator("pixels", mode="before")
    @classmethod
    def _square(cls, pixels: Any) -> Any:
        if not (type(pixels) is int or (isinstance(pixels, list) and len(pixels) == 2)):
            raise ValueError(f"it should be one number or [height, width], found {pixels!r}")
        return [pixels, pixels] if type(pixels) is int else pixels

    @field_validator("channels")
    @classmethod
    def _grey_or_rgb(cls, channels: int) -> int:
        if channels not in (1, 3):
            raise ValueError(f"it should be 1 (grey) or 3 (RGB), found {channels}")
        return channels

    @field_validator("groups", mode="before")
    @classmethod
    def _one_rule(cls, groups: Any) -> Any:
        return [groups] if isinstance(groups, str) and groups else groups or []

    @field_validator("groups")
    @classmethod
    def _regular_expressions(cls, groups: list[str]) -> list[str]:
        for rule in groups:
            try:
                re.compile(rule)
            except re.error as error:
                raise ValueError(f"{rule!r} is not a regular expression ({error})") from None
        return groups

    @field_validator("labels", mode="before")
    @classmethod
    def _file_only(cls, labels: Any) -> Any:
        return {"file": labels} if isinstance(labels, str) else labels


@dataclass(frozen=True)
class Picture:
    """A decoded picture: name, split, label, the SHA-256 of its file, and its position in the pixel file.

    pixels: a digest of its decoded pixels; unit: pictures with the same one must be on the same side of a split.
    """

    name: str
    split: Role
    label: int
    sha256: str
    position: int
    pixels: bytes
    unit: int


@contextmanager
def load(params: Params, scratch: Path) -> Iterator[Dataset]:
    """Yield the pictures in `params.path`; `scratch` is a folder for a temporary file of their pixels.

    The order of a split follows from the seed and the content of the pictures: classes are mixed, since the last
    training images may be held out for validation; names and file systems have no influence; identical pictures
    are adjacent; and adding a picture leaves the others almost as they were. `sha256` is the SHA-256 of the lines
    `HASH  NAME` that `sha256sum` prints, sorted by name.

    Raises `StageError` when classes or splits cannot be found, and for unreadable pictures, unless
    `params.skip_unreadable`.
    """
    root = params.path.rstrip("/")
    height, width = params.pixels
    rules = Decoding(height=height, width=width, channels=params.channels, resize=params.resize)
    with tempfile.TemporaryFile(dir=scratch, buffering=0) as file:
        with closing(open_tree(Path(params.path))) as tree:
            table = _read_labels(root, tree, params.labels)
            layout = arrange(root, tree.names, exclude=params.exclude, val_as=params.val_as, table=table)
            tables = [table] if table else []
            if params.relabel:
                corrections = _read_table(root, tree, params.relabel, "relabel")
                layout = relabeled(root, layout, corrections)
                tables.append(corrections)
            groupings = [
                _read_table(root, tree, rule, "groups") if rule.endswith(".csv") else rule
                for rule in params.groups
            ]
            keys, group_notes = group_keys(root, list(layout.pictures), groupings)
            for note in [*layout.notes, *group_notes]:
                print(f"{root}: {note}", file=sys.stderr)
            names = sorted(layout.pictures, key=lambda name: (normal(name), name))
            pixels = _PixelFile(file, (height, width, params.channels))
            require_space(scratch, 2 * len(names) * pixels.size)  # this file, and the splits
            digests, copies, reasons, rules = pixels.fill(root, tree, names, rules)
        if reasons:
            unreadable = {names[index]: reason for index, reason in reasons.items()}
            _report_unreadable(root, unreadable, len(names), params.skip_unreadable)
        classes = tuple(sorted({label for _, label in layout.pictures.values()}))
        number = {name: label for label, name in enumerate(classes)}
        units = connected([copies[index] or index, *keys[name]] for index, name in enumerate(names))
        pictures = [
            Picture(normal(name), split, number[label], digests[index], index, copies[index], units[index])
            for index, name in enumerate(names)
            if index not in reasons
            for split, label in [layout.pictures[name]]
        ]
        for note in _contradictions(pictures, classes):
            print(f"{root}: warning: {note}", file=sys.stderr)
        train, validation, test = _split(root, pictures, len(classes), params)
        _check_classes(root, classes, train, test)
        lines = [(picture.sha256, picture.name) for picture in pictures]
        lines += [(table.sha256, normal(table.name)) for table in tables]
        edition = f"pictures of your own: {len(pictures):,} files in {root}{'/' if Path(root).is_dir() else ''}"
        yield Dataset(
            name="folder",
            sha256=_digest(lines),
            edition=edition + (f", {len(reasons):,} skipped" if reasons else ""),
            classes=classes,
            train=pixels.images([*train, *validation], len(classes)),
            test=pixels.images(test, len(classes)),
            validation=len(validation),
            together=() if validation else _together(train),
            decoding=rules,
        )


def _read_labels(root: str, tree: FileTree, labels: Labels) -> Table | None:
    if not labels.file:
        return None
    columns = {"path": labels.path, "label": labels.label, "split": labels.split}
    return replace(_read_table(root, tree, labels.file, "labels"), columns=columns)


def _read_table(root: str, tree: FileTree, name: str, key: str) -> Table:
    if name not in tree.names:
        tables = ", ".join([name for name in tree.names if name.lower().endswith(".csv")][:5]) or "none"
        raise StageError(f"{root}/{name}: no such file (dataset.folder.{key}); CSV files there: {tables}")
    with tree.open(name) as file:
        content = file.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise StageError(f"{root}/{name}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    return Table(name, text, sha256=hashlib.sha256(content).hexdigest())


class _PixelFile:
    """Decoded pictures, uint8 (H, W, C) each, in a temporary file without a name: a killed run leaves nothing."""

    def __init__(self, file: IO[bytes], shape: tuple[int, int, int]) -> None:
        self._file, self._shape = file, shape
        self.size = math.prod(shape)

    def fill(
        self, root: str, tree: FileTree, names: Sequence[str], rules: Decoding
    ) -> tuple[list[str], list[bytes], dict[int, str], Decoding]:
        """Decode all; return the digests of files and pixels, why some are unreadable, and the final rules."""
        results: list[tuple[str, bytes, int, str]] = []
        bar = tqdm(total=len(names), desc="pictures", unit="", leave=False, disable=None)
        with bar, warnings.catch_warnings(action="ignore"):  # once for all threads: filters are global
            for batch in _in_threads(
                lambda start: [
                    self._add(tree, names[index], index, rules)
                    for index in range(start, min(start + BATCH, len(names)))
                ],
                range(0, len(names), BATCH),
            ):
                results += batch
                bar.update(len(batch))
            deep = [index for index, (_, _, bits, reason) in enumerate(results) if bits and not reason]
            used = max((results[index][2] for index in deep), default=16)
            if used < 16:
                rules = rules.model_copy(update={"grey_bits": max(8, used)})
                print(
                    f"{root}: 16-bit pictures use {used} bits; scaled from {rules.grey_bits} to 8 bits",
                    file=sys.stderr,
                )
                again = _in_threads(lambda index: self._add(tree, names[index], index, rules), deep)
                for index, result in zip(deep, again, strict=True):
                    results[index] = result
        reasons = {index: reason for index, (_, _, _, reason) in enumerate(results) if reason}
        return [result[0] for result in results], [result[1] for result in results], reasons, rules

    def _add(self, tree: FileTree, name: str, position: int, rules: Decoding) -> tuple[str, bytes, int, str]:
        """Decode and store a picture.

        Return the SHA-256 of the file, a digest of the pixels, its `used_bits`, and why it is unreadable, if so.
        """
        try:
            if not name.isprintable():
                raise Unreadable("has an unprintable name; rename it")
            with tree.open(name) as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
                if not file.seek(0, os.SEEK_END):
                    raise Unreadable("is empty")
                file.seek(0)
                bits = used_bits(file)
                file.seek(0)
                pixels = decode(file, rules)
        except Unreadable as reason:
            return "", b"", 0, str(reason)
        content = pixels.tobytes()
        os.pwrite(self._file.fileno(), content, position * self.size)
        return sha256, hashlib.blake2b(content, digest_size=16).digest(), bits, ""

    def images(self, pictures: Sequence[Picture], classes: int) -> Images:
        """Return the pictures as a split, in this order."""
        numbers = [picture.label for picture in pictures]
        labels = np.array(numbers, np.uint8) if classes <= 256 else np.array(numbers, np.uint16)
        rows = _Rows(self._file, self._shape, np.array([picture.position for picture in pictures], np.int64))
        array = splits.ChunkedArray((len(pictures), *self._shape), np.dtype(np.uint8), rows)
        names = [picture.name for picture in pictures]
        return Images(array, labels, official=len(pictures), names=names)


@dataclass(frozen=True)
class _Rows:
    """Reads pictures from the pixel file, in chunks of about `splits.CHUNK` bytes."""

    file: IO[bytes]
    shape: tuple[int, ...]
    positions: NDArray[np.int64]

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        size = math.prod(self.shape)
        step = max(1, splits.CHUNK // size)
        for start in range(0, len(self.positions), step):
            positions = self.positions[start : start + step].tolist()
            content = b"".join(os.pread(self.file.fileno(), size, position * size) for position in positions)
            yield np.frombuffer(content, np.uint8).reshape(-1, *self.shape)


def _in_threads(work: Any, items: Sequence[int]) -> Iterator[Any]:
    """Yield `work(item)` in order, computed on all cores: Pillow releases the GIL while it decodes."""
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        yield from pool.map(work, items)
    finally:  # after Ctrl-C or an error, start no further work
        pool.shutdown(cancel_futures=True)


def _report_unreadable(root: str, reasons: dict[str, str], total: int, skip: bool) -> None:
    """Write all reasons to a file; raise a summary, or print it if unreadable pictures are to be skipped."""
    lines = [f"{name if name.isprintable() else repr(name)} {reason}" for name, reason in reasons.items()]
    with replacing(UNREADABLE) as partial:
        partial.write_text("".join(f"{' '.join(line.split())}\n" for line in lines), encoding="utf-8")
    counts = Counter(reason.partition(":")[0].partition(";")[0] for reason in reasons.values())
    summary = (
        f"{len(reasons):,} of {total:,} pictures cannot be read ("
        + ", ".join(f"{reason}: {count:,}" for reason, count in counts.most_common(10))
        + f"): {'; '.join(lines[:10])}"
        + (f"; and {len(lines) - 10:,} more, in {UNREADABLE}" if len(lines) > 10 else "")
    )
    if not skip:
        raise StageError(
            f"{root}: {summary}. Repair or remove them, or set dataset.folder.skip_unreadable to true"
        )
    print(f"{root}: skipped: {summary}", file=sys.stderr)


def _contradictions(pictures: Sequence[Picture], classes: Sequence[str]) -> Iterator[str]:
    """Yield a note if identical pictures have several labels."""
    first: dict[bytes, Picture] = {}
    pairs = {}
    for picture in pictures:
        other = first.setdefault(picture.pixels, picture)
        if other.label != picture.label:
            pairs[picture.pixels] = (other, picture)
    for other, picture in list(pairs.values())[:1]:
        yield (
            f"identical pictures have several labels ({len(pairs):,} sets), such as {other.name} "
            f"({classes[other.label]}) and {picture.name} ({classes[picture.label]}); correct them with "
            "dataset.folder.relabel"
        )


def _split(
    root: str, pictures: Sequence[Picture], classes: int, params: Params
) -> tuple[list[Picture], list[Picture], list[Picture]]:
    """Return train, validation and test, in their final order.

    If there is no test split, it gets about `test_fraction` of each class, but at least one picture and not all of
    them. Units are not separated. In given splits, the test split has precedence over validation, and validation
    over training: a unit's pictures in the others are left out.
    """
    units: dict[int, list[Picture]] = {}
    for picture in sorted(pictures, key=lambda picture: _rank(picture, params.seed)):
        units.setdefault(picture.unit, []).append(picture)
    by_split: dict[Role, list[Picture]] = {"train": [], "validation": [], "test": [], "": []}
    left_out = []
    for unit in units.values():
        present = {picture.split for picture in unit}
        kept = next(split for split in ("test", "validation", "train", "") if split in present)
        by_split[kept] += [picture for picture in unit if picture.split == kept]
        left_out += [picture for picture in unit if picture.split != kept]
    if left_out:
        print(
            f"{root}: left out {len(left_out):,} pictures that have the same pixels as a picture held out for "
            f"testing or validation, or are in the same group, such as {left_out[0].name}",
            file=sys.stderr,
        )
    undecided = [unit for unit in units.values() if not unit[0].split]
    totals = np.bincount([picture.label for picture in by_split[""]], minlength=classes).tolist()
    quotas = [max(1, min(round(total * params.test_fraction), total - 1)) for total in totals]
    drawn = draw([[picture.label for picture in unit] for unit in undecided], quotas, totals)
    for position, unit in enumerate(undecided):
        by_split["test" if position in drawn else "train"] += unit
    return by_split["train"], by_split["validation"], by_split["test"]


def _together(pictures: Sequence[Picture]) -> tuple[tuple[int, int], ...]:
    """Return where units of several pictures start and stop."""
    runs, start = [], 0
    for _, unit in groupby(pictures, key=lambda picture: picture.unit):
        stop = start + sum(1 for _ in unit)
        if stop - start > 1:
            runs.append((start, stop))
        start = stop
    return tuple(runs)


def _rank(picture: Picture, seed: int) -> tuple[str, str]:
    """Return a key that sorts pictures into a pseudo-random order."""
    return hashlib.sha256(f"{seed} {picture.sha256}".encode()).hexdigest(), picture.name


def _check_classes(root: str, classes: Sequence[str], train: Sequence[Picture], test: Sequence[Picture]) -> None:
    for split, pictures in (("training", train), ("test", test)):
        absent = sorted(set(range(len(classes))) - {picture.label for picture in pictures})
        if not absent:
            continue
        names = ", ".join(classes[label] for label in absent[:10])
        names += f" and {len(absent) - 10:,} more" if len(absent) > 10 else ""
        if split == "training" or not pictures:
            raise StageError(
                f"{root}: no readable {split} pictures of {names}; add some (a class needs two, one of them for "
                "testing), or exclude the class"
            )
        print(f"{root}: warning: no test pictures of {names}; these classes will have no figures", file=sys.stderr)


def _digest(lines: list[tuple[str, str]]) -> str:
    lines.sort(key=lambda line: (line[1], line[0]))
    return hashlib.sha256("".join(f"{sha256}  {name}\n" for sha256, name in lines).encode()).hexdigest()
