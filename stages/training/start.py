"""Begins training with the weights of an earlier model (`train.start_from`), or goes on from the end of its run.

Its SHA-256 is a param, because neither a path nor the name of a revision says which model it is.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from numpy.typing import NDArray
from pydantic import Field, model_validator

from stages.common.failure import StageError
from stages.common.params import OptionalSHA256, Section
from stages.common.records import ModelRecord, Origin, Statistics, read_record
from stages.model.revisions import fetch_model

if TYPE_CHECKING:
    import keras


class StartParams(Section):
    """The part of `train` in params.yaml that says what training begins with."""

    start_from: str  # the path of a model.keras, or a git revision or DVC experiment; empty: random weights
    start_sha256: OptionalSHA256  # of that model, as its model.json has it
    continue_: bool = Field(alias="continue")  # go on from the end of the run that trained it
    keep_state: bool  # keep the optimizer's state in model.keras, with which a later run continues exactly

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.continue_ and not self.start_from:
            raise ValueError("continue needs the model to go on from; set start_from")
        return self


@dataclass(frozen=True, eq=False)
class Earlier:
    """An earlier model: its weights by layer, its record, and its training state, empty if it was not kept."""

    weights: dict[str, list[NDArray[Any]]]
    record: ModelRecord
    state: bytes


def load_earlier(params: StartParams) -> Earlier | None:
    """Return the model that `params` name, None if they name none.

    Raises `StageError` when it is not there, is not one that the stage train wrote, or has another SHA-256.
    """
    from stages.model.archive import read_state
    from stages.model.trained import load_model

    if not params.start_from:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(params.start_from)
        if path.suffix != ".keras":
            path = fetch_model(Path(), params.start_from, Path(folder), "train.start_from")
        elif not path.exists():
            raise StageError(
                f"train.start_from: {path}: no such file; DVC deletes this pipeline's own model before training, "
                "so name its revision instead, such as HEAD"
            )
        found = read_record(path.with_suffix(".json"), ModelRecord).sha256
        if found != params.start_sha256:
            problem = f"expected {params.start_sha256}, found" if params.start_sha256 else "not set; it is"
            raise StageError(
                f"train.start_sha256: the model of {params.start_from}: {problem} {found}; set the key to that if "
                "it is the model that you mean"
            )
        model, record = load_model(path)
        weights = {layer.name: layer.get_weights() for layer in model.layers if layer.weights}
        return Earlier(weights, record, read_state(path))


def take_weights(model: keras.Model, earlier: Earlier, statistics: Statistics, continued: bool) -> Origin:
    """Give `model` the weights of the earlier one, and return their record.

    The last layer keeps its initial weights if the classes differ. Raises `StageError` when another layer is
    missing or has other shapes, when pixels are scaled in another way, and when a continued run has other classes.
    """
    record = earlier.record
    if record.scaling != statistics.scaling:
        raise StageError(
            f"preprocess.scaling: {statistics.scaling}, but the model in train.start_from was trained with "
            f"{record.scaling}; use that"
        )
    layers = [layer for layer in model.layers if layer.weights]
    if record.classes != statistics.classes:
        if continued:
            raise StageError(
                "train.continue: the earlier model has other classes; set train.continue: false, to replace its "
                "last layer"
            )
        print(f"train: the classes differ: {layers.pop().name} starts with random weights", file=sys.stderr)
    for layer in layers:
        given, own = (
            [each.shape for each in weights]
            for weights in (earlier.weights.get(layer.name, []), layer.get_weights())
        )
        if given != own:
            raise StageError(
                f"train.start_from: layer {layer.name} has the shapes {_listed(own)}, but in the earlier model "
                f"{_listed(given) or 'there is none'}; use the same model section and image size"
            )
    if continued and not earlier.state:
        print("train: the earlier run did not keep its state (train.keep_state): a new optimizer", file=sys.stderr)
    for layer in layers:
        layer.set_weights(earlier.weights[layer.name])
    return Origin(weights="an earlier model", sha256=record.sha256, epochs=record.epoch if continued else 0)


def _listed(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(" x ".join(map(str, shape)) for shape in shapes)
