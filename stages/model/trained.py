"""Load the model that the stage train wrote, and no other: loading a stranger's model runs its code."""

import hashlib
import json
from pathlib import Path

import keras

from stages.common.failure import StageError
from stages.model.inference import Predictor


def verify_trained_here(model: Path, train_metrics: Path) -> str:
    """Return the model file's SHA-256 when `train_metrics` names it: loading a stranger's model runs its code."""
    try:
        found = hashlib.sha256(model.read_bytes()).hexdigest()
        expected = json.loads(train_metrics.read_bytes())["model_sha256"]
    except FileNotFoundError as error:
        raise StageError(f"{error.filename}: no such file; run: dvc repro") from None
    except (ValueError, LookupError, TypeError):  # not JSON, no such key, or not an object
        raise StageError(
            f"{train_metrics}: not what the stage train writes; run: dvc repro --force train"
        ) from None
    if found != expected:
        raise StageError(
            f"{model}: sha256 {expected} expected by {train_metrics}, {found} found: not the model that the "
            "stage train wrote; run: dvc repro --force train"
        )
    return found


def load_predictor(path: Path, shape: tuple[int, ...]) -> Predictor:
    """Return the model's forward pass; raises `StageError` unless it takes images of `shape` (H, W, C)."""
    model: keras.Model = keras.saving.load_model(path, compile=False, safe_mode=True)
    if model.input_shape[1:] != shape:
        raise StageError(
            f"{path}: takes images of {model.input_shape[1:]}, the test split has {shape}; run: dvc repro train"
        )
    return Predictor(model)
