"""tools/serve: requests that mean no good get 4xx and leave a server that answers, in bounded memory."""

import contextlib
import re
import socket
import time
from collections.abc import Iterator

import httpx
import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.project import Project
from tests.tools.serving import Server, bomb, connect, grey, png

pytestmark = pytest.mark.slow
SMALL = ["--max-bytes", "100000", "--max-pixels", "1000000"]
PICTURE = png(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
PATHS = ("/predict", "/v2/models/digits/infer")


@pytest.fixture(scope="module")
def server(first_run: Project) -> Iterator[Server]:
    """The server of the small model of digits, which must end well."""
    started = Server(first_run.folder, *SMALL)
    yield started
    assert started.stop() == 0
    assert started.errors == ""


def request(path: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: 127.0.0.1",
        f"Content-Length: {len(body) if length is None else length}",
    ]
    return "\r\n".join([*lines, "Connection: close", *headers, "", ""]).encode("latin-1") + body


class Raw(bytes):
    """Bytes that a failure shows the start of."""

    def __repr__(self) -> str:
        return f"<{len(self):,} bytes, {self[:300]!r}>"


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """The content cut, or with bytes changed near its start."""
    cut = st.integers(0, len(content) // 2).map(lambda end: content[:end])
    places = st.dictionaries(st.integers(0, 32), st.integers(0, 255), min_size=8, max_size=30)
    return cut | places.map(lambda new: bytes(new.get(index, byte) for index, byte in enumerate(content)))


FORM = "Content-Type: multipart/form-data; boundary=b"
HEADS = [b"--b\r\n", b'--b\r\nContent-Disposition: form-data; name="p"; filename="../x"\r\n\r\n', b"--b--", b""]
TENSOR = b'{"inputs":[{"name":"images","shape":[-1,8,8,1],"datatype":"UINT8","data":['
TARGETS = ["/../../etc/passwd", "/%2e%2e/params.yaml", "/page.css/../app.py", "/" + "a" * 5000, "/\x00"]
HEADERS = ["Transfer-Encoding: chunked", "Content-Length: 7", "Host: two", "Content-Length: -1", "a b: c"]
hostile = st.one_of(
    st.builds(request, st.sampled_from(PATHS), st.binary(max_size=500)),
    damaged(PICTURE).map(lambda content: request("/predict", content, "Content-Type: image/png")),
    st.builds(
        lambda head, body, end: request("/predict", head + body + end, FORM),
        st.sampled_from(HEADS),
        st.binary(max_size=300) | damaged(PICTURE),
        st.sampled_from([b"\r\n--b--\r\n", b"\r\n--b", b""]),
    ),
    st.text(max_size=200).map(lambda text: request(PATHS[1], text.encode("utf-8", "replace"))),
    st.sampled_from([b"[", b'{"inputs":', TENSOR]).map(
        lambda start: request(PATHS[1], start * (90_000 // len(start)))
    ),
    st.sampled_from([1500, 8000]).map(lambda side: request("/predict", bomb(side))),
    st.integers(17_000, 200_000).map(lambda size: request("/predict", PICTURE, f"X-Long: {'a' * size}")),
    st.integers(100_001, 10**30).map(lambda length: request("/predict", b"x", length=length)),
    st.sampled_from(TARGETS).map(lambda path: request(path, PICTURE)),
    st.sampled_from(HEADERS).map(lambda header: request("/predict", b"zz\r\nrubbish", header)),
    st.binary(min_size=1, max_size=200).map(lambda start: start.replace(b"\n", b"") + b"\r\n\r\n"),
)


def status(server: Server, content: bytes) -> int | None:
    """The status of the answer to raw bytes, after which the client sends no more; None if there is none."""
    with connect(server.url) as connection:
        connection.settimeout(20)
        with contextlib.suppress(OSError):
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
        received = b""
        with contextlib.suppress(OSError):
            while part := connection.recv(65536):
                received += part
    found = re.match(rb"HTTP/1\.1 (\d{3}) ", received)
    if found and found[1] != b"100":
        assert b"content-type: application/problem+json" in received
    return int(found[1]) if found else None


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(content=hostile.map(Raw))
def test_hostile_requests_get_4xx(server: Server, content: bytes) -> None:
    answered = status(server, content)
    assert answered is None or 400 <= answered < 500
    assert httpx.get(f"{server.url}/v2/health/ready").status_code == 200


def test_half_sent_requests_leave_nothing_behind(server: Server) -> None:
    content = request("/predict", PICTURE)
    process = psutil.Process(server.process.pid)
    for end in range(1, len(content), len(content) // 100):
        with connect(server.url) as connection:
            connection.sendall(content[:end])
    assert httpx.post(f"{server.url}/predict", content=PICTURE).status_code == 200
    for _ in range(100):  # until the server has noticed
        if len(process.net_connections()) <= 2:
            break
        time.sleep(0.05)
    assert len(process.net_connections()) <= 2
    assert "classifier_waiting_pictures 0" in httpx.get(f"{server.url}/metrics").text


def test_memory_is_bounded_over_10000_requests(server: Server) -> None:
    contents = [PICTURE, PICTURE[:-40], b"no picture", grey(3), bomb(900), bomb(1500)]
    with httpx.Client() as client:

        def send(count: int) -> None:
            for number in range(count):
                client.post(f"{server.url}/predict", content=contents[number % len(contents)])

        send(1500)  # until caches and pools have what they keep
        before = server.memory()
        send(10_000)
    assert server.memory() - before < 30_000_000
    assert httpx.post(f"{server.url}/predict", content=PICTURE).status_code == 200
