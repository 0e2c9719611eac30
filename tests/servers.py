"""An HTTP server on loopback that misbehaves on purpose; tests/test_fetch.py downloads from it.

with Server(Answer(body, cut=1000), Answer(body)) as server:
    requests.get(server.url)  # gets 1000 bytes and a closed connection; the next request gets all
"""

import contextlib
import gzip
import socket
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, Self

Length = Literal["stated", "chunked", "missing"]


@dataclass(frozen=True)
class Answer:
    """What one request gets; `Answer(body)` is that of a good server, though without a validator."""

    body: bytes = b""
    status: int = 200  # with Range, it becomes 206 or 416
    hang_up: bool = False  # closes the connection without a word
    kind: str = "application/octet-stream"
    etag: str = ""
    modified: str = ""
    location: str = ""  # redirects
    ranges: bool = True  # honours Range
    if_range: bool = True  # honours If-Range
    shift: int = 0  # answers Range with bytes that begin so much later
    content_range: str | None = None  # sent instead of the correct one
    length: Length = "stated"
    packed: bool = False  # gzips the body though nobody asked for it
    labelled: bool = False  # says gzip of a body that is sent as it is
    cut: int | None = None  # closes the connection after so many bytes of the body
    stall: bool = False  # falls silent there instead
    rate: float = 0  # bytes a second; 0 for no limit


class Server:
    """Gives its answers in turn, the last one for ever; keeps the requests and counts the bytes `sent`."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.requests: list[dict[str, str]] = []  # the headers of each
        self.sent = 0  # of bodies
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"owner": self}))
        self.url = f"http://127.0.0.1:{self._http.server_port}/archive.tar.gz"

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()

    @property
    def ranges(self) -> list[str]:
        """The Range header of each request, empty where it had none."""
        return [headers.get("Range", "") for headers in self.requests]

    def next_answer(self, headers: dict[str, str]) -> Answer:
        """Keep a request's headers and return what it gets."""
        with self._lock:
            self.requests.append(headers)
            return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def count(self, sent: int) -> None:
        """Add to the bytes sent."""
        with self._lock:
            self.sent += sent


def refusing_url() -> str:
    """Return a URL at a port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}/archive.tar.gz"


class _Handler(BaseHTTPRequestHandler):
    owner: Server
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        # Small, so that what counts as sent has all but arrived.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)

    def do_GET(self) -> None:
        self.close_connection = True
        answer = self.owner.next_answer(dict(self.headers))
        if not answer.hang_up:
            with contextlib.suppress(ConnectionError):  # the client may leave at any time
                self._send(answer)

    def _send(self, answer: Answer) -> None:
        body = gzip.compress(answer.body) if answer.packed else answer.body
        status, begin, actual_range = answer.status, 0, ""
        wanted = self.headers.get("Range", "")
        changed = self.headers.get("If-Range") not in (None, answer.etag, answer.modified)
        if status == 200 and wanted and answer.ranges and not (changed and answer.if_range):
            begin = int(wanted.removeprefix("bytes=").removesuffix("-")) + answer.shift
            status, actual_range = 206, f"bytes {begin}-{len(body) - 1}/{len(body)}"
            if begin >= len(body):
                status, actual_range = 416, f"bytes */{len(body)}"
        part = body[begin:]
        headers = {
            "Content-Type": answer.kind,
            "ETag": answer.etag,
            "Last-Modified": answer.modified,
            "Location": answer.location,
            "Content-Range": actual_range if answer.content_range is None else answer.content_range,
            "Content-Encoding": "gzip" if answer.packed or answer.labelled else "",
            "Content-Length": str(len(part)) if answer.length == "stated" else "",
            "Transfer-Encoding": "chunked" if answer.length == "chunked" else "",
            "Connection": "close",
        }
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        end = len(part) if answer.cut is None else min(answer.cut, len(part))
        piece = max(1, int(answer.rate / 100)) if answer.rate else 1 << 16
        for at in range(0, end, piece):
            data = part[at : min(at + piece, end)]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data) if answer.length == "chunked" else data)
            self.owner.count(len(data))
            if answer.rate:
                time.sleep(piece / answer.rate)
        if end < len(part) and answer.stall:
            self.owner.closing.wait()
        elif end == len(part) and answer.length == "chunked":
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
