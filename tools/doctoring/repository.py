"""The files that git has: params.yaml, dvc.lock, and what git says of the rest."""

import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tools.doctoring import recorded
from tools.doctoring.finding import Finding, NotLookedAt, listed

RESULTS = ("dvc.lock", "metrics/", "environment/")  # what a run writes, of what git tracks
UNMERGED = ("DD", "AU", "UD", "UA", "DU", "AA", "UU")  # of `git status --porcelain`


def params() -> Iterator[Finding]:
    """Check every section of params.yaml, as `python -m tools.check` does; raises `StageError`."""
    from tools.check import check_params

    check_params(Path("params.yaml"))
    yield Finding("ok", "params.yaml: every key is known and in range")


def lock() -> Iterator[Finding]:
    """Check that dvc.lock is whole; raises `StageError`."""
    from tools.check import refuse_a_broken_lock

    refuse_a_broken_lock(recorded.LOCK)
    stages = recorded.stages()
    if unrecorded := recorded.unrecorded():
        # DVC takes a file that was cut short at a fitting place for one of fewer stages or outputs.
        found = f"{recorded.LOCK} does not record {listed(unrecorded)}: cut short, or dvc.yaml has changed since"
        remedy = f"git checkout {recorded.LOCK}" if _committed(recorded.LOCK) else "dvc repro"
        yield Finding("note", found, remedy)
    else:
        yield Finding("ok", f"{recorded.LOCK}: whole, with {len(stages)} stages: {', '.join(stages)}")


def git() -> Iterator[Finding]:
    """Tell what is not committed, and what git or DVC cannot work with."""
    try:
        shallow = _git("rev-parse", "--is-shallow-repository").strip() == "true"
    except FileNotFoundError:
        yield Finding("wrong", "git is not installed or not on PATH; DVC needs it", "apt install git")
        return
    except subprocess.CalledProcessError as error:
        if recorded.dvc_config()["core"].get("no_scm"):
            raise NotLookedAt("not a git repository, and DVC is told so: core.no_scm") from None
        said = error.stderr.strip().splitlines()[0].removeprefix("fatal: ")
        remedy = "git init && git add --all && git commit"
        if "dubious ownership" in said:
            remedy = f"git config --global --add safe.directory {shlex.quote(str(Path.cwd()))}"
        yield Finding("wrong", f"{said}; without git, dvc refuses to run", remedy)
        return
    findings = list(_uncommitted())
    if shallow:
        found = "a shallow clone: dvc metrics diff and tools.compare reach no older commit"
        findings.append(Finding("note", found, "git fetch --unshallow"))
    yield from findings or [Finding("ok", "all that git tracks is committed")]


def _uncommitted() -> Iterator[Finding]:
    entries = [(line[:2], line[3:]) for line in _git("status", "--porcelain").splitlines()]
    unmerged = [name for state, name in entries if state in UNMERGED]
    changed = [name for state, name in entries if state not in (*UNMERGED, "??")]
    deleted = [name for state, name in entries if state in (" D", "D ")]
    gone = [name for name in deleted if name.startswith(RESULTS)]
    results = [name for name in changed if name.startswith(RESULTS)]
    results += [name for state, name in entries if state == "??" and name == "dvc.lock"]
    if "dvc.lock" in results and not _has_lock():
        results.remove("dvc.lock")
    if gone:
        # DVC removes a stage's outputs before it runs: nothing of this is to be committed.
        yield Finding(
            "note", f"a run is going on, or did not end: {listed(gone)} are gone until it has", "dvc repro"
        )
        return
    others = [name for name in changed if name not in (*results, "dvc.lock")]
    if unmerged:
        found = f"a merge is not done: {listed(unmerged)}; edit and add them, or give it up"
        yield Finding("wrong", found, "git merge --abort")
    if results:
        found = f"the results of the last run are not committed: {listed(results)}"
        yield Finding("note", found, "git add dvc.lock metrics environment && git commit")
    if others:
        yield Finding("note", f"changed and not committed: {listed(others)}", "git commit --all")


def _has_lock() -> bool:
    """Whether dvc.lock is one to commit; what is wrong with it otherwise is told by its own look."""
    try:
        return not recorded.unrecorded()
    except NotLookedAt:
        return False


def _committed(path: Path) -> bool:
    """Whether the last commit has another version of the file."""
    try:
        return bool(_git("diff", "--name-only", "HEAD", "--", str(path)).strip())
    except (FileNotFoundError, subprocess.CalledProcessError):
        return False


def _git(*arguments: str) -> str:
    """Run git without letting it refresh its index, which `git status` otherwise writes."""
    command = ["git", "-c", "core.quotePath=false", *arguments]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
