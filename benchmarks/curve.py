"""A Keras callback for `train.callbacks` that keeps when each epoch ended, and how good it was."""

import time

import keras

POINTS: list[tuple[float, float]] = []  # of the clock, in seconds; validation accuracy


class Curve(keras.callbacks.Callback):
    """Adds a point to `POINTS` at the end of each epoch."""

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Called by `fit` and by the engine, after validation."""
        assert logs is not None
        POINTS.append((time.time(), logs["val_accuracy"]))
