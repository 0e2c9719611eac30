"""Locks an output folder: a stage that outlives a killed `dvc` must not write into it beside the next run."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.common.failure import StageError


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Lock `folder` for writing; raises `StageError` with the process ID if another process has locked it.

    The operating system releases the lock when the process ends, however it ends. Killing `dvc` does not stop
    its stage: until that stage has finished or is killed, the next `dvc repro` stops here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise StageError(
                f"{folder}/ is locked by process {holder}, possibly left over from an earlier run; wait until it "
                f"has finished, or stop it: kill {holder}"
            ) from None
        file.truncate(0)
        try:
            os.write(file.fileno(), str(os.getpid()).encode())
        except OSError as error:
            error.filename = file.name  # when the disk is full, write() does not name the file
            raise
        yield
