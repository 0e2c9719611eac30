"""Checks whether dvc.lock belongs to the current code and params, without data and without running anything.

`dvc status` exits with 0 whatever it finds, reports missing data as changed, names only the section of a changed
param, and ignores what dvc.yaml no longer has. So its JSON is parsed here, and the rest is read from the lock.
"""

import json
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException
from dvc.repo import Repo

from stages.common.failure import StageError
from stages.common.figures import flat
from stages.common.params import read
from tools.verify.lock import NAME, PARAMS, Lock, Stage, contradictions, differing_params, read_lock

Finding = tuple[str, str]  # the stage, and why it is stale


def stale(folder: Path, choices: Mapping[str, Any], wanted: str | None = None) -> list[Finding]:
    """Return what `dvc repro` would run again in the checkout `folder`, if it had the data.

    wanted: check only this stage. choices: values that replace those of params.yaml, by dotted key, like
    `dvc exp run -S`. Raises `StageError` when this cannot be decided: without a valid lock, for a frozen stage, or
    when pictures that `dvc add` tracks are missing.
    """
    lock = read_lock(folder / NAME)
    values = flat(read(folder / PARAMS))
    for key in choices:
        if key not in values:
            raise StageError(f"-S {key}: no key of {PARAMS}; write it as there, with its sections: train.epochs")
    values |= choices
    status, pipeline = _status(folder), _pipeline(folder)
    order = list(dict.fromkeys([*lock.stages, *pipeline]))
    if wanted not in (None, *order):
        raise StageError(f"--stage {wanted}: no stage of dvc.yaml or {NAME}; name one of {', '.join(order)}")
    findings = [
        (name, words)
        for name, stage in lock.stages.items()
        for words in differing_params(stage.params.get(PARAMS, {}), values)
    ]
    in_git = {out.def_path for stage in pipeline.values() for out in stage.outs if not out.use_cache}
    for name, entries in status.items():
        findings += ((name, words) for words in _changes(folder, lock, name, entries, in_git))
    for name, stage in lock.stages.items():
        findings += ((name, words) for words in _dropped(name, stage, pipeline.get(name)))
    findings += contradictions(lock)
    findings = [found for found in dict.fromkeys(findings) if wanted in (None, found[0])]
    frozen = [name for name, stage in pipeline.items() if stage.frozen and wanted in (None, name)]
    if frozen and not findings:  # otherwise it is stale anyway
        raise StageError(f"{frozen[0]}: frozen, so DVC does not look at its deps; run: dvc unfreeze {frozen[0]}")
    return sorted(findings, key=lambda found: order.index(found[0]) if found[0] in order else len(order))


def _pipeline(folder: Path) -> dict[str, Any]:
    """Return the stages of dvc.yaml by name, with its templates resolved."""
    try:
        with Repo(str(folder)) as repo:
            own = folder.resolve() / "dvc.yaml"  # resolved, like DVC's paths in a linked checkout
            return {stage.name: stage for stage in repo.index.stages if Path(stage.path).resolve() == own}
    except DvcException as error:
        raise StageError(f"dvc.yaml cannot be read: {error}; correct that, then run again") from None


def _status(folder: Path) -> dict[str, list[Any]]:
    command = [sys.executable, "-m", "dvc", "status", "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    try:
        if done.returncode == 0:
            return dict(json.loads(done.stdout))
        reason = done.stderr.strip().partition("\n")[0] or f"exit code {done.returncode}"
    except ValueError:
        reason = "it printed no JSON"
    raise StageError(f"dvc status failed: {reason}; correct that, then run again")


def _changes(folder: Path, lock: Lock, name: str, entries: list[Any], in_git: Collection[str]) -> Iterator[str]:
    """Describe what DVC reports about one stage, without missing data that git does not keep."""
    stage = lock.stages.get(name)
    if stage is None:
        yield f"{NAME} has no stage {name}"
        return
    for entry in entries:
        if not isinstance(entry, dict):  # "changed command" or "always changed"
            yield str(entry)
            continue
        for path, state in entry.get("changed deps", {}).items():
            yield from (
                _params(stage, path, state) if isinstance(state, dict) else _dep(folder, lock, name, path, state)
            )
        for path, state in entry.get("changed outs", {}).items():
            if path not in {out.path for out in stage.outs}:
                yield f"{path}: an output of {name}, but not in {NAME}"
            elif state not in ("not in cache", "deleted"):
                yield f"{path}: not the bytes that {NAME} names"
            elif path in in_git:
                yield f"{path}: no such file, though git keeps it and {NAME} names it"


def _dropped(name: str, stage: Stage, now: Any) -> Iterator[str]:
    """Describe what the lock has for a stage and dvc.yaml (the stage `now`) does not."""
    if now is None:
        yield f"dvc.yaml has no stage {name}"
        return
    for kind, locked, listed in (("a dep", stage.deps, now.deps), ("an output", stage.outs, now.outs)):
        paths = {each.def_path for each in listed}
        yield from (f"{file.path}: {kind} of {name} no longer" for file in locked if file.path not in paths)
    keys = {dep.def_path: dep.params for dep in now.deps if hasattr(dep, "params")}  # none: the whole file
    for path, values in stage.params.items():
        unread = [key for key in values if path not in keys or (keys[path] and key not in keys[path])]
        yield from (f"{key} of {path}: read by {name} no longer" for key in unread)


def _params(stage: Stage, file: str, keys: Mapping[str, str]) -> Iterator[str]:
    for key, state in keys.items():
        # Values of params.yaml that both have were compared before, with `choices` applied.
        if file != PARAMS or key not in stage.params.get(file, {}):
            yield f"{key} of {file}: {state} since {NAME} was written"


def _dep(folder: Path, lock: Lock, name: str, path: str, state: str) -> Iterator[str]:
    known = path in {dep.path for dep in lock.stages[name].deps}
    if path in lock.outputs():
        if not known:
            yield f"{path}: a dep of {name}, but not in {NAME}"
        return  # data: missing, or checked at the stage that makes it
    if absent := _not_pulled(folder, path):
        raise StageError(f"{absent}: missing, so it cannot be compared; run: dvc pull {absent}")
    if not known:
        yield f"{path}: a dep of {name}, but not in {NAME}"
    elif state == "deleted":
        yield f"{path}: no such file, but {NAME} names it"
    else:
        yield f"{path}: changed since {NAME} was written"


def _not_pulled(folder: Path, path: str) -> str | None:
    """Return the first missing file or folder at or below `path` that `dvc add` tracks."""
    tracking = [folder / f"{path}.dvc", *(folder / path).rglob("*.dvc")]
    missing = (file.with_suffix("") for file in tracking if file.is_file() and not file.with_suffix("").exists())
    return next((str(target.relative_to(folder)) for target in missing), None)
