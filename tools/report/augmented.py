"""What the network sees of training images: a row of pictures for each key of augmentation that is on."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.model.runtime import standard_error_kept
from stages.training.augmentation import (
    AugmentationParams,
    alternate_flips,
    augment,
    mixed,
    mixing_weights,
    scaled_size,
)
from tools.report.markup import Markup, element, image, join
from tools.report.pictures import OF_EACH_CLASS, data_uri
from tools.report.results import Results

OFF: dict[str, Any] = {"scales": [1]}  # other keys are off when false or 0
SEED, STEP = 0, 0


def grid(run: Results) -> Markup:
    """Return the same training images unchanged, with each key alone, and with all; nothing without any key."""
    fields = AugmentationParams.model_fields
    off: dict[str, Any] = {key: OFF.get(key, False if key == "flip" else 0) for key in fields}
    chosen = {key: run.chosen["train"].get(key, off[key]) for key in fields}  # older runs do not have newer keys
    on = {key: value for key, value in chosen.items() if value != off[key]}
    if not on:
        return Markup("")
    first = [np.flatnonzero(run.training.labels == number)[:1] for number in range(len(run.classes))]
    indices = np.concatenate(first)[:OF_EACH_CLASS]
    pixels = run.training.images[np.resize(indices, OF_EACH_CLASS)]
    rows = [_row("unchanged", pixels)]
    rows += [_row(f"{key}: {value}", _changed({**off, key: value}, pixels)) for key, value in on.items()]
    if len(on) > 1:
        rows.append(_row("together", _changed(chosen, pixels)))
    heading = element("h2", "What the network sees")
    words = element("p", "Training images with the augmentation of this run, which is random in each epoch.")
    content = element("div", element("div", join(rows), class_="grid"), class_="stack")
    return element("section", join([heading, words, content]), id="augmentation")


def _row(name: str, pixels: NDArray[np.uint8]) -> Markup:
    images = [image(data_uri(each), f"{name}, image {number}") for number, each in enumerate(pixels)]
    return element(
        "div", join([element("h3", name), element("div", join(images), class_="strip")]), class_="of-class"
    )


def _changed(keys: dict[str, Any], pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the images, uint8 (N, H, W, C), as a step of training with these keys changes them."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with standard_error_kept():
        import tensorflow as tf  # here, because most reports do not need it

    params = AugmentationParams(**keys)
    images = pixels.astype(np.float32) / np.float32(255)
    if params.flip == "alternate":
        flipped = alternate_flips(SEED, 0, len(images))
        images[flipped] = images[flipped, :, ::-1]
    if params.mixup:
        images = mixed(mixing_weights(params, STEP, len(images), SEED), images, images[::-1])
    size = scaled_size(params.scales[0], *images.shape[1:3])
    places = tf.range(len(images))
    changed = augment(params, tf.constant(images), SEED, tf.constant(STEP), places, len(images), size).numpy()
    rounded: NDArray[np.uint8] = np.rint(255 * np.clip(changed, 0, 1)).astype(np.uint8)
    return rounded
