"""Trains a `pretrained` network: its last layer while the backbone is frozen, then all of it at a lower rate.

Without augmentation the frozen backbone returns the same features for an image in every epoch. They are computed
once and kept in a file, which later runs with the same images and backbone read, too.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from stages.common import splits
from stages.common.failure import StageError
from stages.common.outputs import require_space
from stages.common.splits import ChunkedArray, Split
from stages.model.inference import Predictor, batches
from stages.model.pretrained import PretrainedParams, backbone_of, unfreeze
from stages.training.augmentation import augments
from stages.training.checkpoints import Checkpoints
from stages.training.loop import Trainer
from stages.training.params import TrainParams

if TYPE_CHECKING:
    from stages.training.cluster import Cluster


def train(
    model: keras.Model,
    network: PretrainedParams,
    params: TrainParams,
    training: Split,
    validation: Split,
    callbacks: Sequence[keras.callbacks.Callback],
    cluster: Cluster,
    checkpoints: Checkpoints,
    identity: Sequence[Any],
    first: int = 0,
    class_weights: NDArray[np.float32] | None = None,
) -> tuple[list[dict[str, float]], int]:
    """Train `model` in place and return what `Trainer.run` returns, with the epochs of both phases.

    identity: what features depend on, apart from the images and the backbone: code, versions and runtime.
    first: the number of epochs of the run that this one continues. class_weights: as for `Trainer`.
    """
    if params.keep_state and cluster.chief:
        print("train: train.keep_state has no effect with the network pretrained", file=sys.stderr)
    if augments(params):
        trainer = Trainer(model, params, training, validation, callbacks, cluster, (), first, class_weights)
    else:
        cache = checkpoints.folder / "features" / str(cluster.rank)  # workers on one machine may share a checkout
        features = backbone_features(model, training, cache, "train", identity)
        validated = validation
        if len(validation.images):
            validated = backbone_features(model, validation, cache, "validation", identity)
        trainer = Trainer(
            last_layers(model), params, features, validated, callbacks, cluster, (), first, class_weights
        )
    # Kept until the end: a run that is killed in the second phase then skips the first.
    history, saved = trainer.run(checkpoints, keep=True)
    if network.fine_tune_epochs:
        unfreeze(model)
        changes = {"epochs": network.fine_tune_epochs, "learning_rate": network.fine_tune_rate}
        whole = params.model_copy(update=changes)
        trainer = Trainer(model, whole, training, validation, callbacks, cluster, history, first, class_weights)
        history, saved = trainer.run(checkpoints.of_phase("fine-tuning"))
    if cluster.chief:
        checkpoints.clear()
    return history, saved


def last_layers(model: keras.Model) -> keras.Model:
    """Return the layers after the features as a network of their own, which shares the weights."""
    features = model.get_layer("features")
    after = model.layers[model.layers.index(features) + 1 :]
    return keras.Sequential([keras.Input(features.output.shape[1:]), *after], name="last_layers")


def backbone_features(model: keras.Model, split: Split, folder: Path, name: str, identity: Sequence[Any]) -> Split:
    """Return the backbone's features of a split, float32 (N, 1, 1, C), from a file in `folder` if they are there.

    The file's name holds a digest of all that the features depend on. Files of other digests are deleted.
    """
    layers = keras.Model(model.input, model.get_layer("features").output)
    path = folder / f"{name}-{_digest(backbone_of(model), split, identity)}.npz"
    try:
        return splits.read(path)
    except StageError:  # missing, or damaged
        pass
    images, channels = len(split.images), layers.output_shape[-1]
    require_space(folder, 4 * images * (channels + split.labels.shape[1]))
    print(f"train: computing the backbone's features of {images:,} {name} images", file=sys.stderr)
    chunks = _features(Predictor(layers), split)
    sha256 = splits.write(path, ChunkedArray((images, 1, 1, channels), np.dtype(np.float32), chunks), split.labels)
    for other in folder.glob(f"{name}-*"):
        if other != path:
            other.unlink()
    return splits.read(path, sha256)


def _features(predict: Predictor, split: Split) -> Iterator[NDArray[np.float32]]:
    with tqdm(total=len(split.images), desc="features", unit=" images", leave=False, disable=None) as bar:
        for _, images in batches(split):
            yield predict(images)
            bar.update(len(images))


def _digest(backbone: keras.Model, split: Split, identity: Sequence[Any]) -> str:
    digest = hashlib.sha256(json.dumps([*identity, split.sha256, backbone.to_json()], sort_keys=True).encode())
    for weights in backbone.get_weights():
        digest.update(weights.tobytes())
    return digest.hexdigest()[:16]
