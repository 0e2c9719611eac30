"""Starts the worker processes, exchanges batches with them, and replaces those that end."""

import asyncio
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from stages.common.failure import StageError
from stages.common.pictures import Decoding
from tools.predict.models import Model
from tools.serve.queue import Worker
from tools.serve.worker import Failed, Item, Result

TENSORFLOWS = 4  # processes: each takes some hundred megabytes
END_SECONDS = 10


@asynccontextmanager
async def running(model: Model, decoding: Decoding, most_pixels: int) -> AsyncIterator[list[Worker]]:
    """Run workers; yield their methods `compute`. Raises `StageError` when one cannot open the model.

    There is one per core, but only a few when each loads TensorFlow, which keeps `runtime.threads`: another number
    may give other last digits.
    """
    count = os.cpu_count() or 1
    if model.export is not None:
        model = model._replace(params=model.params.model_copy(update={"threads": 1}))
    else:
        count = min(count, TENSORFLOWS)
    processes = [Process(model, decoding, most_pixels) for _ in range(count)]
    try:
        await asyncio.gather(*(process.start() for process in processes))
        yield [process.compute for process in processes]
    finally:
        await asyncio.gather(*(process.end() for process in processes))


class Process:
    """A process that runs tools.serve.worker."""

    def __init__(self, model: Model, decoding: Decoding, most_pixels: int) -> None:
        """Prepare; `start` starts it."""
        self._setup = (model, decoding, most_pixels)
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it and wait until it is ready; raises `StageError` when it cannot open the model."""
        ours, theirs = socket.socketpair()
        with theirs:
            # Not with -m: what it sends has to be of the module tools.serve.worker, not of __main__. In a group of
            # its own, Ctrl-C reaches the server only, which lets running requests end.
            command = [sys.executable, "-c", "from tools.serve.worker import main; main()"]
            self._reader, self._writer = await asyncio.open_connection(sock=ours)
            self._process = subprocess.Popen(command, stdin=theirs.fileno(), process_group=0)
        try:
            answer = await self._exchange(self._setup)
        except (EOFError, ConnectionError):
            raise StageError(f"a worker could not start ({await self.end()}); its error is above") from None
        if isinstance(answer, Failed):
            await self.end()
            raise StageError(answer.reason)

    async def compute(self, batch: Sequence[Item]) -> list[Result]:
        """Return the result of each item; raises `RuntimeError` when there is none.

        A process that has ended is replaced, and its batch tried again, once: a picture may be what ended it.
        """
        for _ in range(2):
            try:
                answer = await self._exchange(batch)
                break
            except (EOFError, ConnectionError):
                ended = await self.end()
                await self.start()
                print(f"serve: a worker ended ({ended}); another has started", file=sys.stderr, flush=True)
        else:
            raise RuntimeError("workers end when they compute this batch")
        if isinstance(answer, Failed):
            raise RuntimeError(f"a worker failed: {answer.reason}")
        results: list[Result] = answer
        return results

    async def _exchange(self, message: object) -> Any:
        self._writer.write(pickle.dumps(message))
        await self._writer.drain()
        size = int.from_bytes(await self._reader.readexactly(8))
        return pickle.loads(await self._reader.readexactly(size))

    async def end(self) -> str:
        """Close the connection, at which the process ends; say how it did."""
        if self._process is None:
            return "not started"
        self._writer.transport.abort()
        try:
            status = await asyncio.to_thread(self._process.wait, END_SECONDS)
        except subprocess.TimeoutExpired:
            print(f"serve: a worker did not end within {END_SECONDS} seconds: killed", file=sys.stderr, flush=True)
            self._process.kill()
            status = self._process.wait()
        return f"signal {-status}" if status < 0 else f"exit code {status}"
