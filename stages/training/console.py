"""Progress of a training run: a progress bar on a terminal, and one plain line per epoch."""

import sys
import time
from typing import Any

import keras
from tqdm import tqdm


class Console(keras.callbacks.Callback):
    """Shows epoch, step, loss, accuracy, images a second and the remaining time, on standard error."""

    def __init__(self, images: int, batch_size: int, epochs: int) -> None:
        """Prepare for epochs of `images` images each."""
        super().__init__()
        self._images, self._batch_size, self._epochs = images, batch_size, epochs
        self._bar: tqdm[Any] | None = None
        # When the epoch began, and at which batch (not the first in a resumed run). Lists, because checkpoints
        # restore a callback's plain numbers.
        self._clock: list[float] = []
        self._batches: list[int] = []

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Start the epoch's bar and clock."""
        self._clock, self._batches = [time.monotonic()], []
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=self._images, desc=f"epoch {epoch + 1}/{self._epochs}", unit=" images", leave=False
            )

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Record the batch, to compute the speed."""
        self._batches.append(batch)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Update the progress bar."""
        if self._bar is not None and logs is not None:
            self._bar.set_postfix(step=batch + 1, loss=f"{logs['loss']:.4f}", accuracy=f"{logs['accuracy']:.4f}")
            self._bar.update(min((batch + 1) * self._batch_size, self._images) - self._bar.n)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Print the epoch's results and the remaining time."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        first = self._batches[0] if self._batches else 0
        speed = (self._images - first * self._batch_size) / (time.monotonic() - self._clock[0])
        left = (self._epochs - epoch - 1) * self._images / speed
        figures = ", ".join(f"{name} {value:.4f}" for name, value in (logs or {}).items())
        print(
            f"epoch {epoch + 1}/{self._epochs}: {figures}, {speed:,.0f} images/s, {left / 60:.0f} min left",
            file=sys.stderr,
            flush=True,
        )
