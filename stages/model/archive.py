"""Saves a model as a .keras archive whose bytes depend only on the model.

Keras writes the date, the times of the zip entries and the memory addresses of shared objects into the archive.
Here they are replaced by fixed values. Keras loads the result like any other archive.
"""

import json
import zipfile
from pathlib import Path
from typing import Any

import keras

from stages.common.outputs import replacing

EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date in the zip format
STATE = "training_state.npz"  # a member of our own, which Keras ignores


def save_model(model: keras.Model, path: Path, state: bytes = b"") -> None:
    """Write the architecture and weights of `model` to `path`, without the optimizer, which only `fit` needs.

    state: what a later run needs to go on with the training, stored in the archive if it is not empty.
    """
    # Keras needs this suffix. The name is fixed, so the next run overwrites what a killed one left behind.
    varying = path.with_name(f"{path.name}.partial.keras")
    # Keras ignores its argument include_optimizer; Adam's moments are twice the size of the weights.
    optimizer, model.optimizer = getattr(model, "optimizer", None), None
    try:
        with replacing(path) as partial:
            try:
                model.save(varying)
            finally:
                model.optimizer = optimizer
            with zipfile.ZipFile(varying) as source, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as target:
                members = [(name, _fixed(name, source.read(name))) for name in sorted(source.namelist())]
                for name, content in [*members, *([(STATE, state)] if state else [])]:
                    entry = zipfile.ZipInfo(name, EPOCH)
                    entry.external_attr = 0o644 << 16
                    target.writestr(entry, content)
    finally:
        varying.unlink(missing_ok=True)


def read_state(path: Path) -> bytes:
    """Return the state that `save_model` stored at `path`, empty if there is none."""
    with zipfile.ZipFile(path) as archive:
        return archive.read(STATE) if STATE in archive.namelist() else b""


def _fixed(name: str, content: bytes) -> bytes:
    if name == "metadata.json":
        return _text({**json.loads(content), "date_saved": "1980-01-01@00:00:00"})
    if name == "config.json":
        return _text(_renumber(json.loads(content), {}))
    return content


def _text(content: Any) -> bytes:
    return json.dumps(content, indent=1).encode()


def _renumber(config: Any, numbers: dict[int, int]) -> Any:
    """Number shared objects by first appearance; Keras uses their memory addresses."""
    if isinstance(config, list):
        return [_renumber(item, numbers) for item in config]
    if isinstance(config, dict):
        return {
            key: numbers.setdefault(value, len(numbers) + 1)
            if key == "shared_object_id"
            else _renumber(value, numbers)
            for key, value in config.items()
        }
    return config
