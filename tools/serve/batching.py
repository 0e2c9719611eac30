"""Gathers what requests ask for into batches, and has a thread compute each batch."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batches(Generic[Item, Result]):
    """A function of a batch as a coroutine of one item. Every method is for the event loop's thread."""

    def __init__(
        self,
        function: Callable[[Sequence[Item]], Sequence[Result]],
        threads: int,
        size: Callable[[Item], int],
        most: int,
    ) -> None:
        """Call `function` in `threads` threads. A batch ends with the item that makes the sum of sizes `most`."""
        self._function, self._size, self._most = function, size, most
        self._threads, self._pool = threads, ThreadPoolExecutor(threads)
        self._waiting: asyncio.Queue[tuple[Item, asyncio.Future[Result]]] = asyncio.Queue()

    def add(self, item: Item) -> asyncio.Future[Result]:
        """Return the future result for `item`."""
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((item, answer))
        return answer

    async def work(self) -> None:
        """Compute what waits, until cancelled. While all threads compute, the next batch gathers."""
        await asyncio.gather(*(self._compute() for _ in range(self._threads)))

    async def _compute(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._waiting.get()]
            total = self._size(batch[0][0])
            while total < self._most and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
                total += self._size(batch[-1][0])
            try:
                results = await loop.run_in_executor(self._pool, self._function, [item for item, _ in batch])
            except Exception as error:
                for _, answer in batch:
                    if not answer.done():
                        answer.set_exception(error)
            else:
                for (_, answer), result in zip(batch, results, strict=True):
                    if not answer.done():  # cancelled, with the request that waited for it
                        answer.set_result(result)
