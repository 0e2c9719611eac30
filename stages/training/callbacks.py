"""The Keras callbacks of a run: user-defined ones by dotted name, TensorBoard and the console."""

import importlib
import time
from pathlib import Path

import keras

from stages.common.failure import StageError
from stages.training.console import Console


def displays(batch_size: int, images: int, epochs: int, logs: Path) -> list[keras.callbacks.Callback]:
    """Return the callbacks that report progress: TensorBoard and the console. images: in an epoch."""
    board = keras.callbacks.TensorBoard(logs / "tensorboard" / time.strftime("%Y%m%d-%H%M%S"))
    return [board, Console(images, batch_size, epochs)]


def named_callback(name: str) -> keras.callbacks.Callback:
    """Return a new callback of the class with this dotted name; raises `StageError` when that is not possible."""
    module, _, attribute = name.rpartition(".")
    try:
        callback = getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise StageError(
            f"train.callbacks: {name!r} cannot be created: {error}; name a class without arguments: module.Class"
        ) from None
    if not isinstance(callback, keras.callbacks.Callback):
        raise StageError(f"train.callbacks: {name!r} is not a Keras callback; name a class: module.Class")
    return callback
