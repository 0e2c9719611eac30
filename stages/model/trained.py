"""Loads the model that the stage train wrote. Any other is refused, because loading a model can run its code."""

import hashlib
from pathlib import Path

import keras

from stages.common.failure import StageError
from stages.common.records import ModelRecord, read_record
from stages.model.inference import Predictor


def load_model(path: Path) -> tuple[keras.Model, ModelRecord]:
    """Return the model at `path`, NAME.keras, and its record, NAME.json beside it.

    Raises `StageError` when one of them is missing or the model is not the one that the record describes.
    """
    record = read_record(path.with_suffix(".json"), ModelRecord)
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        raise StageError(f"{path}: no such file; run: dvc repro") from None
    if found != record.sha256:
        raise StageError(
            f"{path}: not the model that the stage train wrote (expected SHA-256 {record.sha256}, found {found}); "
            "run: dvc repro --force train"
        )
    model: keras.Model = keras.saving.load_model(path, compile=False, safe_mode=True)
    if model.input_shape[1:] != record.shape:
        raise StageError(
            f"{path}: takes images of {model.input_shape[1:]}, but its record says {record.shape}; "
            "run: dvc repro --force train"
        )
    return model, record


def load_predictor(path: Path) -> tuple[Predictor, ModelRecord]:
    """Return the forward pass of the model at `path` and its record; raises `StageError` as `load_model` does."""
    model, record = load_model(path)
    return Predictor(model), record
