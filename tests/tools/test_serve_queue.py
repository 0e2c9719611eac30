"""tools/serve/queue.py: what waits is computed as one batch."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.common.pictures import Unreadable
from tests.tools.serving import RECORD
from tools.serve.limits import Limits
from tools.serve.metrics import Metrics
from tools.serve.queue import BYTES, IMAGES, Queue, Worker
from tools.serve.worker import Item, Predicted, Result


def images(*levels: int) -> NDArray[np.uint8]:
    return np.stack([np.full((4, 4, 1), level, np.uint8) for level in levels])


def levels(result: Result) -> list[float]:
    assert isinstance(result, Predicted)
    values: list[float] = result.probabilities[:, 0].tolist()
    return values


async def echo(batch: Sequence[Item]) -> list[Result]:
    """The first pixel of each image as its probability; 13 fails, files are unreadable."""
    if any(not isinstance(item, bytes) and item.max() == 13 for item in batch):
        raise ZeroDivisionError
    return [
        Unreadable("is none") if isinstance(item, bytes) else Predicted(item[:, 0, 0].astype(np.float32), item)
        for item in batch
    ]


def run(worker: Worker, scenario: Callable[[Queue], Awaitable[None]]) -> Metrics:
    """Run a scenario while `worker` works."""
    metrics = Metrics()

    async def both() -> None:
        queue = Queue([worker], RECORD.decoding, Limits(), metrics)
        working = asyncio.create_task(queue.work())
        await asyncio.wait_for(scenario(queue), 30)
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working

    asyncio.run(both())
    return metrics


def test_a_batch_ends_with_the_item_that_fills_it() -> None:
    seen: list[list[int]] = []
    release = asyncio.Event()

    async def worker(batch: Sequence[Item]) -> list[Result]:
        seen.append([len(item) for item in batch])
        await release.wait()
        return await echo(batch)

    items: list[Item] = [images(*range(IMAGES - 1)), images(1, 2), images(3), b"x" * BYTES, b"x", images(4)]

    async def scenario(queue: Queue) -> None:
        first = asyncio.create_task(queue.predict([images(7)]))
        while not seen:
            await asyncio.sleep(0)
        others = asyncio.create_task(queue.predict(items))
        await asyncio.sleep(0)
        release.set()
        assert levels((await first)[0]) == [7]
        results = await others
        assert levels(results[1]) == [1, 2]
        assert isinstance(results[3], Unreadable)

    metrics = run(worker, scenario)
    assert seen == [[1], [IMAGES - 1, 2], [1, BYTES], [1, 1]]
    assert f'classifier_pictures_total{{result="predicted"}} {IMAGES + 4}' in metrics.text(0)
    assert 'classifier_pictures_total{result="unreadable"} 2' in metrics.text(0)
    assert 'classifier_batch_size_bucket{le="1"} 3\nclassifier_batch_size_bucket{le="2"} 3' in metrics.text(0)


def test_an_error_is_that_of_the_whole_batch_and_the_next_one_is_computed() -> None:
    async def scenario(queue: Queue) -> None:
        together = [asyncio.create_task(queue.predict([images(level)])) for level in (13, 1)]
        for task in together:
            with pytest.raises(ZeroDivisionError):
                await task
        assert levels((await queue.predict([images(4)]))[0]) == [4]

    run(echo, scenario)


@pytest.mark.parametrize("level", [13, 1])
def test_after_a_cancelled_item_the_next_batch_is_computed(level: int) -> None:
    async def scenario(queue: Queue) -> None:
        cancelled = asyncio.create_task(queue.predict([images(level)]))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.sleep(0.01)
        assert levels((await queue.predict([images(4)]))[0]) == [4]

    run(echo, scenario)
