"""The machine that made a result and this one: the same kind, of which the same bytes are promised, or another?

Both are told by environment/, which train and evaluate write (stages/runtime.py) and git keeps.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.failure import StageError
from tools.metrics import flat

Environments = dict[str, dict[str, Any]]  # by stage; of each, the values by dotted key

# What the same locked packages promise the same bytes in spite of; `runtime` is a choice, taken from dvc.lock.
PROMISED = ("cores", "libc", "python", "runtime.")
PORTABLE_THREADS = 4  # with more, sums are split elsewhere even when the instruction set is capped


def read_environments(folder: Path) -> Environments:
    """Return what the checkout `folder` has recorded; raises `StageError` when a record cannot be read."""
    found: Environments = {}
    for path in sorted((folder / "environment").glob("*.json")):
        try:
            found[path.stem] = flat(json.loads(path.read_bytes()))
        except (ValueError, AttributeError) as error:
            raise StageError(f"environment/{path.name}: cannot be read ({error}); run: dvc repro") from None
    return found


def differences(recorded: Environments, here: Environments) -> dict[str, str]:
    """Return in words, by key, what differs in the stages of which both have a record."""
    return {
        key: f"{key}: {recorded[stage].get(key, 'none')} recorded, {here[stage].get(key, 'none')} here"
        for stage in recorded.keys() & here.keys()
        for key in sorted(recorded[stage].keys() | here[stage].keys())
        if recorded[stage].get(key) != here[stage].get(key)
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
    return (
        environment.get("runtime.cpu_isa") == "avx2"
        and environment.get("runtime.threads", 0) <= PORTABLE_THREADS
        and environment.get("system") == "Linux x86_64"
        and {"avx2", "fma"} <= set(str(environment.get("cpu_flags")).split())
    )
