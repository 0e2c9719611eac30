"""How the trained model's probabilities are used: their temperature, and when not to answer.

The stage evaluate writes models/confidence.json; everything that predicts reads it with `read_confidence`.
"""

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from stages.common.failure import StageError
from stages.common.records import read_record


class Confidence(BaseModel):
    """models/confidence.json: fitted on validation for one model.

    temperature: of `soften`, 1 for none. threshold: below this largest probability, the answer is "none of these";
    None: always answer. model_sha256, validation_sha256: the model, and the validation split it was fitted on.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    schema_version: Literal[1] = 1
    model_sha256: str
    validation_sha256: str | None = None
    temperature: float = Field(default=1.0, gt=0)
    threshold: float | None = None

    def certain(self, probabilities: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return for each row of `probabilities`, float32 (N, classes), whether to answer."""
        certain: NDArray[np.bool_] = probabilities.max(axis=1) >= (self.threshold or 0)
        return certain


def read_confidence(model: Path, sha256: str) -> Confidence:
    """Return the record beside `model`, models/model.keras, whose SHA-256 is given.

    Without one, as in a checkout where evaluate has not run yet, probabilities stay the network's own.
    Raises `StageError` when the record belongs to another model.
    """
    path = model.with_name("confidence.json")
    if not path.exists():
        return Confidence(model_sha256=sha256)
    confidence = read_record(path, Confidence)
    if confidence.model_sha256 != sha256:
        raise StageError(
            f"{path}: fitted on another model (expected SHA-256 {sha256}, found {confidence.model_sha256}); "
            "run: dvc repro evaluate"
        )
    return confidence


def soften(probabilities: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Return softmax(logits / temperature), float32 (N, classes), for probabilities softmax(logits).

    Temperature scaling (Guo et al. 2017, On Calibration of Modern Neural Networks, section 4.2). The logits are
    not needed: p^(1/T), normalized, is the same. The most probable class stays the same, except for float32 ties.
    """
    if temperature == 1:
        return probabilities
    powers = probabilities.astype(np.float64) ** (1 / temperature)
    softened: NDArray[np.float32] = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return softened
