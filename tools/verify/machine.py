"""Compares the machine that made a result with this one: of the same kind, the bytes must be the same.

Both are described in environment/, which train and evaluate write (stages/model/runtime.py) and git keeps.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.common.failure import StageError
from stages.common.figures import flat, parse_figures

Environments = dict[str, dict[str, Any]]  # by stage; of each, the values by dotted key

# Differences that do not affect the bytes. `runtime` is a section of params.yaml, taken from dvc.lock.
PROMISED = ("cores", "libc", "python", "runtime.")
TRAINING = "metrics/train.csv"
OF_MODEL = "model_sha256"  # the model of a record, which says nothing about the machine
PORTABLE_THREADS = 4  # more threads split sums differently, even with the instruction set capped


def read_environments(folder: Path) -> Environments:
    """Return the environments recorded in the checkout `folder`; raises `StageError` when a record cannot be read.

    Records of another model are left out: DVC restores results, but not the record of their machine.
    """
    return {
        stage: record
        for stage, record in _records(folder).items()
        if record.get(OF_MODEL) == recorded_model(folder)
    }


def of_other_models(folder: Path) -> list[str]:
    """Return the stages whose record in the checkout `folder` belongs to another model than metrics/train.csv."""
    return [stage for stage, record in _records(folder).items() if record.get(OF_MODEL) != recorded_model(folder)]


def _records(folder: Path) -> Environments:
    found: Environments = {}
    for path in sorted((folder / "environment").glob("*.json")):
        try:
            found[path.stem] = flat(json.loads(path.read_bytes()))
        except (ValueError, AttributeError) as error:
            raise StageError(f"environment/{path.name}: cannot be read ({error}); name another revision") from None
    return found


def recorded_model(folder: Path) -> Any:
    """Return the SHA-256 of the model in metrics/train.csv, or None."""
    try:
        return parse_figures((folder / TRAINING).read_bytes(), TRAINING).get(OF_MODEL)
    except (FileNotFoundError, StageError):
        return None


def differences(recorded: Environments, here: Environments) -> dict[str, str]:
    """Return a description of each difference, by key, for the stages that both have a record of."""
    return {
        key: f"{key}: {recorded[stage].get(key, 'none')} recorded, {here[stage].get(key, 'none')} here"
        for stage in recorded.keys() & here.keys()
        for key in sorted(recorded[stage].keys() | here[stage].keys())
        if key != OF_MODEL and recorded[stage].get(key) != here[stage].get(key)
    }


def other_kind(recorded: Environments, here: Environments) -> list[str]:
    """Return the differences that can change the bytes."""
    ignored: tuple[str, ...] = PROMISED
    if all(map(_portable, [*recorded.values(), *here.values()])):
        ignored = (*ignored, "cpu", "cpu_flags")
    found = differences(recorded, here)
    return [words for key, words in found.items() if not key.startswith(ignored)]


def portable_here(here: Environments) -> bool:
    """Return whether a run limited to AVX2 gives the portable bytes on this machine."""
    return all(map(_portable, here.values()))


def _portable(environment: Mapping[str, Any]) -> bool:
    threads = environment.get("runtime.threads")  # the file may have been edited
    return (
        environment.get("runtime.cpu_isa") == "avx2"
        and isinstance(threads, int)
        and threads <= PORTABLE_THREADS
        and environment.get("system") == "Linux x86_64"
        and {"avx2", "fma"} <= set(str(environment.get("cpu_flags")).split())
    )
