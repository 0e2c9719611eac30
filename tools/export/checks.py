"""Compare an exported file with the trained model on the test split, and measure its speed."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from stages.common.failure import StageError
from stages.model.inference import batch_size
from tools.compare.paired import mcnemar

BATCHES = (1, 8, 32, 128, 512)  # tried for the speed
PIXELS = 512 * 64 * 64  # in a batch, so that large images fit into memory
SECONDS = 0.2  # of each, and three calls at least
TOLERANCE = 1e-5  # of a probability, for a file that computes in float32
# Where the model's own two highest probabilities are this close, float32's rounding decides.
TIE = 1e-6

Images = NDArray[np.uint8]
Probabilities = NDArray[np.float32]
Run = Callable[[Images], Probabilities]


@dataclass(frozen=True)
class Result:
    """How a file's answers on the test images differ from the trained model's, and its speed on this machine."""

    largest_difference: float  # of a probability
    decisions: int  # images that get another class, ties apart
    ties: int  # images that get another class, but whose two highest probabilities are within `TIE`
    accuracy: float
    gained: int  # images that only the file gets right
    lost: int
    p_value: float  # of McNemar's exact test on those
    milliseconds: float  # for one image
    images_per_second: float  # at the best batch size
    batch: int


class Checker:
    """The test images, uint8 (N, H, W, C), their labels (N,), and what is accepted.

    max_drop: the accuracy that lower precision may cost; max_difference: of a probability, of float32 files.
    """

    def __init__(
        self, images: Images, labels: NDArray[np.uint8], max_drop: float, max_difference: float = TOLERANCE
    ) -> None:
        """Take the raw test split."""
        self.images, self.labels = images, labels
        self.max_drop, self.max_difference = max_drop, max_difference

    def predict(self, run: Run) -> Probabilities:
        """Return the probabilities, float32 (N, classes), of the test images."""
        size = batch_size(self.images.shape[1:])  # as the model predicts them
        starts = range(0, len(self.images), size)
        parts = (np.ascontiguousarray(self.images[start : start + size]) for start in starts)
        return np.concatenate([run(part) for part in parts])

    def check(self, name: str, run: Run, expected: Probabilities, exact: bool) -> Result:
        """Compare with the `expected` probabilities and measure.

        Raises `StageError` when an `exact` file does not give the same probabilities and decisions, or another one
        loses too much accuracy.
        """
        found = self.predict(run)
        highest = np.sort(expected, axis=1)[:, -2:]
        differ, tie = found.argmax(axis=1) != expected.argmax(axis=1), highest[:, 1] - highest[:, 0] < TIE
        right, right_before = (each.argmax(axis=1) == self.labels for each in (found, expected))
        gained, lost = int((right & ~right_before).sum()), int((right_before & ~right).sum())
        difference, decisions = float(np.abs(found - expected).max()), int((differ & ~tie).sum())
        p_value, accuracy = mcnemar(gained, lost), float(right.mean())
        # Negated, so that NaN does not pass.
        if exact and not (difference <= self.max_difference and decisions == 0):
            raise StageError(
                f"{name}: its probabilities on the test images differ by up to {difference:.2g} from the model's "
                f"(limit {self.max_difference:g}), and {decisions:,} decisions differ (limit 0); nothing was "
                "exported. Leave this format out, or raise --max-difference if the network is deep"
            )
        drop = (lost - gained) / len(self.labels)
        if not difference <= 1 or drop > self.max_drop:
            raise StageError(
                f"{name}: its accuracy on {len(self.labels):,} test images is {accuracy:.4f}, {drop:.4f} below "
                f"the model's (limit {self.max_drop:g}, exact McNemar p = {p_value:.2g}); nothing was exported. "
                "Leave this format out, or raise --max-drop"
            )
        ties = int((differ & tie).sum())
        return Result(difference, decisions, ties, accuracy, gained, lost, p_value, *speed(run, self.images))


def speed(run: Run, images: Images) -> tuple[float, float, int]:
    """Return the milliseconds for one image, the images a second at the best batch size, and that size."""
    best, milliseconds = (0.0, 0), 0.0
    pixels = math.prod(images.shape[1:3])
    for size in (size for size in BATCHES if size * pixels <= max(PIXELS, pixels)):
        batch = np.resize(images, (size, *images.shape[1:]))
        run(batch)  # the first call of a size plans its memory
        seconds: list[float] = []
        end = time.perf_counter() + SECONDS
        while len(seconds) < 3 or time.perf_counter() < end:
            began = time.perf_counter()
            run(batch)
            seconds.append(time.perf_counter() - began)
        if size == 1:
            milliseconds = 1000 * median(seconds)
        best = max(best, (size / median(seconds), size))
    return milliseconds, *best
