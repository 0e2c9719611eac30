"""uvicorn's HTTP/1.1, with limits on connections, and on the size and time of a request's head."""

import asyncio
import logging
import math
import socket

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from tools.serve.gate import HEADER_BYTES
from tools.serve.problems import MEDIA_TYPE, body

CONNECTIONS = 900  # most systems allow a process 1,024 open files
PIPELINED = 16  # requests that a connection may send before the first is answered
HEAD_SECONDS = 10


def server(app: ASGIApp, seconds: float) -> uvicorn.Server:
    """Return a server of `app`; seconds: how long a signal lets running requests go on."""
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # or every malformed form is in the log
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="on",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=math.ceil(seconds),
    )
    return uvicorn.Server(config)


class Protocol(HttpToolsProtocol):
    """One connection."""

    _seen: RequestResponseCycle | None = None
    _unparsed = 0  # bytes since the last complete head or piece of a body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn
        """Take the connection, unless there are too many."""
        super().connection_made(transport)
        # uvicorn writes head and body apart: with Nagle's algorithm, the body would wait 40 ms for the client.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self.connections) > CONNECTIONS:
            transport.abort()
        else:
            self.loop.call_later(HEAD_SECONDS, self._cut_if_silent)

    def _cut_if_silent(self) -> None:
        """Close the connection if no request began since the last time, and none is being answered."""
        if self.transport.is_closing():
            return
        if self.cycle is self._seen and (self.cycle is None or self.cycle.response_complete):
            self.transport.abort()
            return
        self._seen = self.cycle
        self.loop.call_later(HEAD_SECONDS, self._cut_if_silent)

    def data_received(self, data: bytes) -> None:
        """Parse what came, unless it is the rest of a head or of trailers without end: the parser keeps those."""
        self._unparsed += len(data)
        super().data_received(data)
        if self._unparsed > HEADER_BYTES and not self.transport.is_closing():
            self.send_400_response(f"the head of the request has more than {HEADER_BYTES:,} bytes")

    def on_headers_complete(self) -> None:
        """Start the request, or let it wait for the answers to those before it."""
        super().on_headers_complete()
        self._unparsed = 0
        self.headers = []  # for the trailers, which would be headers of the request
        if len(self.pipeline) > PIPELINED:
            self.transport.abort()
            raise ConnectionAbortedError  # which stops the parser

    def on_body(self, body: bytes) -> None:
        """Give the request a part of its body."""
        super().on_body(body)
        self._unparsed = 0

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP."""
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            content = body(400, msg)
            head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: {MEDIA_TYPE}\r\ncontent-length: {len(content)}\r\n"
            self.transport.write(f"{head}connection: close\r\n\r\n".encode() + content)
        self.transport.close()
        if self.cycle is not None:  # the application waits for the rest of the request
            self.cycle.disconnected = True
            self.cycle.message_event.set()
