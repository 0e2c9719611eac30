"""One process at a time for each stage: what is left of a killed run must not write beside the next one."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.common.failure import StageError


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the right to write into `folder`, or raise `StageError` naming the process that has it.

    The system releases it when the process ends, however it ends. When `dvc` is killed its stage goes on; a
    new `dvc repro` is then refused here until that stage is done or stopped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise StageError(
                f"{folder}/ is being written by process {holder}, left over from an earlier run perhaps; wait for "
                f"it, or stop it: kill {holder}"
            ) from None
        file.truncate(0)
        try:
            os.write(file.fileno(), str(os.getpid()).encode())
        except OSError as error:
            error.filename = file.name  # a write to a full disk fails without saying which
            raise
        yield
