"""A worker: decodes and predicts the batches that its server sends, in a process of its own.

tools/serve/processes.py runs it with a socket to the server as its standard input. Parsing requests, decoding
pictures and writing JSON is work for Python, which only one thread of a process can do at a time.
"""

import io
import pickle
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.common.failure import StageError
from stages.common.pictures import Decoding, Unreadable, decode
from tools.predict.models import Model, Run


class Predicted(NamedTuple):
    """Images as the network saw them, and their probabilities."""

    probabilities: NDArray[np.float32]  # (N, classes)
    images: NDArray[np.uint8]  # (N, H, W, C)


Item = bytes | NDArray[np.uint8]  # a file's content, or images as in `Predicted`
Result = Predicted | Unreadable
Compute = Callable[[Sequence[Item]], list[Result]]


class Failed(NamedTuple):
    """Why there is no result; for a bug, the traceback."""

    reason: str


def computing(run: Run, decoding: Decoding, most_pixels: int) -> Compute:
    """Return a function that decodes and predicts a batch; most_pixels: of one picture, before it is decoded."""

    def images(item: Item) -> NDArray[np.uint8] | Unreadable:
        if not isinstance(item, bytes):
            return item
        try:
            return decode(io.BytesIO(item), decoding, most_pixels)[np.newaxis]
        except Unreadable as error:
            return error

    def compute(batch: Sequence[Item]) -> list[Result]:
        decoded = [images(item) for item in batch]
        readable = [each for each in decoded if not isinstance(each, Unreadable)]
        if readable:
            rows = run(np.concatenate(readable))
            ends = np.cumsum([len(each) for each in readable])
            parts = map(Predicted, np.split(rows, ends[:-1]), readable)
        return [each if isinstance(each, Unreadable) else next(parts) for each in decoded]

    return compute


def main() -> None:
    """Open the model, then answer each batch until the server closes the connection."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group; the server still answers requests
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=sys.stdin.fileno()) as connection, connection.makefile("rb") as received:

        def send(answer: object) -> None:
            content = pickle.dumps(answer)
            connection.sendall(len(content).to_bytes(8) + content)

        try:
            model: Model
            model, decoding, most_pixels = pickle.load(received)
            try:
                run = model.open()
                for count in (1, 2):  # the first calls compile
                    run(np.zeros((count, decoding.height, decoding.width, decoding.channels), np.uint8))
            except StageError as error:
                send(Failed(str(error)))
                return
            compute = computing(run, decoding, most_pixels)
            send(None)
            while True:
                batch = pickle.load(received)
                try:
                    send(compute(batch))
                except Exception:
                    send(Failed(traceback.format_exc()))
        except (EOFError, pickle.UnpicklingError, ConnectionError):
            pass  # the server has ended, perhaps in the middle of a batch
