"""Gathers the pictures that wait into batches, and gives each batch to the next free worker."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

from stages.common.pictures import Decoding, Unreadable
from tools.serve.limits import Limits
from tools.serve.metrics import Metrics
from tools.serve.problems import busy
from tools.serve.worker import Item, Result

IMAGES = 8  # of a batch: with more, each waits longer for all, and few get faster
PIXELS = IMAGES * 64 * 64  # of a batch's images
BYTES = 32_768  # of a batch's files: two photographs

Worker = Callable[[Sequence[Item]], Awaitable[Sequence[Result]]]


class Queue:
    """What waits for the workers. Every method is for the event loop's thread."""

    def __init__(self, workers: Sequence[Worker], decoding: Decoding, limits: Limits, metrics: Metrics) -> None:
        """Give each of `workers` a batch at a time, of files that are decoded as `decoding` says."""
        self.admitted = 0  # pictures
        self._workers, self._limits, self._metrics = workers, limits, metrics
        self._image = max(1 / IMAGES, decoding.height * decoding.width / PIXELS)  # of a batch
        self._waiting: asyncio.Queue[tuple[Item, asyncio.Future[Result]]] = asyncio.Queue()

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

    async def predict(self, items: Sequence[Item]) -> list[Result]:
        """Return the result of each item."""
        loop = asyncio.get_running_loop()
        answers = [loop.create_future() for _ in items]
        for waiting in zip(items, answers, strict=True):
            self._waiting.put_nowait(waiting)
        return [await answer for answer in answers]

    async def work(self) -> None:
        """Have the workers compute what waits, until cancelled. While all compute, the next batch gathers."""
        await asyncio.gather(*map(self._work, self._workers))

    async def _work(self, worker: Worker) -> None:
        while True:
            batch = [await self._waiting.get()]
            full = self._part(batch[0][0])
            while full < 1 and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
                full += self._part(batch[-1][0])
            try:
                results = await worker([item for item, _ in batch])
            except Exception as error:
                for _, answer in batch:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            predicted = sum(len(each.images) for each in results if not isinstance(each, Unreadable))
            self._metrics.batch(predicted, sum(isinstance(each, Unreadable) for each in results))
            for (_, answer), result in zip(batch, results, strict=True):
                if not answer.done():  # cancelled, with the request that waited for it
                    answer.set_result(result)

    def _part(self, item: Item) -> float:
        """Return how much of a batch `item` takes."""
        return max(self._image, len(item) / BYTES) if isinstance(item, bytes) else len(item) * self._image
