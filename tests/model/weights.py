"""Weights for the backbone MobileNetV3Small, in the format of the files that Keras publishes."""

from pathlib import Path

import h5py
import keras
import numpy as np
from keras.src.legacy.saving import legacy_h5_format


def weights_file(path: Path) -> Path:
    """Write random weights whose features vary from image to image, as those of plain random weights hardly do."""
    keras.utils.set_random_seed(1)
    backbone = keras.applications.MobileNetV3Small(include_top=False, weights=None, input_shape=(32, 32, 3))
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    # One pass in training mode: the running statistics become those of these images.
    backbone(np.random.default_rng(1).integers(0, 256, (64, 32, 32, 3)).astype(np.float32), training=True)
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, backbone)
    return path
