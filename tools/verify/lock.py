"""Reads dvc.lock, the record of a run's inputs and outputs, and compares locks with each other and params.yaml."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from stages.common.failure import StageError
from stages.common.figures import flat
from stages.common.params import read

NAME = "dvc.lock"
PARAMS = "params.yaml"


@dataclass(frozen=True)
class Output:
    """An output of a stage; `md5` is None where the lock does not have it."""

    stage: str
    path: str
    md5: str | None
    size: int = 0  # bytes


class File(BaseModel):
    """An entry of deps or outs; the md5 of a folder ends in .dir."""

    path: str
    hash: str | None = None
    md5: str | None = None
    size: int = 0


class Stage(BaseModel):
    """A stage; `params` by file, then by the key in dvc.yaml, which may be a whole section."""

    cmd: str | list[str]
    deps: list[File] = []
    params: dict[str, dict[str, Any]] = {}
    outs: list[File] = []


class Lock(BaseModel):
    """The file, without the fields that are not needed here."""

    stages: dict[str, Stage] = Field(min_length=1)

    def outputs(self) -> dict[str, Output]:
        """Return the outputs by path, in the order of the stages."""
        return {
            # Before version 3, DVC hashed text files after converting line endings.
            out.path: Output(name, out.path, out.md5 if out.hash == "md5" else None, out.size)
            for name, stage in self.stages.items()
            for out in stage.outs
        }

    def params(self) -> dict[str, Any]:
        """Return the values of params.yaml by dotted key; raises `StageError` when two stages disagree."""
        found: dict[str, Any] = {}
        whose: dict[str, str] = {}
        for name, stage in self.stages.items():
            for key, value in flat(stage.params.get(PARAMS, {})).items():
                if key in found and found[key] != value:
                    raise StageError(
                        f"{NAME}: {key} is {found[key]} in {whose[key]} and {value} in {name}, so no single "
                        "run made it; run: dvc repro, and commit it"
                    )
                found[key], whose[key] = value, name
        return found


def read_lock(path: Path, where: str = "") -> Lock:
    """Return the lock; raises `StageError` when it is missing or damaged. where: its revision, for messages."""
    name = f"{NAME}{where}"
    if not path.exists():
        raise StageError(
            f"{name}: no such file, so there is nothing to compare with; run: dvc repro, and commit it"
        )
    try:
        return Lock.model_validate(read(path))
    except StageError as error:
        reason = str(error).replace(str(path), NAME).partition(";")[0]
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"
    remedy = "name another revision" if where else f"run: git checkout {NAME}, or dvc repro if no commit has it"
    raise StageError(f"{name}: incomplete or damaged ({reason}); {remedy}")


def differing_params(locked: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[str]:
    """Describe differences between the values in a lock, by the keys that a stage reads, and params.yaml."""
    a, b = flat(locked), flat(values)
    read_here = {key for key in b if any(key == name or key.startswith(f"{name}.") for name in locked)}
    for key in sorted(a.keys() | read_here):
        if key not in a or key not in b or a[key] != b[key]:
            yield f"{key} is {_value(a, key)} in {NAME} and {_value(b, key)} in {PARAMS}"


def contradictions(lock: Lock) -> Iterator[tuple[str, str]]:
    """Yield stage and description where a stage read other data than the stage before it wrote (mixed runs)."""
    made = lock.outputs()
    for name, stage in lock.stages.items():
        for dep in stage.deps:
            if dep.path in made and dep.md5 != made[dep.path].md5:
                yield name, f"{dep.path}: {name} read other bytes than {made[dep.path].stage} made, by {NAME}"


def changed_inputs(old: Lock, new: Lock) -> Iterator[tuple[str, str]]:
    """Yield stage and description for each command and dep that differs, apart from the pipeline's own data."""
    made = old.outputs().keys() | new.outputs().keys()
    for name, stage in new.stages.items():
        if name not in old.stages:
            yield name, f"{NAME} has no stage {name}"
            continue
        before = old.stages[name]
        if before.cmd != stage.cmd:
            yield name, f"the command of {name} is not the one in {NAME}"
        files, was = _hashes(stage.deps), _hashes(before.deps)
        for path in sorted(files.keys() | was.keys()):
            if path not in made and files.get(path) != was.get(path):
                what = "is not what" if path in files and path in was else "is a dep of"
                rest = (
                    f"{NAME} names" if path in files and path in was else f"{name} in only one of dvc.yaml, {NAME}"
                )
                yield name, f"{path} {what} {rest}"


def _hashes(files: Sequence[File]) -> dict[str, str | None]:
    return {file.path: file.md5 for file in files}


def _value(values: Mapping[str, Any], key: str) -> str:
    if key not in values:
        return "absent"
    text = str(values[key])
    return text if len(text) <= 40 else f"{text[:12]}…"
