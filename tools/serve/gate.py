"""What every request passes before the routes: its host, its size, its time; and the headers of every answer."""

import asyncio
import time
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tools.serve.limits import Limits
from tools.serve.metrics import Metrics
from tools.serve.problems import Problem, busy

DRAIN_SECONDS = 2
HEADER_BYTES = 16_384
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
SECURITY = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
SECURITY_HEADERS = [(name.lower().encode(), value.encode()) for name, value in SECURITY.items()]


class Gate:
    """An ASGI application around another one."""

    def __init__(self, app: ASGIApp, limits: Limits, hosts: frozenset[str] | None, metrics: Metrics) -> None:
        """Guard `app`; hosts: the names in the Host header that are answered, None for all."""
        self._app, self._limits, self._hosts, self._metrics = app, limits, hosts, metrics
        self._held = 0  # bytes of all requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._limits)
        began = time.perf_counter()
        try:
            self._check(exchange.headers)
            await self._app(scope, lambda: self._receive(exchange), exchange.send)
        except Problem as problem:  # from the checks: the application answers its own
            await problem.response()(scope, receive, exchange.send)
        except ClientDisconnect:
            pass
        finally:
            self._held -= exchange.received
            # A client may invent methods and paths, and each pair would be a counter.
            method = scope["method"] if scope["method"] in METHODS else "other"
            path = getattr(scope.get("route"), "path", "other")
            self._metrics.request(method, path, exchange.status, time.perf_counter() - began)

    def _check(self, headers: Headers) -> None:
        if len(headers.getlist("host")) > 1:
            raise Problem(HTTPStatus.BAD_REQUEST, "the request has more than one Host header")
        # A page of another site may have its name resolve to this machine and then read the answers.
        if self._hosts is not None and _name(headers.get("host", "")) not in self._hosts:
            raise Problem(HTTPStatus.MISDIRECTED_REQUEST, "this server does not answer for the name in Host")
        # The protocol refuses long headers only when they arrive in several parts.
        if sum(len(name) + len(value) for name, value in headers.raw) > HEADER_BYTES:
            detail = f"the headers have more than {HEADER_BYTES:,} bytes"
            raise Problem(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, detail)
        if int(headers.get("content-length", 0)) > self._limits.bytes:
            raise _too_large(self._limits)

    async def _receive(self, exchange: "_Exchange") -> Message:
        message = await exchange.receive()
        self._held += len(message.get("body", b""))
        if exchange.received > self._limits.bytes:
            raise _too_large(self._limits)
        if self._held > self._limits.held:
            raise busy("too many bytes are being uploaded at once; try again later")
        return message


class _Exchange:
    """A request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: Limits) -> None:
        self.headers = Headers(scope=scope)
        self.received = 0  # bytes of the body
        self.status = 0
        self._receive, self._send = receive, send
        self._seconds = limits.seconds
        self._deadline = asyncio.get_running_loop().time() + limits.seconds
        self._complete = self.headers.get("content-length", "0") == "0" and "transfer-encoding" not in self.headers

    async def receive(self) -> Message:
        """Return the next part of the request; raises `Problem` when the client is too slow."""
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            detail = f"the request did not arrive within {self._seconds:g} seconds"
            raise Problem(HTTPStatus.REQUEST_TIMEOUT, detail) from None
        self.received += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Send the next part of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message["headers"], *SECURITY_HEADERS]
            if not self._complete:
                MutableHeaders(raw=message["headers"])["Connection"] = "close"
                if self.status != HTTPStatus.REQUEST_TIMEOUT:
                    await self._drain()
        await self._send(message)

    async def _drain(self) -> None:
        """Discard what the client still sends: it would find a closed connection instead of the answer."""
        if "expect" in self.headers and not self.received:
            return  # it waits for the answer before it sends
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                while (await self._receive()).get("more_body"):
                    pass
        except TimeoutError:
            pass


def _name(host: str) -> str:
    """Return a Host header's name, without the port."""
    return host.rpartition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0].lower()


def _too_large(limits: Limits) -> Problem:
    detail = f"the request has more than {limits.bytes:,} bytes; send fewer or smaller pictures"
    return Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail, {"Connection": "close"})
