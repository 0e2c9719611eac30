"""The trained model as a function from pictures to named probabilities, exactly as the pipeline computes them.

    classifier = Classifier(Path("models/model.keras"))
    classifier([Path("cat.jpg").read_bytes()])  # [{"airplane": 0.01, …, "cat": 0.93, …}]

Pictures are decoded and scaled by the functions that the stages download and preprocess use, and the probabilities
have the temperature in models/confidence.json. An image of the test split, saved as PNG, gets the same float32
probabilities as in data/predictions.csv.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.common.confidence import read_confidence
from stages.common.pictures import decode
from stages.common.scaling import scale
from stages.model.inference import BATCH_SIZE, Predictor
from stages.model.trained import load_model


class Classifier:
    """A model that the stage train wrote, its record, and its confidence, which says when not to answer."""

    def __init__(self, path: Path) -> None:
        """Load the model at `path`, NAME.keras, and its records beside it.

        Raises `StageError` as `load_model` and `read_confidence` do.

        Call `stages.model.runtime.start` first, with the run's params.
        """
        model, self.record = load_model(path)
        self.confidence = read_confidence(path, self.record.sha256)
        self._predict = Predictor(model, self.confidence.temperature)

    def __call__(self, pictures: Sequence[bytes | NDArray[np.uint8]]) -> list[dict[str, float]]:
        """Return the probability of each class for each picture, in order.

        A picture is the content of a file or pixels as `probabilities` takes them, without the first axis.
        Raises `Unreadable` for the first file that cannot be decoded.
        """
        if not pictures:
            return []
        images = np.stack([self.decode(each) if isinstance(each, bytes) else each for each in pictures])
        rows = self.probabilities(images).tolist()
        return [dict(zip(self.record.classes, row, strict=True)) for row in rows]

    def decode(self, content: bytes) -> NDArray[np.uint8]:
        """Return the picture in a file's content as the network's pixels, uint8 (H, W, C); raises `Unreadable`."""
        return decode(io.BytesIO(content), self.record.decoding)

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 (N, classes) for images, uint8 (N, H, W, C), of the shape in the record, with N > 0.

        Raises `ValueError` for another shape or type, such as pixels that are scaled already.
        """
        if images.dtype != np.uint8 or images.shape[1:] != self.record.shape or not len(images):
            raise ValueError(f"expected uint8 (N, *{self.record.shape}), found {images.dtype} {images.shape}")
        batches = (images[start : start + BATCH_SIZE] for start in range(0, len(images), BATCH_SIZE))
        return np.concatenate([self._predict(batch) for batch in scale(batches, self.record.by_channel)])
