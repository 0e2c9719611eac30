"""The machine that made a result and this one: the same kind, of which the same bytes are promised, or another?

Both are told by environment/, which train and evaluate write (stages/model/runtime.py) and git keeps.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.common.failure import StageError
from stages.common.figures import flat, parse_figures

Environments = dict[str, dict[str, Any]]  # by stage; of each, the values by dotted key

# What the same locked packages promise the same bytes in spite of; `runtime` is a choice, taken from dvc.lock.
PROMISED = ("cores", "libc", "python", "runtime.")
TRAINING = "metrics/train.csv"
OF_MODEL = "model_sha256"  # which model a record is of; nothing of the machine
PORTABLE_THREADS = 4  # with more, sums are split elsewhere even when the instruction set is capped


def read_environments(folder: Path) -> Environments:
    """Return what the checkout `folder` has recorded of its model; `StageError` when a record cannot be read.

    Records of another model are left out: DVC has brought back results, and not the record of their machine.
    """
    return {
        stage: record
        for stage, record in _records(folder).items()
        if record.get(OF_MODEL) == recorded_model(folder)
    }


def of_other_models(folder: Path) -> list[str]:
    """Return the stages whose record in the checkout `folder` is of another model than metrics/train.csv."""
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
    """Return the SHA-256 of the model that the metrics are of; None where they do not tell."""
    try:
        return parse_figures((folder / TRAINING).read_bytes(), TRAINING).get(OF_MODEL)
    except (FileNotFoundError, StageError):
        return None


def differences(recorded: Environments, here: Environments) -> dict[str, str]:
    """Return in words, by key, what differs in the stages of which both have a record."""
    return {
        key: f"{key}: {recorded[stage].get(key, 'none')} recorded, {here[stage].get(key, 'none')} here"
        for stage in recorded.keys() & here.keys()
        for key in sorted(recorded[stage].keys() | here[stage].keys())
        if key != OF_MODEL and recorded[stage].get(key) != here[stage].get(key)
    }


def other_kind(recorded: Environments, here: Environments) -> list[str]:
    """Return those differences for which other bytes are to be expected."""
    ignored: tuple[str, ...] = PROMISED
    if all(map(_portable, [*recorded.values(), *here.values()])):
        ignored = (*ignored, "cpu", "cpu_flags")
    found = differences(recorded, here)
    return [words for key, words in found.items() if not key.startswith(ignored)]


def portable_here(here: Environments) -> bool:
    """Tell whether a run with the instruction set capped at AVX2 has the same bytes here as on other machines."""
    return all(map(_portable, here.values()))


def _portable(environment: Mapping[str, Any]) -> bool:
    threads = environment.get("runtime.threads")  # of a file that anyone may have edited
    return (
        environment.get("runtime.cpu_isa") == "avx2"
        and isinstance(threads, int)
        and threads <= PORTABLE_THREADS
        and environment.get("system") == "Linux x86_64"
        and {"avx2", "fma"} <= set(str(environment.get("cpu_flags")).split())
    )
