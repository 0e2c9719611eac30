"""Writes outputs atomically: to a temporary name, synced, then renamed."""

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.common.failure import StageError

if TYPE_CHECKING:  # stages that write no tables start faster without it
    import pandas as pd


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block succeeds, sync it and rename it to `path`.

    The temporary name is always `NAME.partial`, so the next run overwrites what a killed one left behind. If the
    block raises, the temporary file is removed and `path` is unchanged; an `OSError` without a file name gets
    `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # when the disk is full, write() does not name the file
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Sync the directory itself, so that a rename in it survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` as JSON with sorted keys and a final newline, for git and `dvc metrics`.

    Raises `StageError` when a number is not finite.
    """
    require_finite(path, content)
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    with replacing(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def require_finite(path: Path, content: Mapping[str, Any]) -> None:
    """Raise `StageError`, which names `path` and the key, when a number in `content` is not finite."""
    for key, value in _leaves(content):
        if isinstance(value, float) and not math.isfinite(value):
            raise StageError(f"{path}: {key} is {value}, not a finite number; nothing was written")


def write_table(path: Path, table: "pd.DataFrame") -> None:
    """Write `table` as CSV with a header, without the index."""
    with replacing(path) as partial:
        table.to_csv(partial, index=False, lineterminator="\n")


def require_space(folder: Path, size: int) -> None:
    """Raise `StageError` unless the disk of `folder` has `size` bytes free."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < size:
        needed = -(-size // 10**6)
        raise StageError(
            f"{folder}: not enough disk space ({needed:,} MB needed, {free // 10**6:,} MB free); free some"
        )


def _leaves(content: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(content, Mapping):
        for name, value in content.items():
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    elif isinstance(content, list | tuple):
        for index, value in enumerate(content):
            yield from _leaves(value, f"{key}[{index}]")
    else:
        yield key, content
