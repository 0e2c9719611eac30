"""uvicorn's HTTP/1.1, with a limit on connections and on the time that a request's head may take."""

import asyncio
import logging
import math
import socket

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from tools.serve.problems import MEDIA_TYPE, body

CONNECTIONS = 900  # most systems allow a process 1,024 open files
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


class Protocol(H11Protocol):
    """One connection."""

    _seen: RequestResponseCycle | None = None

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
        if self.conn.their_state is h11.IDLE and self.cycle is self._seen:
            self.transport.abort()
            return
        self._seen = self.cycle
        self.loop.call_later(HEAD_SECONDS, self._cut_if_silent)

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            content = body(400, msg)
            headers = [
                ("content-type", MEDIA_TYPE),
                ("content-length", str(len(content))),
                ("connection", "close"),
            ]
            for event in (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=content),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        if self.cycle is not None:  # the application waits for the rest of the request
            self.cycle.disconnected = True
            self.cycle.message_event.set()
