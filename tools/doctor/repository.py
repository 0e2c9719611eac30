"""Checks the files in git: DVC's configuration, params.yaml, dvc.yaml, dvc.lock, and uncommitted changes."""

import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tools.doctor import recorded
from tools.doctor.finding import Finding, NotChecked, listed

CONFIG = Path(".dvc/config")
RESULTS = ("dvc.lock", "metrics/", "environment/")  # the results of a run that git tracks
OUTPUTS = "metrics/"  # DVC deletes these before a stage runs
# Files of unfinished git operations, by the command that aborts them. A rebase has a CHERRY_PICK_HEAD, too.
UNDONE = {
    "rebase-merge": "rebase",
    "rebase-apply/applying": "am",
    "rebase-apply": "rebase",
    "CHERRY_PICK_HEAD": "cherry-pick",
    "REVERT_HEAD": "revert",
    "MERGE_HEAD": "merge",
}
UNMERGED = ("DD", "AU", "UD", "UA", "DU", "AA", "UU")  # of `git status --porcelain`


def config() -> Iterator[Finding]:
    """Read each configuration file separately, because DVC's own message does not name the broken one."""
    from dvc.config import Config, ConfigError

    levels = [Path(Config.get_dir(level)) / Config.CONFIG for level in ("system", "global")]
    for path in (*levels, CONFIG, Path(f"{CONFIG}.local")):
        try:
            Config.load_file(str(path))
        except FileNotFoundError:
            continue
        except ConfigError as error:
            found = f"{path} is broken ({str(error).removeprefix('config file error: ')}); dvc refuses to run"
            yield Finding("wrong", found, _restore(path) or f"mv {shlex.quote(str(path))} broken-config")
            return
    try:
        Config(".dvc")
    except ConfigError as error:
        yield Finding("wrong", f"{' '.join(str(error).split())}; dvc refuses to run", _restore(CONFIG))
        return
    cache = recorded.cache_folder(recorded.dvc_config()).absolute()
    if not str(cache).isascii():
        # The queue writes this path with configobj, which encodes it as ASCII whatever the locale is.
        found = f"{cache}: DVC's cache has non-ASCII letters in its path: dvc repro works, dvc queue start fails"
        yield Finding("note", f"{found}; for a queue: dvc config --local cache.dir FOLDER")
    yield Finding("ok", "DVC's configuration is valid")


def params() -> Iterator[Finding]:
    """Check every section of params.yaml, as `python -m tools.check` does; raises `StageError`."""
    from tools.check import check_params

    check_params(Path("params.yaml"))
    yield Finding("ok", "params.yaml: all keys are valid")


def pipeline() -> Iterator[Finding]:
    """Check that dvc.yaml is complete: a truncated file may still be valid, with fewer stages or outputs."""
    import yaml
    from dvc.schema import COMPILED_MULTI_STAGE_SCHEMA
    from voluptuous import Invalid

    path = recorded.PIPELINE
    try:
        COMPILED_MULTI_STAGE_SCHEMA(yaml.safe_load(path.read_bytes()))
    except (yaml.YAMLError, Invalid) as error:
        found = f"{path}: incomplete, or not valid for DVC ({' '.join(str(error).split())})"
        yield Finding("wrong", found, _restore(path))
        return
    stages = recorded.pipeline()
    try:
        missing = [name for name in recorded.stages() if name.partition("@")[0] not in stages]
        missing += [
            str(output.path)
            for output in recorded.outputs()
            if output.stage in stages and str(output.path) not in stages[output.stage]
        ]
    except NotChecked:  # nothing to compare with
        missing = []
    if missing:
        found = f"{path} does not have {listed(missing)}, which {recorded.LOCK} records"
        if remedy := _restore(path):
            yield Finding("wrong", f"{found}: incomplete, or changed since the last dvc repro", remedy)
        else:
            yield Finding("note", f"{found}, of an earlier {path}")
    else:
        yield Finding("ok", f"{path}: whole, with {len(stages)} stages: {', '.join(stages)}")


def lock() -> Iterator[Finding]:
    """Check that dvc.lock is complete; raises `StageError`."""
    from tools.check import refuse_a_broken_lock

    refuse_a_broken_lock(recorded.LOCK)
    stages = recorded.stages()
    if unrecorded := recorded.unrecorded():
        # A truncated file may still be valid, with fewer stages or outputs.
        found = f"{recorded.LOCK} does not record {listed(unrecorded)}: incomplete, or dvc.yaml has changed since"
        yield Finding("note", found, _restore(recorded.LOCK) or "dvc repro")
    else:
        yield Finding("ok", f"{recorded.LOCK}: whole, with {len(stages)} stages: {', '.join(stages)}")


def git() -> Iterator[Finding]:
    """Report uncommitted changes, and states that git or DVC cannot work with."""
    try:
        shallow = _git("rev-parse", "--is-shallow-repository").strip() == "true"
    except FileNotFoundError:
        yield Finding("wrong", "git is not installed or not on PATH; DVC needs it", "apt install git")
        return
    except subprocess.CalledProcessError as error:
        if recorded.dvc_config()["core"].get("no_scm"):
            raise NotChecked("not a git repository, as configured: core.no_scm") from None
        reason = error.stderr.strip().splitlines()[0].removeprefix("fatal: ")
        remedy = "git init && git add --all && git commit"
        if "dubious ownership" in reason:
            remedy = f"git config --global --add safe.directory {shlex.quote(str(Path.cwd()))}"
        yield Finding("wrong", f"{reason}; without git, dvc refuses to run", remedy)
        return
    findings = list(_uncommitted())
    if shallow:
        found = "a shallow clone: dvc metrics diff and tools.compare cannot read older commits"
        findings.append(Finding("note", found, "git fetch --unshallow"))
    yield from findings or [Finding("ok", "all that git tracks is committed")]


def _uncommitted() -> Iterator[Finding]:
    entries = [(line[:2], line[3:]) for line in _git("status", "--porcelain").splitlines()]
    unmerged = [name for state, name in entries if state in UNMERGED]
    deleted = [name for state, name in entries if state in (" D", "D ")]
    gone = [name for name in deleted if name.startswith(OUTPUTS)]
    lost = [name for state, name in entries if state == " D" and name not in gone]
    changed = [name for state, name in entries if state not in (*UNMERGED, "??") and name not in lost]
    results = [name for name in changed if name.startswith(RESULTS)]
    results += [name for state, name in entries if state == "??" and name == "dvc.lock"]
    if "dvc.lock" in results and not _has_lock():
        results.remove("dvc.lock")
    if lost:
        yield Finding(
            "note",
            f"gone from the workspace: {listed(lost)}; to have it again",
            f"git checkout {shlex.join(lost)}",
        )
    if gone:
        # DVC deletes the outputs of a stage before it runs: do not commit this.
        yield Finding(
            "note", f"a run is going on, or did not end: {listed(gone)} are gone until it has", "dvc repro"
        )
        return
    others = [name for name in changed if name not in (*results, "dvc.lock") and not _is_broken(name)]
    if unmerged:
        doing = next((name for path, name in UNDONE.items() if Path(_git_path(path)).exists()), "")
        found = f"a {doing or 'merge'} is not done: {listed(unmerged)}; edit and add them, or give it up"
        yield Finding("wrong", found, f"git {doing} --abort" if doing else "git reset --merge")
    if results:
        found = f"the results of the last run are not committed: {listed(results)}"
        yield Finding("note", found, "git add dvc.lock metrics environment && git commit")
    if others:
        yield Finding("note", f"changed and not committed: {listed(others)}", "git commit --all")


def _has_lock() -> bool:
    """Return whether dvc.lock can be committed; its own check reports what is wrong with it."""
    try:
        return not recorded.unrecorded()
    except NotChecked:
        return False


def _is_broken(name: str) -> bool:
    """Return whether the file's own check finds it wrong, so it must not be committed."""
    look = {str(CONFIG): config, str(recorded.PIPELINE): pipeline}.get(name)
    return look is not None and any(finding.state == "wrong" for finding in look())


def _restore(path: Path) -> str:
    """Return the command that restores the file from the last commit; empty if it has not changed."""
    try:
        other = _git("diff", "--name-only", "HEAD", "--", str(path)).strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"git checkout {path}" if other else ""


def _git_path(name: str) -> str:
    return _git("rev-parse", "--git-path", name).strip()


def _git(*arguments: str) -> str:
    """Run git without refreshing its index, which `git status` would write."""
    command = ["git", "-c", "core.quotePath=false", *arguments]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
