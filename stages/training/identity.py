"""The identity of a training run: digests of its params, data, code and library versions.

A run reads only checkpoints with its own key, and the workers of a cluster compare digests before they start.
"""

import hashlib
import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.common.params import Section
from stages.common.records import Statistics
from stages.model import runtime

STAGES = Path(__file__).parents[1]
ROOMS = ("common", "model", "training")  # those of the stage train in dvc.yaml


def run_digests(choices: Sequence[Section], statistics: Statistics, code: Mapping[str, Path]) -> dict[str, str]:
    """Return the SHA-256, in hex, of everything that determines a run: params, data, code, library versions."""
    files = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in code.items()}
    contents = {
        "params": [choice.model_dump() for choice in choices],
        "data": statistics.model_dump(),
        "code": files,
        "library versions": runtime.versions(),
    }
    return {name: _sha256(content) for name, content in contents.items()}


def run_key(digests: Mapping[str, str], replicas: int) -> str:
    """Return the SHA-256, in hex, of `digests` and the number of replicas: the key of a run's checkpoints."""
    return _sha256([digests, replicas])


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def code_files(callbacks: Sequence[str]) -> dict[str, Path]:
    """Return the code of the stage train and the modules that define its `callbacks`, by name."""
    rooms = [STAGES / "train.py", *(path for room in ROOMS for path in sorted((STAGES / room).rglob("*.py")))]
    own = sorted({name.rpartition(".")[0] for name in callbacks})
    modules = {name: getattr(importlib.import_module(name), "__file__", None) for name in own}
    return {
        **{path.relative_to(STAGES).as_posix(): path for path in rooms},
        **{name: Path(file) for name, file in modules.items() if file},
    }
