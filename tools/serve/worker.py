"""Decodes pictures in a thread per core, and predicts them in one more thread."""

import asyncio
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from stages.common.pictures import Decoding, Unreadable, decode
from tools.predict.models import Run
from tools.serve.batching import Batches
from tools.serve.limits import Limits
from tools.serve.metrics import Metrics
from tools.serve.problems import busy

BYTES = 65_536  # that a thread decodes at once: one photograph, or many small pictures
PIXELS = 128 * 32 * 32  # of a batch: the best size for small images, and bounded memory for large ones


class Worker:
    """One model and the requests that wait for it. Every method is for the event loop's thread."""

    def __init__(self, run: Run, decoding: Decoding, limits: Limits, metrics: Metrics) -> None:
        """Serve `run`, a function from uint8 (N, H, W, C) to float32 (N, classes)."""
        self.admitted = 0  # pictures
        self._run, self._decoding, self._limits, self._metrics = run, decoding, limits, metrics
        most = max(8, min(128, PIXELS // (decoding.height * decoding.width)))
        self._decoded = Batches(self._decode, os.cpu_count() or 1, len, BYTES)
        self._predicted = Batches(self._predict, 1, len, most)

    @contextmanager
    def admit(self, pictures: int) -> Iterator[None]:
        """Count `pictures` as waiting inside the block; raises `Problem` when there are too many already."""
        if self.admitted + pictures > self._limits.waiting:
            raise busy(f"{self.admitted} pictures are waiting already; try again later")
        self.admitted += pictures
        try:
            yield
        finally:
            self.admitted -= pictures

    async def decode(self, contents: Sequence[bytes]) -> list[NDArray[np.uint8] | Unreadable]:
        """Return the pixels of each file, uint8 (H, W, C), or why it cannot be read."""
        return [await each for each in [self._decoded.add(content) for content in contents]]

    async def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the probabilities, float32 (N, classes), of images, uint8 (N, H, W, C), with N > 0."""
        return await self._predicted.add(images)

    async def work(self) -> None:
        """Decode and predict what waits, until cancelled."""
        await asyncio.gather(self._decoded.work(), self._predicted.work())

    def _decode(self, contents: Sequence[bytes]) -> list[NDArray[np.uint8] | Unreadable]:
        return [self._decode_one(content) for content in contents]

    def _decode_one(self, content: bytes) -> NDArray[np.uint8] | Unreadable:
        try:
            return decode(io.BytesIO(content), self._decoding, self._limits.pixels)
        except Unreadable as error:
            return error

    def _predict(self, requests: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        images = np.concatenate(requests)
        self._metrics.batch(len(images))
        return np.split(self._run(images), np.cumsum([len(each) for each in requests])[:-1])
