"""Who is at work here: the locks of DVC and of the stages, and what a killed `dvc` left of both.

Where there is no /proc, as on macOS, only who holds a lock is told, not whether `dvc` is still above it.
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
# Where each stage holds the right to write, see the `exclusive` in its main.
STAGES = {"download": "data/raw", "preprocess": "data/processed", "train": "models", "evaluate": "metrics"}


def dvc_locks() -> Iterator[Finding]:
    """Tell of DVC's own locks whose they are, and which of them no dvc command will get past."""
    findings = [*_whole_lock(), *_rwlock()]
    yield from findings
    if not findings:
        yield Finding("ok", "no dvc command is running, and none has left a lock")


def _whole_lock() -> Iterator[Finding]:
    if is_held(DVC_LOCK):
        yield Finding(
            "note", f"{DVC_LOCK}: held by {_named(_written_pid(DVC_LOCK))}; other dvc commands wait for it"
        )
        return
    left = [str(lock) for lock in DVC_LOCKS if lock.exists()]
    # With core.hardlink_lock the file is the lock, for a year, and does not tell whose it is. One that was made
    # before that was set counts as well.
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
            yield Finding("note", f"{who} was killed; the next dvc command takes its entry out")
        elif _is_zombie(pid):
            found = f"{who} has ended, but is still in the system's list (a zombie), and dvc would wait for it"
            yield Finding("wrong", found, f"rm {RWLOCK}")
        elif _is_dvc(pid) is False and command not in " ".join(_words(pid)):
            found = f"{who} was killed, and its number is now that of another program, for which dvc would wait"
            yield Finding("wrong", found, f"rm {RWLOCK}")
        else:
            yield Finding("note", f"{who} is at work on the files that it names")


def _flat(values: Any) -> Iterator[dict[str, Any]]:
    for value in values:
        yield from value if isinstance(value, list) else [value]


def running_stages() -> Iterator[Finding]:
    """Tell which stages are running, and of which the `dvc` that began them is gone."""
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
                found += (
                    ", and goes on although its dvc is gone; dvc repro is refused until it ends; wait, or stop it"
                )
                yield Finding("wrong", found, f"kill {pid}")
            case False:
                yield Finding("note", found)
            case _:
                yield Finding("note", f"{found}; whether its dvc still is cannot be told here")
    if idle:
        yield Finding("ok", "no stage is running, none is left of a killed run")


def is_held(lock: Path) -> bool:
    """Whether a process holds the lock, asked by sharing it for a moment: the file stays when its holder ends."""
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def is_alive(pid: int) -> bool:
    """Whether there is a process of that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # another user's
    return True


def _written_pid(lock: Path) -> int:
    """Return the process that wrote its number into its lock, 0 where none is to be read."""
    text = lock.read_text(encoding="utf-8", errors="replace").strip()
    return int(text) if text.isdecimal() else 0


def _named(pid: int) -> str:
    return f"process {pid} (`{' '.join(words)}`)" if (words := _words(pid)) else f"process {pid or 'unknown'}"


def _is_orphan(pid: int) -> bool | None:
    """Whether dvc began this process and is no longer above it; None where the system does not tell."""
    try:
        environment = (PROC / str(pid) / "environ").read_bytes().split(b"\0")
        if not any(entry.startswith(b"DVC_STAGE=") for entry in environment):
            return False  # begun by hand, which DVC's variables tell apart
        while pid > 1:
            pid = int(_stat(pid)[1])
            if _is_dvc(pid):
                return False
    except OSError:  # no /proc, another user's process, or one that has just ended
        return None
    return True


def _is_zombie(pid: int) -> bool:
    """Whether a process has ended and whoever began it has not asked how; False where the system does not tell."""
    try:
        return _stat(pid)[0] == "Z"
    except OSError:
        return False


def _stat(pid: int) -> list[str]:
    """Return what the system tells of a process after its name, which is in parentheses: state, parent, …"""
    return (PROC / str(pid) / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()


def _is_dvc(pid: int) -> bool | None:
    """Whether a process is a dvc command; None where the system does not tell."""
    words = _words(pid)
    return any(Path(word).name == "dvc" for word in words) if words else None


def _words(pid: int) -> list[str]:
    """Return a process's command line, nothing where the system does not tell."""
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return []
