"""The network `pretrained`: a backbone of keras.applications with published weights, and a new last layer.

Images arrive as pixel / 255, like those of the other networks. The first layers restore the range that the
backbone was trained on, inside the model, so that nothing outside scales the pixels a second time. The backbone
computes the same in training as in inference: its batch normalization keeps the published statistics, also during
fine-tuning, and its dropout is off.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field

from stages.common.failure import StageError
from stages.common.fetch import cache_folder, fetch, sources_from_environment
from stages.common.params import OptionalSHA256, Section
from stages.common.records import Origin

if TYPE_CHECKING:
    import keras

PUBLISHED = "https://storage.googleapis.com/tensorflow/keras-applications/"


class Backbone(NamedTuple):
    """The file of published weights without the last layer, below `PUBLISHED`, and its MD5 in Keras's source.

    scales: whether the backbone takes pixels from 0 to 255 and scales them itself; the others take -1 to 1.
    """

    file: str
    md5: str
    scales: bool


# keras/src/applications/*.py, Keras 3.15: WEIGHTS_HASHES, and the URLs beside them.
BACKBONES = {
    "EfficientNetV2B0": Backbone(
        "efficientnet_v2/efficientnetv2-b0_notop.h5", "893217f2bb855e2983157299931e43ff", scales=True
    ),
    "EfficientNetV2B1": Backbone(
        "efficientnet_v2/efficientnetv2-b1_notop.h5", "0e80663031ca32d657f9caa404b6ec37", scales=True
    ),
    "EfficientNetV2B2": Backbone(
        "efficientnet_v2/efficientnetv2-b2_notop.h5", "1dfe2e7a5d45b6632553a8961ea609eb", scales=True
    ),
    "EfficientNetV2B3": Backbone(
        "efficientnet_v2/efficientnetv2-b3_notop.h5", "f6abf7b5849ac99a89b50dd3fd532856", scales=True
    ),
    "EfficientNetV2S": Backbone(
        "efficientnet_v2/efficientnetv2-s_notop.h5", "af0682fb74e8c54910f2d4393339c070", scales=True
    ),
    "EfficientNetV2M": Backbone(
        "efficientnet_v2/efficientnetv2-m_notop.h5", "1b8dc055df72dde80d614482840fe342", scales=True
    ),
    "MobileNetV3Small": Backbone(
        "mobilenet_v3/weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5",
        "d3e8ec802a04aa4fc771ee12a9a9b836",
        scales=True,
    ),
    "MobileNetV3Large": Backbone(
        "mobilenet_v3/weights_mobilenet_v3_large_224_1.0_float_no_top_v2.h5",
        "07fb09a5933dd0c8eaafa16978110389",
        scales=True,
    ),
    "ResNet50V2": Backbone(
        "resnet/resnet50v2_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "fac2f116257151a9d068a22e544a4917",
        scales=False,
    ),
    "ResNet101V2": Backbone(
        "resnet/resnet101v2_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "c0ed64b8031c3730f411d2eb4eea35b5",
        scales=False,
    ),
}


class PretrainedParams(Section):
    """`model` of params.yaml for the network `pretrained`."""

    network: Literal["tutorial", "fast", "pretrained"]
    backbone: Literal[
        "EfficientNetV2B0",
        "EfficientNetV2B1",
        "EfficientNetV2B2",
        "EfficientNetV2B3",
        "EfficientNetV2S",
        "EfficientNetV2M",
        "MobileNetV3Small",
        "MobileNetV3Large",
        "ResNet50V2",
        "ResNet101V2",
    ]
    weights: str = Field(min_length=1)  # imagenet: those that Keras publishes; none: random; or a path or URL
    sha256: OptionalSHA256  # of the file of weights; not used with `weights: none`
    dropout: float = Field(ge=0, lt=1)  # before the last layer
    fine_tune_epochs: int = Field(ge=0)  # of the whole network, after train.epochs of the last layer
    fine_tune_rate: float = Field(gt=0)  # the learning rate of those epochs


def fetch_weights(params: Section) -> Path | None:
    """Return the path of the file of weights that a `pretrained` network starts with; None for other networks.

    The file is fetched unless it is in the cache. Its SHA-256 decides; the copies and mirrors in WEIGHTS_SOURCES
    are tried first. Raises `StageError` when no source has the file, and when no SHA-256 is given.
    """
    if not isinstance(params, PretrainedParams) or params.weights == "none":
        return None
    require_pin(params)
    source = _source(params)
    # Keras tells the formats apart by the suffix.
    name = Path(source.partition("?")[0]).name
    return fetch(
        [*sources_from_environment("WEIGHTS_SOURCES"), source],
        params.sha256,
        cache_folder() / "weights" / params.sha256[:16] / name,
        hint="set WEIGHTS_SOURCES to a copy or a mirror, or correct model.sha256",
    )


def require_pin(params: Section) -> None:
    """Raise `StageError` when the weights of a `pretrained` network are not pinned by their SHA-256."""
    if isinstance(params, PretrainedParams) and params.weights != "none" and not params.sha256:
        md5 = BACKBONES[params.backbone].md5
        known = f", check that its MD5 is {md5}," if params.weights == "imagenet" else ""
        raise StageError(
            f"model.sha256: not set. Download {_source(params)}{known} and set the key to what sha256sum prints "
            "for it; see docs/pretrained.md"
        )


def _source(params: PretrainedParams) -> str:
    return PUBLISHED + BACKBONES[params.backbone].file if params.weights == "imagenet" else params.weights


def weights_origin(params: Section) -> Origin | None:
    """Return the record of the weights that a `pretrained` network starts with, if they are not random."""
    if not isinstance(params, PretrainedParams) or params.weights == "none":
        return None
    return Origin(weights=params.backbone, sha256=params.sha256)


def check_scaling(params: Section, scaling: str) -> None:
    """Raise `StageError` unless pixels were scaled as a `pretrained` network expects them: pixel / 255."""
    if isinstance(params, PretrainedParams) and scaling != "unit":
        raise StageError(
            f"preprocess.scaling: {scaling} does not go with the network pretrained, which scales pixels as its "
            "backbone was trained; use: unit"
        )


def pretrained(
    params: PretrainedParams, shape: tuple[int, int, int], classes: int, weights: Path | None
) -> keras.Model:
    """Return the network with a frozen backbone, which has the values in the file `weights`, or random ones.

    Raises `StageError` when the images are too small for the backbone, or the weights do not fit it.
    """
    import keras  # here, because importing this module must not load TensorFlow before `runtime.start`
    from keras import layers

    try:
        backbone = getattr(keras.applications, params.backbone)(
            include_top=False, weights=None, input_shape=(*shape[:2], 3)
        )
    except ValueError as error:
        raise StageError(
            f"model.backbone: images of {shape[0]} x {shape[1]} pixels do not fit {params.backbone}: {error}; use "
            "larger images (dataset.folder.pixels)"
        ) from None
    # `backbone(pixels, training=False)` would not do: Keras overrides it when the whole model is called to train.
    backbone = keras.models.clone_model(backbone, clone_function=_without_dropout)
    if weights:
        _load_weights(backbone, params.backbone, weights)
    backbone.trainable = False
    images = keras.Input(shape, name="images")
    # float32 even in mixed precision: 8 bits of mantissa cannot hold pixel / 255, only the pixel.
    pixels = layers.Rescaling(255.0, dtype="float32", name="pixels")(images)
    if not BACKBONES[params.backbone].scales:
        pixels = layers.Rescaling(1 / 127.5, offset=-1.0, dtype="float32", name="centered_pixels")(pixels)
    if shape[2] == 1:
        pixels = layers.Concatenate(name="rgb")([pixels] * 3)
    features = backbone(pixels)
    features = layers.GlobalAveragePooling2D(keepdims=True, dtype="float32", name="features")(features)
    features = layers.Flatten(name="flatten")(features)
    if params.dropout:
        features = layers.Dropout(params.dropout, name="dropout")(features)
    # float32 even in mixed precision: small probabilities would round to zero.
    probabilities = layers.Dense(classes, activation="softmax", dtype="float32", name="probabilities")(features)
    return keras.Model(images, probabilities, name="classifier")


def backbone_of(model: keras.Model) -> keras.Model:
    """Return the backbone in a `pretrained` network."""
    import keras

    return next(layer for layer in model.layers if isinstance(layer, keras.Model))


def _without_dropout(layer: keras.layers.Layer) -> keras.layers.Layer:
    import keras

    off = {"rate": 0.0} if isinstance(layer, keras.layers.Dropout) else {}
    return type(layer).from_config({**layer.get_config(), **off})


def unfreeze(model: keras.Model) -> None:
    """Make the weights of the backbone trainable, but not those of its batch normalization.

    With few images its offsets and factors would adapt to statistics that the published ones no longer match.
    """
    import keras

    backbone = backbone_of(model)
    backbone.trainable = True
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False


def _load_weights(backbone: keras.Model, name: str, path: Path) -> None:
    if path.suffix != ".h5":
        raise StageError(
            f"model.weights: {path}: expected a file of Keras weights, named *.h5; rename or convert it"
        )
    try:
        backbone.load_weights(path)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise StageError(
            f"model.weights: {path} does not fit {name} without its last layer: {reason}; use another file or "
            "model.backbone"
        ) from None
