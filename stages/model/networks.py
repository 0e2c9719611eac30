"""The networks. Read `_tutorial`, `_fast` or `pretrained` from top to bottom as a list of layers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from stages.common.failure import StageError
from stages.common.params import Section, load, read
from stages.model.initialization import identity_kernel, whitening
from stages.model.pretrained import PretrainedParams, pretrained

if TYPE_CHECKING:
    import keras

# The side of the patches that the fast network's first layer whitens.
PATCH = 2
HUGE = 20_000_000  # weights of a dense layer: ten times those of the tutorial's


Filters = Annotated[int, Field(ge=1, le=2**16)]


class Block(Section):
    """Convolutions with the same number of filters, then max pooling, then dropout."""

    filters: Filters
    layers: int = Field(ge=1)
    pool: int = Field(ge=1)  # 1: none
    dropout: float = Field(ge=0, lt=1)


class NetworkParams(Section):
    """The keys of `model` that the networks trained from scratch have."""

    network: Literal["tutorial", "fast", "pretrained"]
    activation: Literal["relu", "elu", "gelu", "silu", "tanh"]


class TutorialParams(NetworkParams):
    """`model` of params.yaml for the tutorial's network."""

    blocks: list[Block]
    kernel: int = Field(ge=1)
    padding: Literal["same", "valid"]
    # average: the mean of each filter over the picture, so the size of the network does not depend on it.
    head: Literal["flatten", "average"]
    dense: list[Annotated[int, Field(ge=1)]]  # units of each hidden layer
    dropout: float = Field(ge=0, lt=1)  # after each hidden layer


class FastParams(NetworkParams):
    """`model` of params.yaml for the network of the fast recipe."""

    widths: list[Filters] = Field(min_length=1)  # number of filters of each pair of convolutions
    batch_norm_momentum: float = Field(ge=0, lt=1)  # decay of the running statistics per step
    logit_scale: float = Field(gt=0)


ModelParams = TutorialParams | FastParams | PretrainedParams
NETWORKS: dict[str, type[Section]] = {
    "tutorial": TutorialParams,
    "fast": FastParams,
    "pretrained": PretrainedParams,
}


def load_network(path: Path) -> ModelParams:
    """Return the section `model` of the params file, validated for the network that it names.

    Raises `StageError` like `params.load`.
    """
    section = read(path).get("model")
    keys, network = (section, section.get("network")) if isinstance(section, dict) else ({}, None)
    by_key: dict[str, type[Section]] = {
        "widths": FastParams,
        "backbone": PretrainedParams,
    }  # if the name is misspelt
    meant = (model for key, model in by_key.items() if key in keys)
    own = NETWORKS[network] if network in NETWORKS else next(meant, TutorialParams)
    try:
        return cast("ModelParams", load(path, "model", own))
    except StageError as error:
        others = {key for model in NETWORKS.values() for key in model.model_fields}
        if network in NETWORKS and keys.keys() & (others - own.model_fields.keys()):
            raise StageError(
                f"{error}; to get the keys of that network: python -m tools.recipe {network}"
            ) from None
        raise


def build_model(
    params: ModelParams,
    shape: tuple[int, int, int],
    classes: int,
    images: NDArray[np.float32] | None = None,
    weights: Path | None = None,
) -> keras.Model:
    """Return a network from images, float32 (N, *shape), to probabilities, float32 (N, classes).

    images: the training split, float32 (N, *shape), from which the fast network computes its first layer; without
    them that layer stays random. weights: the file with the weights of the pretrained network's backbone. Raises
    `StageError` when the images are too small for the network, or the weights do not fit it.
    """
    if isinstance(params, PretrainedParams):
        return pretrained(params, shape, classes, weights)
    if isinstance(params, FastParams):
        return _fast(params, shape, classes, images)
    return _tutorial(params, shape, classes)


def remarks(params: ModelParams, model: keras.Model) -> list[str]:
    """Return a line for a dense layer with more than `HUGE` weights, and the keys that make it smaller."""
    from keras import layers

    if not isinstance(params, TutorialParams) or params.head == "average":
        return []
    sizes = {layer.name: layer.count_params() for layer in model.layers if isinstance(layer, layers.Dense)}
    name = max(sizes, key=lambda key: sizes[key])
    if sizes[name] <= HUGE:
        return []
    return [
        f"layer {name} has {sizes[name] / 1e6:,.0f} million of the network's {model.count_params() / 1e6:,.0f} "
        "million weights, because the images are large; model.head: average needs few"
    ]


def check_smaller(params: ModelParams, shape: tuple[int, int, int], smaller: tuple[int, int, int]) -> None:
    """Raise `StageError` unless a network for images of `shape` also accepts `smaller` ones (`train.scales`)."""
    if smaller == shape:
        return
    if not isinstance(params, FastParams):
        raise StageError(
            f"train.scales: the network {params.network} accepts only one image size; use scales: [1]"
        )
    _check_pairs(params, smaller, "use fewer widths, or larger train.scales")


def _tutorial(params: TutorialParams, shape: tuple[int, int, int], classes: int) -> keras.Model:
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
    if params.head == "average":
        model.add(layers.GlobalAveragePooling2D(name="average"))
    else:
        model.add(layers.Flatten(name="flatten"))
    for number, units in enumerate(params.dense, start=1):
        model.add(layers.Dense(units, activation=params.activation, name=f"dense{number}"))
        if params.dropout:
            model.add(layers.Dropout(params.dropout, name=f"dense{number}_dropout"))
    # float32 even in mixed precision: small probabilities would round to zero.
    model.add(layers.Dense(classes, activation="softmax", dtype="float32", name="probabilities"))
    return model


def _fast(
    params: FastParams, shape: tuple[int, int, int], classes: int, images: NDArray[np.float32] | None
) -> keras.Model:
    """After K. Jordan, 94% on CIFAR-10 in 3.29 Seconds on a Single GPU (2024), itself after D. Page's ResNet-9."""
    import keras
    from keras import layers

    _check_pairs(params, shape, "use fewer widths")
    patch = PATCH * PATCH * shape[2]
    model = keras.Sequential(name="classifier")
    model.add(keras.Input(shape, name="images"))
    # Frozen. It has each principal direction and its negative, because the activation passes only one sign.
    model.add(layers.Conv2D(2 * patch, PATCH, trainable=False, name="whitening"))
    model.add(layers.Activation(params.activation, name="whitening_activation"))
    for number, width in enumerate(params.widths, start=1):
        for layer in (1, 2):
            name = f"block{number}_conv{layer}"
            model.add(layers.Conv2D(width, 3, padding="same", use_bias=False, name=name))
            if layer == 1:
                model.add(layers.MaxPooling2D(2, name=f"block{number}_pool"))
            model.add(
                layers.BatchNormalization(momentum=params.batch_norm_momentum, scale=False, name=f"{name}_norm")
            )
            model.add(layers.Activation(params.activation, name=f"{name}_activation"))
    model.add(layers.GlobalMaxPooling2D(name="pool"))
    # float32 even in mixed precision: small probabilities would round to zero.
    model.add(layers.Dense(classes, use_bias=False, dtype="float32", name="logits"))
    model.add(layers.Rescaling(params.logit_scale, dtype="float32", name="scaled_logits"))
    model.add(layers.Softmax(dtype="float32", name="probabilities"))
    _initialize(model, images)
    return model


def _initialize(model: keras.Model, images: NDArray[np.float32] | None) -> None:
    """Set initial values. A custom initializer would make the saved model depend on this code."""
    from keras import layers

    for layer in model.layers:
        if isinstance(layer, layers.Conv2D) and layer.trainable:
            layer.kernel.assign(identity_kernel(layer.kernel.numpy()))
    if images is not None:
        model.get_layer("whitening").set_weights(whitening(images, PATCH))
    logits: Any = model.get_layer("logits").kernel
    logits.assign(logits / np.std(logits.numpy()))


def _check_fit(params: TutorialParams, shape: tuple[int, int, int]) -> None:
    """Check the feature-map size after each block, because Keras's own error does not name the param."""
    side = min(shape[:2])
    for number, block in enumerate(params.blocks):
        if params.padding == "valid":
            side -= block.layers * (params.kernel - 1)
        side //= block.pool
        if side < 1:
            raise _too_small(f"blocks[{number}]", shape, "use fewer blocks, less pooling or padding: same")


def _check_pairs(params: FastParams, shape: tuple[int, int, int], remedy: str) -> None:
    side = min(shape[:2]) - PATCH + 1
    for number in range(len(params.widths)):
        side //= 2
        if side < 1:
            raise _too_small(f"widths[{number}]", shape, remedy)


def _too_small(key: str, shape: tuple[int, int, int], remedy: str) -> StageError:
    size = f"{shape[0]} x {shape[1]}"
    return StageError(f"model.{key}: images of {size} pixels are too small for it; {remedy}")
