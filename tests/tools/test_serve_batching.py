"""tools/serve/batching.py: what waits is computed as one batch."""

import asyncio
import contextlib
import threading
from collections.abc import Sequence

import pytest

from tools.serve.batching import Batches


def test_a_batch_ends_with_the_item_that_makes_it_large_enough() -> None:
    seen: list[list[str]] = []
    release = threading.Event()

    def upper(words: Sequence[str]) -> list[str]:
        seen.append(list(words))
        release.wait(30)
        return [word.upper() for word in words]

    async def scenario() -> list[str]:
        batches = Batches(upper, 1, len, most=4)
        working = asyncio.create_task(batches.work())
        answers = [batches.add("first")]
        while not seen:
            await asyncio.sleep(0.01)
        answers += [batches.add(word) for word in ("a", "b", "long word", "c", "d")]
        release.set()
        results = [await answer for answer in answers]
        working.cancel()
        return results

    assert asyncio.run(scenario()) == ["FIRST", "A", "B", "LONG WORD", "C", "D"]
    assert seen == [["first"], ["a", "b", "long word"], ["c", "d"]]


def test_an_error_is_that_of_the_whole_batch_and_the_next_one_is_computed() -> None:
    def reciprocal(numbers: Sequence[int]) -> list[float]:
        return [1 / number for number in numbers]

    async def scenario() -> float:
        batches = Batches(reciprocal, 1, lambda number: 1, most=2)
        working = asyncio.create_task(batches.work())
        for answer in [batches.add(0), batches.add(1)]:
            with pytest.raises(ZeroDivisionError):
                await answer
        result = await batches.add(4)
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working
        return result

    assert asyncio.run(scenario()) == 0.25


@pytest.mark.parametrize("number", [0, 1])
def test_after_a_cancelled_item_the_next_batch_is_computed(number: int) -> None:
    def reciprocal(numbers: Sequence[int]) -> list[float]:
        return [1 / number for number in numbers]

    async def scenario() -> float:
        batches = Batches(reciprocal, 1, lambda number: 1, most=1)
        working = asyncio.create_task(batches.work())
        batches.add(number).cancel()
        result = await asyncio.wait_for(batches.add(4), 30)
        working.cancel()
        return result

    assert asyncio.run(scenario()) == 0.25
