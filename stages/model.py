"""The network: read `build_model` from top to bottom as a list of layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from stages.failure import StageError
from stages.params import Section

if TYPE_CHECKING:
    import keras


class Block(Section):
    """Convolutions of the same width, then max-pooling, then dropout."""

    filters: int = Field(ge=1)
    layers: int = Field(ge=1)
    pool: int = Field(ge=1)  # 1: none
    dropout: float = Field(ge=0, lt=1)


class ModelParams(Section):
    """`model` of params.yaml."""

    blocks: list[Block]
    kernel: int = Field(ge=1)
    padding: Literal["same", "valid"]
    activation: Literal["relu", "elu", "gelu", "silu", "tanh"]
    dense: list[Annotated[int, Field(ge=1)]]  # units of each hidden layer
    dropout: float = Field(ge=0, lt=1)  # after each hidden layer


def build_model(params: ModelParams, shape: tuple[int, int, int], classes: int) -> keras.Model:
    """Return a network from images, float32 (N, *shape), to probabilities, float32 (N, classes).

    Raises `StageError` when the images are too small for the blocks.
    """
    import keras  # here, because importing this module must not load TensorFlow before `runtime.start`
    from keras import layers

    _check_fit(params, shape)
    model = keras.Sequential(name="classifier")
    model.add(keras.Input(shape, name="images"))
    for number, block in enumerate(params.blocks, start=1):
        for layer in range(1, block.layers + 1):
            model.add(
                layers.Conv2D(
                    block.filters,
                    params.kernel,
                    padding=params.padding,
                    activation=params.activation,
                    name=f"block{number}_conv{layer}",
                )
            )
        if block.pool > 1:
            model.add(layers.MaxPooling2D(block.pool, name=f"block{number}_pool"))
        if block.dropout:
            model.add(layers.Dropout(block.dropout, name=f"block{number}_dropout"))
    model.add(layers.Flatten(name="flatten"))
    for number, units in enumerate(params.dense, start=1):
        model.add(layers.Dense(units, activation=params.activation, name=f"dense{number}"))
        if params.dropout:
            model.add(layers.Dropout(params.dropout, name=f"dense{number}_dropout"))
    # float32 also under a lower precision: small probabilities would round to zero.
    model.add(layers.Dense(classes, activation="softmax", dtype="float32", name="probabilities"))
    return model


def _check_fit(params: ModelParams, shape: tuple[int, int, int]) -> None:
    """Follow the height and width through the blocks; Keras's own error would not name the params."""
    side = min(shape[:2])
    for number, block in enumerate(params.blocks):
        if params.padding == "valid":
            side -= block.layers * (params.kernel - 1)
        side //= block.pool
        if side < 1:
            raise StageError(
                f"model.blocks[{number}]: nothing is left of images of {shape[0]} x {shape[1]} pixels after it; "
                "use fewer blocks, less pooling or padding: same"
            )
