"""Write an output so that nobody ever sees half of it: a temporary name, sync, then move."""

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.common.failure import StageError

if TYPE_CHECKING:  # the stages that write tables have imported it, and the others start without
    import pandas as pd


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well, sync it and move it to `path`.

    The temporary name is a fixed one (`NAME.partial`), so that what a killed run left behind is
    overwritten by the next instead of piling up. When the block raises, it is removed and `path` is as
    it was; an `OSError` that names no file then names `path`.
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
            error.filename = str(path)  # a write to a full disk fails without saying which file
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` as durable as the files: a rename survives a power cut only after this."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` as JSON that git and `dvc metrics` read well: sorted keys, a final newline.

    Raises `StageError` when a number is not finite: a NaN in a metric means that the run went wrong.
    """
    for key, value in _leaves(content):
        if isinstance(value, float) and not math.isfinite(value):
            raise StageError(f"{path}: {key} is {value}, not a finite number; nothing was written")
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    with replacing(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def write_table(path: Path, table: "pd.DataFrame") -> None:
    """Write `table` as CSV with a header and without its index."""
    with replacing(path) as partial:
        table.to_csv(partial, index=False, lineterminator="\n")


def require_space(folder: Path, size: int) -> None:
    """Raise `StageError` unless `folder`'s disk has `size` bytes free; called before the work, not after."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < size:
        needed = -(-size // 10**6)
        raise StageError(
            f"{folder}: {needed:,} MB are needed and {free // 10**6:,} MB are free; make room and run again"
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
