"""Checks running processes and the locks of DVC and the stages, including those that a killed `dvc` left.

Without /proc, as on macOS, it reports the holder of a lock, but not whether its `dvc` is still alive.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.doctor.finding import Finding, listed
from tools.doctor.recorded import dvc_config

DVC_LOCK = Path(".dvc/tmp/lock")
DVC_LOCKS = (DVC_LOCK, Path(".dvc/tmp/rwlock.lock"))
RWLOCK = Path(".dvc/tmp/rwlock")
PROC = Path("/proc")
# The folder that each stage locks, see `exclusive` in its main.
STAGES = {"download": "data/raw", "preprocess": "data/processed", "train": "models", "evaluate": "metrics"}


def dvc_locks() -> Iterator[Finding]:
    """Report the holders of DVC's own locks, and locks that block every dvc command."""
    findings = [*_whole_lock(), *_rwlock()]
    yield from findings
    if not findings:
        yield Finding("ok", "no dvc command is running or has left a lock")


def _whole_lock() -> Iterator[Finding]:
    if is_held(DVC_LOCK):
        yield Finding(
            "note", f"{DVC_LOCK}: held by {_named(_written_pid(DVC_LOCK))}; other dvc commands wait for it"
        )
        return
    left = [str(lock) for lock in DVC_LOCKS if lock.exists()]
    # With core.hardlink_lock the file itself is the lock, for a year, and does not name its holder. A file from
    # before that setting counts as well.
    if left and dvc_config()["core"].get("hardlink_lock"):
        found = f"{listed(left)}: held by a dvc command, or left by one that was killed; if none is running"
        yield Finding("wrong", found, f"rm {' '.join(left)}")


def _rwlock() -> Iterator[Finding]:
    try:
        content = json.loads(RWLOCK.read_bytes())
        entries = [entry for paths in content.values() for entry in _flat(paths.values())]
        holders = {int(entry["pid"]): str(entry["cmd"]) for entry in entries}
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError, AttributeError):
        found = f"{RWLOCK}: unreadable, as after a kill of dvc; dvc repro refuses to run"
        yield Finding("wrong", found, f"rm {RWLOCK}")
        return
    for pid, command in holders.items():
        who = f"{RWLOCK}: `{command}`, process {pid},"
        if not is_alive(pid):
            yield Finding("note", f"{who} was killed; the next dvc command removes its entry")
        elif _is_zombie(pid):
            found = f"{who} has ended, but is still listed (a zombie), and dvc would wait for it"
            yield Finding("wrong", found, f"rm {RWLOCK}")
        elif _is_dvc(pid) is False and command not in " ".join(_words(pid)):
            found = f"{who} was killed, and another program has its process ID now, for which dvc would wait"
            yield Finding("wrong", found, f"rm {RWLOCK}")
        else:
            yield Finding("note", f"{who} is running")


def _flat(values: Any) -> Iterator[dict[str, Any]]:
    for value in values:
        yield from value if isinstance(value, list) else [value]


def running_stages() -> Iterator[Finding]:
    """Report running stages, and those whose `dvc` has ended."""
    idle = True
    for stage, folder in STAGES.items():
        lock = Path(folder) / ".lock"
        if not is_held(lock):
            continue
        idle = False
        pid = _written_pid(lock)
        found = f"{folder}/: {stage} is running, process {pid}"
        match pid and _is_orphan(pid):
            case True:
                found += ", although its dvc has ended; dvc repro fails until it ends; wait, or stop it"
                yield Finding("wrong", found, f"kill {pid}")
            case False:
                yield Finding("note", found)
            case _:
                yield Finding("note", f"{found}; this system does not tell whether its dvc is running")
    if idle:
        yield Finding("ok", "no stage is running")


def is_held(lock: Path) -> bool:
    """Return whether a process holds the lock; tried with a shared lock, because the file itself stays."""
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def is_alive(pid: int) -> bool:
    """Return whether the process exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # another user's
    return True


def _written_pid(lock: Path) -> int:
    """Return the process ID in a lock file, or 0."""
    text = lock.read_text(encoding="utf-8", errors="replace").strip()
    return int(text) if text.isdecimal() else 0


def _named(pid: int) -> str:
    return f"process {pid} (`{' '.join(words)}`)" if (words := _words(pid)) else f"process {pid or 'unknown'}"


def _is_orphan(pid: int) -> bool | None:
    """Return whether a dvc that has ended started this process; None if the system does not tell."""
    try:
        environment = (PROC / str(pid) / "environ").read_bytes().split(b"\0")
        if not any(entry.startswith(b"DVC_STAGE=") for entry in environment):
            return False  # started by hand: without DVC's variables
        while pid > 1:
            pid = int(_stat(pid)[1])
            if _is_dvc(pid):
                return False
    except OSError:  # no /proc, another user's process, or it has just ended
        return None
    return True


def _is_zombie(pid: int) -> bool:
    """Return whether a process is a zombie; False if the system does not tell."""
    try:
        return _stat(pid)[0] == "Z"
    except OSError:
        return False


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name: state, parent, …"""
    return (PROC / str(pid) / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()


def _is_dvc(pid: int) -> bool | None:
    """Return whether a process is a dvc command; None if the system does not tell."""
    words = _words(pid)
    return any(Path(word).name == "dvc" for word in words) if words else None


def _words(pid: int) -> list[str]:
    """Return the command line of a process; empty if the system does not tell."""
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return []
