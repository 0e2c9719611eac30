"""A Keras callback for `train.callbacks` that records time and validation accuracy at the end of each epoch."""

import time

import keras

POINTS: list[tuple[float, float]] = []  # time in seconds, validation accuracy


class Curve(keras.callbacks.Callback):
    """Adds a point to `POINTS` at the end of each epoch."""

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Called after validation, by `fit` and by this training loop."""
        assert logs is not None
        POINTS.append((time.time(), logs["val_accuracy"]))
