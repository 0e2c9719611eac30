"""Removes an rwlock that a killed `dvc` left unreadable, because every later `dvc repro` would fail on it."""

import json
import sys
from pathlib import Path

import psutil

from stages.common.failure import StageError


def remove_unreadable_rwlock(checkout: Path) -> None:
    """Remove DVC's rwlock from `checkout` if it is not JSON, and say so.

    DVC writes it in place, so a kill can leave it empty or cut short. Raises `StageError` while a dvc command runs
    in the checkout, because the file may be its own.
    """
    path = checkout / ".dvc" / "tmp" / "rwlock"
    try:
        json.loads(path.read_bytes())
        return
    except FileNotFoundError:
        return
    except ValueError:
        running = _running_dvc(checkout)
    if running:
        raise StageError(
            f"{path}: unreadable, but dvc is running (process {running[0]}); wait for it, then run again"
        )
    path.unlink()
    print(f"{path}: unreadable, as after a kill of dvc; removed", file=sys.stderr)


def _running_dvc(checkout: Path) -> list[int]:
    """Return the processes of dvc commands in `checkout`."""
    found = []
    for process in psutil.process_iter():
        try:
            if (
                any(Path(word).name == "dvc" for word in process.cmdline())
                and Path(process.cwd()) == checkout.resolve()
            ):
                found.append(process.pid)
        except psutil.Error:  # it has just ended, or belongs to another user
            continue
    return found
