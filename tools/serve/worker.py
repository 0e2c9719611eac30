"""Decodes pictures in a pool of threads, and predicts all that wait as one batch, in one thread."""

import asyncio
import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from stages.common.pictures import Decoding, Unreadable, decode
from tools.predict.models import Run
from tools.serve.limits import Limits
from tools.serve.metrics import Metrics
from tools.serve.problems import busy

PIXELS = (
    128 * 32 * 32
)  # of the images of a batch: the best size for small images, and bounded memory for large ones


class Worker:
    """One model and the requests that wait for it. Every method is for the event loop's thread."""

    def __init__(self, run: Run, decoding: Decoding, limits: Limits, metrics: Metrics) -> None:
        """Serve `run`, a function from uint8 (N, H, W, C) to float32 (N, classes)."""
        self.admitted = 0  # pictures
        self._run, self._decoding, self._limits, self._metrics = run, decoding, limits, metrics
        self._batch = max(8, min(128, PIXELS // (decoding.height * decoding.width)))
        self._pool = ThreadPoolExecutor(os.cpu_count(), "decode")
        self._network = ThreadPoolExecutor(1, "network")
        self._queue: asyncio.Queue[tuple[NDArray[np.uint8], asyncio.Future[NDArray[np.float32]]]] = asyncio.Queue()

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
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(self._pool, self._decode, each) for each in contents))

    async def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the probabilities, float32 (N, classes), of images, uint8 (N, H, W, C), with N > 0."""
        answer: asyncio.Future[NDArray[np.float32]] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((images, answer))
        return await answer

    async def work(self) -> None:
        """Predict what waits, until cancelled. While the network computes a batch, the next one gathers."""
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._queue.get()]
            count = len(batch[0][0])
            while count < self._batch and not self._queue.empty():
                batch.append(self._queue.get_nowait())
                count += len(batch[-1][0])
            images = batch[0][0] if len(batch) == 1 else np.concatenate([images for images, _ in batch])
            self._metrics.batch(count)
            try:
                probabilities = await loop.run_in_executor(self._network, self._run, images)
            except Exception as error:
                for _, answer in batch:
                    answer.set_exception(error)
                continue
            start = 0
            for images, answer in batch:
                answer.set_result(probabilities[start : start + len(images)])
                start += len(images)

    def _decode(self, content: bytes) -> NDArray[np.uint8] | Unreadable:
        try:
            return decode(io.BytesIO(content), self._decoding, self._limits.pixels)
        except Unreadable as error:
            return error
