"""Servers and pictures for the tests of tools/serve."""

import asyncio
import contextlib
import io
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image

from stages.common.confidence import Confidence
from stages.common.pictures import Decoding
from stages.common.records import DatasetRecord, ModelRecord
from tests.project import ROOT
from tools.serve import protocol
from tools.serve.app import create_app
from tools.serve.limits import Limits
from tools.serve.worker import Item, Result, computing

RECORD = ModelRecord(
    sha256="0" * 64,
    dataset=DatasetRecord(name="dots", edition="", sha256=""),
    classes=["dark", "light"],
    decoding=Decoding(height=4, width=4, channels=1),
    scaling="unit",
    mean=[0],
    std=[1],
    epoch=1,
    parameters=0,
)


class Server:
    """`python -m tools.serve` in a process of its own."""

    def __init__(self, folder: Path | None, *options: str, cwd: Path = ROOT) -> None:
        command = [sys.executable, "-m", "tools.serve", "--port", "0", *options]
        command += ["--folder", str(folder)] if folder else []
        self.process = subprocess.Popen(
            command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout
        line = self.process.stdout.readline()
        found = re.match(r"http://127\.0\.0\.1:(\d+): model \w{12} of ", line)
        if not found:
            self.process.kill()
            raise AssertionError(line + self.process.communicate()[1])
        self.port = int(found[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def workers(self) -> list[psutil.Process]:
        children: list[psutil.Process] = psutil.Process(self.process.pid).children()
        return children

    def memory(self) -> int:
        """Bytes of the server and its workers."""
        return sum(each.memory_info().rss for each in (psutil.Process(self.process.pid), *self.workers()))

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        self.errors = self.process.communicate(timeout=60)[1]
        return self.process.returncode


def mean(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A classifier of dark and light."""
    light = images.reshape(len(images), -1).mean(axis=1, dtype=np.float32) / np.float32(255)
    return np.stack([1 - light, light], axis=1)


@contextlib.contextmanager
def serving(
    run: Callable[[NDArray[np.uint8]], NDArray[np.float32]] = mean, limits: Limits | None = None, cors: str = ""
) -> Iterator[str]:
    """A server in a thread, with a model and limits of the test's own; its worker is a thread, too."""
    limits = limits or Limits(seconds=5)
    compute = computing(run, RECORD.decoding, limits.pixels)

    async def worker(batch: Sequence[Item]) -> list[Result]:
        return await asyncio.to_thread(compute, batch)

    confidence = Confidence(model_sha256=RECORD.sha256)
    app = create_app([worker], RECORD, confidence, limits, frozenset({"127.0.0.1"}), [cors] if cors else [])
    listener = socket.create_server(("127.0.0.1", 0))
    made = protocol.server(app, limits.seconds)
    thread = threading.Thread(target=made.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        made.should_exit = True
        thread.join(60)
        listener.close()


def png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def bomb(side: int) -> bytes:
    """A PNG of side x side pixels, all black, in few bytes."""
    rows = zlib.compressobj(9)
    data = b"".join(rows.compress(bytes(side + 1)) for _ in range(side)) + rows.flush()
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)), (b"IDAT", data), (b"IEND", b""))
    parts = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def grey(level: int) -> bytes:
    return png(np.full((4, 4), level, np.uint8))


def connect(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=30)


def answer(connection: socket.socket) -> bytes:
    """Everything that the server sends until it closes the connection."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)
