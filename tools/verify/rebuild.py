"""Clones a revision into an empty folder and runs its pipeline there, without anything left from earlier runs.

The clone has an empty DVC cache and run cache, and no dvc.lock: so every stage runs. Of the person's
own, only the sources and the cache of downloads are used, whose bytes the stage download checks.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from stages.common.failure import StageError
from stages.common.params import read
from tools.verify.lock import NAME, Lock, read_lock

# Variables that a user or a git hook may have set, and that would change the run.
REMOVED = ("DVC_", "GIT_", "PYTHONPATH", "PYTHONSAFEPATH")
GRACE = 2.0  # seconds for killed processes to end before their folder is removed


@contextmanager
def workplace(named: Path | None) -> Iterator[Path]:
    """Yield an empty folder: a temporary one that is removed at the end, or `named`, which is kept."""
    if named is None:
        with tempfile.TemporaryDirectory(prefix="verify-") as folder:
            yield Path(folder).resolve()
        return
    named.mkdir(parents=True, exist_ok=True)
    if any(named.iterdir()):
        raise StageError(f"{named}: not empty; name another folder, or remove it: rm -r {named}")
    yield named.resolve()


def find_commit(revision: str) -> str:
    """Return the hash of the commit; raises `StageError` when this repository has no such `revision`."""
    _git(Path.cwd(), "rev-parse", "--git-dir")  # fails with git's own message outside a checkout
    if not revision:  # for instance an unset variable in CI
        raise StageError("the revision is empty; name a commit, a tag or a branch")
    found = _git(
        Path.cwd(), "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}", check=False
    )
    if not found:
        raise StageError(
            f"{revision}: no commit of this repository; name one, a tag or a branch, or run: git fetch"
        )
    return found


def clean() -> bool:
    """Return whether the working directory has no uncommitted changes."""
    return not _git(Path.cwd(), "status", "--porcelain")


def clone(commit: str, folder: Path) -> None:
    """Clone `commit` of this repository into the new `folder`."""
    source = _git(Path.cwd(), "rev-parse", "--show-toplevel")
    _git(Path.cwd(), "clone", "--quiet", "--shared", "--no-checkout", "--", source, str(folder))
    _git(folder, "checkout", "--quiet", "--detach", commit)


def set_aside(paths: Iterable[str], folder: Path, to: Path) -> None:
    """Move committed outputs out of the clone, so that the rebuild cannot reuse them."""
    for path in paths:
        if (folder / path).exists():
            (to / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(folder / path, to / path)


def rebuild(folder: Path, stage: str | None) -> Lock:
    """Run all stages in `folder`, or up to `stage`, and return the new dvc.lock.

    The stages' output goes to standard error. Raises `StageError` if one fails.
    """
    names = list(read(folder / "dvc.yaml").get("stages") or {})
    if stage and stage not in names:
        raise StageError(f"--stage {stage}: no stage of dvc.yaml; name one of {', '.join(names)}")
    # The user's or the repository's configuration may name a shared cache, which has the outputs.
    (folder / ".dvc" / "config.local").write_text("[cache]\n    dir = cache\n", encoding="utf-8")
    wanted = [stage] if stage else names
    for number, name in enumerate(wanted, 1):
        began = time.monotonic()
        step = f"[{number}/{len(wanted)}] {name}"
        say(f"{step}{' and the stages before it' if stage else ''}")
        # DVC's standard output suggests committing and pushing, which does not apply to the clone.
        if code := _run([sys.executable, "-m", "dvc", "repro", name], folder):
            ended = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            raise StageError(f"the rebuild stopped in {name} ({ended}); its own message is above")
        say(f"{step}: {time.monotonic() - began:.0f} s")
    return read_lock(folder / NAME, f" of {folder}")


def say(message: str) -> None:
    """Print progress to standard error."""
    print(f"verify: {message}", file=sys.stderr, flush=True)


def _run(command: Sequence[str], folder: Path) -> int:
    """Run a command in `folder`. When interrupted, first kill everything that it started."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(REMOVED)}
    environment = {
        **kept,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', os.defpath)}",
        "DVC_SITE_CACHE_DIR": str(folder.parent / "dvc" / "site"),
        "DVC_GLOBAL_CONFIG_DIR": str(folder.parent / "dvc" / "global"),
        "DVC_SYSTEM_CONFIG_DIR": str(folder.parent / "dvc" / "system"),
        "DVC_NO_ANALYTICS": "1",
    }
    # In its own session, because DVC does not pass signals on to its stages; Ctrl-C is handled here.
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            return process.wait()
        except BaseException:
            _kill_session(process)
            raise


def _kill_session(process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + GRACE
    try:
        while time.monotonic() < deadline:
            os.killpg(process.pid, signal.SIGKILL)
            process.poll()
            time.sleep(0.05)
    except (ProcessLookupError, PermissionError):  # macOS raises the latter for zombies
        return


def _git(folder: Path, *arguments: str, check: bool = True) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise StageError("git is not installed or not in PATH; install it") from None
    if check and done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"
        raise StageError(f"{folder}: git {arguments[0]} failed ({reason}); correct that, then run again")
    return done.stdout.strip()
