"""Fetches one file from the first of several sources that works, resumes, and always checks its SHA-256.

    path = fetch(["https://…/a.tar.gz", "/mnt/a.tar.gz"], sha256, cache / "a.tar.gz", size=170_052_171)

The SHA-256 identifies the file, so all sources are assumed to serve the same bytes. A partial download is kept
beside the result, under a name that contains the hash, and any source can resume it. Its source and validator
(ETag or Last-Modified) are recorded beside it: the same source is asked with If-Range, so that it restarts if its
file has changed. When the hash of the complete file does not match, and the bytes may come from more than one
version of it, the source is asked again for all of it. Only a file that one source sent in full is rejected.

Sources are tried in order, in rounds. After a temporary failure (503, connection refused, closed or silent) the
next source is tried, and this one again in the next round, after a pause. After a permanent failure (404, an HTML
page, wrong bytes) a source is not tried again. A slow source is abandoned only while others have not been tried.
Fetching fails after `Patience.rounds` consecutive rounds without a new byte.
"""

import hashlib
import io
import os
import random
import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import unquote

import platformdirs
from filelock import FileLock, Timeout

from stages.common.failure import StageError
from stages.common.outputs import replacing, require_space, sync_folder

if TYPE_CHECKING:  # imported by the first download: they take 0.3 s
    from requests import Response
    from tqdm import tqdm

LINE_EVERY = 10.0  # seconds between lines of progress when stderr is not a terminal


@dataclass(frozen=True)
class Patience:
    """Timeouts and retries."""

    connect: float = 10  # seconds until connected
    read: float = 20  # seconds without a byte
    floor: float = 32_000  # lowest speed in bytes per second, on average over
    window: float = 30  # seconds
    rounds: int = 6  # consecutive rounds without a new byte
    pause: float = 0.5  # seconds after the first of them; doubles each time, with up to half taken off at random


def fetch(
    sources: Sequence[str],
    sha256: str,
    to: Path,
    *,
    size: int | None = None,
    hint: str = "",
    patience: Patience = Patience(),
) -> Path:
    """Return the path of a file with this SHA-256: `to`, or a local source, which is not copied.

    `sources` are http(s) URLs, file URLs and paths. `to` is returned as it is if its hash matches; otherwise it is
    written completely or not at all. `size`, the length in bytes if known, detects a wrong file early and limits
    what is written. Processes that fetch to the same `to` wait for each other. Progress goes to stderr.

    Raises `StageError` when no source has the file: one line with `hint` and the reason for each source.
    """
    if _sha256(to) == sha256:
        return to
    to.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(to.with_name(f"{to.name}.lock"))  # the system releases it however the process ends
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        _log(f"{to.name}: another process is fetching it; waiting")
        held = lock.acquire()
    with held, closing(_Download(to, sha256, size, patience)) as download:
        found = _sha256(to)  # again, because another process may have fetched it
        if found == sha256:
            return to
        if found:
            _log(f"{to}: checksum mismatch (expected {sha256[:8]}…, found {found[:8]}…); fetching it again")
        return download.from_first_of(sources, hint)


def sources_from_environment(variable: str) -> list[str]:
    """Return the copies and mirrors in an environment variable; raises `StageError` when a quote is not closed."""
    try:
        return shlex.split(os.environ.get(variable, ""))
    except ValueError as error:
        raise StageError(f"{variable}: {error}; quote a path with spaces as in a shell") from None


def cache_folder() -> Path:
    """Return the folder for fetched files, outside the outputs, which DVC deletes before each run."""
    named = os.environ.get("DATASET_CACHE")
    return Path(named) if named else platformdirs.user_cache_path("reproducible-cifar10")


class _Failed(Exception):
    """A source failed temporarily."""


class _Slow(_Failed):
    """A source is too slow or silent; the others are tried first, even if it sent something."""


class _Refused(_Failed):
    """A source failed permanently."""


@contextmanager
def _network_errors() -> Iterator[None]:
    """Convert exceptions of requests and urllib3 to `_Failed` or a subclass, with the system's message."""
    from ssl import SSLCertVerificationError

    from requests import exceptions
    from urllib3.exceptions import HTTPError, ReadTimeoutError

    try:
        yield
    except (exceptions.Timeout, ReadTimeoutError) as error:
        raise _Slow("timed out") from error
    except (exceptions.RequestException, HTTPError, ValueError) as error:  # ValueError: not a URL
        cause: BaseException = error  # the system's error is wrapped in several of theirs
        while not getattr(cause, "strerror", None) and (below := cause.__cause__ or cause.__context__):
            cause = below
        message = "closed the connection early" if isinstance(error, HTTPError) else f"failed: {cause}"
        if isinstance(cause, OSError) and cause.strerror:
            message = f"failed: {cause.strerror}"
        permanent = isinstance(error, (exceptions.TooManyRedirects, ValueError))
        permanent |= isinstance(cause, SSLCertVerificationError)
        raise (_Refused if permanent else _Failed)(message) from error


class _Download:
    """A partial file: the bytes on disk, their hash so far, and their source."""

    def __init__(self, to: Path, sha256: str, size: int | None, patience: Patience) -> None:
        """Open and hash the partial file that an earlier run left for this hash, or create one."""
        self.to, self.sha256, self.size, self.patience = to, sha256, size, patience
        self.path = to.with_name(f"{to.name}.{sha256[:16]}.partial")
        self.file = self.path.open("a+b", buffering=0)  # unbuffered: SIGKILL loses no received byte
        self.file.seek(0)
        self.hash = hashlib.file_digest(self.file, "sha256")
        self.have = self.best = self.file.tell()  # `best`, the most so far, measures progress
        self.whole = not self.have  # whether all bytes come from the same version of one source's file
        self.origin_file = self.path.with_suffix(".origin")
        recorded = self.origin_file.read_text(encoding="utf-8").split("\n") if self.origin_file.exists() else []
        self.origin = (recorded[0], recorded[1]) if len(recorded) == 2 else ("", "")  # source and validator

    def close(self) -> None:
        """Keep what has been received for the next run; remove the file if it is empty."""
        self.file.close()
        if not self.have:
            self.path.unlink(missing_ok=True)
            self.origin_file.unlink(missing_ok=True)

    def from_first_of(self, sources: Sequence[str], hint: str) -> Path:
        """Try the sources in rounds; return `to`, or the path of a local source that has the file."""
        left, reasons = list(dict.fromkeys(sources)), dict[str, str]()
        first, failed_rounds = True, 0
        while not self.complete and left and failed_rounds < self.patience.rounds:
            if failed_rounds:
                self._pause(failed_rounds)
            best = self.best
            for source in tuple(left):
                try:
                    if not source.startswith(("http://", "https://")):
                        return _local(source, self.sha256)
                    self._from_web(source, any_speed=not first or source == left[-1])
                    break
                except _Failed as failure:
                    if reasons.get(source) != (reason := f"{_redacted(source)} {failure}"):
                        _log(f"{self.to.name}: {reason}")
                    reasons[source] = reason
                    if isinstance(failure, _Refused):
                        left.remove(source)
            first, failed_rounds = False, 0 if self.best > best else failed_rounds + 1
        if not self.complete:
            why = "; ".join(reasons.values()) or "there are no sources"
            remedy = f"; {hint}" if hint else ""
            raise StageError(f"{self.to.name}: no source has the file with SHA-256 {self.sha256}{remedy} ({why})")
        os.fsync(self.file.fileno())
        self.path.replace(self.to)
        sync_folder(self.to.parent)
        self.origin_file.unlink(missing_ok=True)
        return self.to

    @property
    def complete(self) -> bool:
        """Whether the hash matches."""
        return self.hash.hexdigest() == self.sha256

    def _pause(self, times: int = 1) -> None:
        time.sleep(self.patience.pause * 2 ** (times - 1) * random.uniform(0.5, 1))

    def _from_web(self, source: str, any_speed: bool) -> None:
        """Receive the rest of the file from `source`, reconnecting as long as that brings more bytes."""
        self.floor = _Floor(0 if any_speed else self.patience.floor, self.patience.window)
        restarted = False
        while True:
            best = self.best
            try:
                self._receive(source)
            except (_Slow, _Refused):
                raise
            except _Failed as failure:
                if self.best == best:
                    raise
                _log(f"{self.to.name}: {_redacted(source)} {failure}; resuming from {self.have:,} bytes")
                self._pause()
                continue
            if self.complete:
                return
            mismatch = f"sent {self.have:,} bytes with SHA-256 {self.hash.hexdigest()}, expected {self.sha256}"
            permanent = self.whole or restarted
            self._restart(wrong=True)
            if permanent:
                raise _Refused(mismatch)
            restarted = True
            _log(f"{self.to.name}: checksum mismatch after resuming; starting over with {_redacted(source)}")

    @_network_errors()
    def _receive(self, source: str) -> None:
        """Request the missing bytes from `source` once and append what it sends."""
        import requests

        headers = {"Accept-Encoding": "identity"}
        known = self.have > 0 and self.origin[0] == _redacted(source)
        if self.have:
            headers["Range"] = f"bytes={self.have}-"
            if known and self.origin[1]:
                headers["If-Range"] = self.origin[1]
        timeout = self.patience.connect, self.patience.read
        with requests.get(source, headers=headers, stream=True, timeout=timeout) as response:
            if response.status_code == 416 and self.have:
                self.whole = False  # its file is not longer than what is already here
                return
            begin, total = _extent(response, self.size)
            etag = response.headers.get("ETag", "")  # a weak one, W/"…", does not guarantee equal bytes
            validator = etag if etag.startswith('"') else response.headers.get("Last-Modified", "")
            if known and response.status_code == 206:
                validator = validator or self.origin[1]  # an answer to If-Range may omit it
            if self.have and (begin != self.have or (known and validator != self.origin[1])):
                _log(f"{self.to.name}: {_redacted(source)} cannot resume from {self.have:,} bytes; starting over")
                self._restart()
                if begin != 0:
                    response.close()
                    return self._receive(source)
            if begin != self.have:
                raise _Refused("sent part of the file when asked for all of it")
            self._record_origin((_redacted(source), validator))
            end = self.size or total
            require_space(self.path.parent, (end or 0) - self.have)
            with _progress(self.to.name, self.have, end) as bar:
                # `iter_content` would wait for a full chunk. An unrequested Content-Encoding is not decoded:
                # servers use it to label .gz files, and in any other case the hash does not match.
                while chunk := response.raw.read1(1 << 18, decode_content=False):
                    self._append(chunk)
                    bar.update(len(chunk))
                    self.floor.count(len(chunk))
            # Without a length or chunked encoding, a lost connection looks like the end of the file.
            framed = "Content-Length" in response.headers or "Transfer-Encoding" in response.headers
            if not self.complete and (self.have < total if total else not framed and self.have != self.size):
                raise _Failed("closed the connection early")

    def _record_origin(self, origin: tuple[str, str]) -> None:
        """Record the source of the next bytes before appending them."""
        self.whole = not self.have or (self.whole and origin == self.origin and origin[1] != "")
        if origin != self.origin:
            with replacing(self.origin_file) as partial:
                partial.write_text("\n".join(origin), encoding="utf-8")
        self.origin = origin

    def _append(self, chunk: bytes) -> None:
        if self.size and self.have + len(chunk) > self.size:
            self._restart(wrong=True)
            raise _Refused(f"sent more than {self.size:,} bytes")
        self.hash.update(chunk)
        self.have += len(chunk)
        self.best = max(self.best, self.have)
        try:
            while chunk:
                chunk = chunk[self.file.write(chunk) :]
        except OSError as error:
            error.filename = str(self.path)  # write() does not name the file
            raise

    def _restart(self, wrong: bool = False) -> None:
        """Drop all bytes; if they were wrong, receiving them was no progress."""
        self.file.truncate(0)
        self.hash, self.have, self.whole = hashlib.sha256(), 0, True
        self.best = 0 if wrong else self.best


class _Floor:
    """The lowest acceptable speed in bytes per second, averaged over windows of so many seconds."""

    def __init__(self, floor: float, window: float) -> None:
        self.floor, self.window = floor, window
        self.since, self.bytes = time.monotonic(), 0

    def count(self, received: int) -> None:
        """Count received bytes; raises `_Slow` at the end of a window with too few."""
        self.bytes += received
        seconds = time.monotonic() - self.since
        if seconds >= self.window:
            speed = self.bytes / seconds
            if speed < self.floor:
                raise _Slow(f"sends {speed / 1e3:.1f} kB/s, less than {self.floor / 1e3:g} kB/s")
            self.since, self.bytes = time.monotonic(), 0


class _Lines(io.StringIO):
    """Prints each update of a progress bar as a line, for when stderr is not a terminal."""

    def write(self, drawing: str) -> int:
        """Print an update without the characters that move the cursor."""
        if text := drawing.strip():
            _log(text)
        return len(drawing)


def _progress(name: str, have: int, end: int | None) -> "tqdm[NoReturn]":
    """Return a progress bar with speed and remaining time; lines when stderr is not a terminal."""
    from tqdm import tqdm

    options: dict[str, Any] = {}
    if not sys.stderr.isatty():
        options = {"file": _Lines(), "mininterval": LINE_EVERY, "delay": LINE_EVERY, "miniters": 1}
        options["bar_format"] = "{desc}: {n_fmt}B of {total_fmt}B, {rate_fmt}, {remaining} left"
    return tqdm(desc=name, initial=have, total=end, unit="B", unit_scale=True, leave=False, **options)


def _extent(response: "Response", size: int | None) -> tuple[int, int | None]:
    """Return the offset in the file at which the body begins (-1: unknown) and the file's length (None: unknown).

    Raises `_Failed` or `_Refused` when the response does not contain the file.
    """
    status, headers = response.status_code, response.headers
    if status not in (200, 206):
        temporary = status >= 500 or status in (408, 425, 429)
        raise (_Failed if temporary else _Refused)(f"answers {status} {response.reason}")
    if status == 200:
        begin, total = 0, int(headers["Content-Length"]) if "Content-Length" in headers else None
    else:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("Content-Range", ""))
        begin, total = (int(match[1]), int(match[2])) if match else (-1, None)
    if "text/html" in headers.get("Content-Type", "") and (size is None or total != size):
        raise _Refused(f"answers {status} with an HTML page instead of the file")
    if size and total not in (None, size):
        raise _Refused(f"has {total:,} bytes, expected {size:,}")
    return begin, total


def _local(source: str, sha256: str) -> Path:
    """Return the path of a local source after checking its hash."""
    scheme, _, rest = source.partition("://")
    if rest and scheme != "file" and scheme.isalnum():
        raise _Refused("is neither a path nor a file://, http:// or https:// URL")
    if scheme == "file" and not rest.startswith("/"):
        raise _Refused("is not an absolute path, as in file:///mnt/archive.tar.gz")
    path = Path(unquote(rest) if scheme == "file" else source).expanduser()
    try:
        found = _sha256(path)
    except OSError as error:
        raise _Refused(f"cannot be read: {error.strerror}") from error
    if found != sha256:
        raise _Refused(f"has SHA-256 {found}, expected {sha256}" if found else "is not a file")
    return path


def _sha256(path: Path) -> str | None:
    """Return the hash of a file, None if there is no such file."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _redacted(source: str) -> str:
    """Return a source for messages: a URL without user, password and query."""
    return re.sub(r"(?<=//)[^/]*@|[?#].*", "", source) if source.startswith("http") else source


def _log(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
