"""The Keras callbacks of a run: your own, by dotted name, and those that show how it goes."""

import importlib
import time
from pathlib import Path

import keras

from stages.common.failure import StageError
from stages.training.console import Console
from stages.training.params import TrainParams


def displays(params: TrainParams, images: int, logs: Path) -> list[keras.callbacks.Callback]:
    """Return the callbacks that show a run of `images` images an epoch: TensorBoard's logs and the console."""
    board = keras.callbacks.TensorBoard(logs / "tensorboard" / time.strftime("%Y%m%d-%H%M%S"))
    return [board, Console(images, params.batch_size, params.epochs)]


def named_callback(name: str) -> keras.callbacks.Callback:
    """Return the callback of `train.callbacks` with this dotted name; raises `StageError` when there is none."""
    module, _, attribute = name.rpartition(".")
    try:
        callback = getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise StageError(
            f"train.callbacks: {name!r} cannot be made: {error}; name a class without arguments: module.Class"
        ) from None
    if not isinstance(callback, keras.callbacks.Callback):
        raise StageError(f"train.callbacks: {name!r} is no Keras callback; name a class: module.Class")
    return callback
