"""Fetch one file: from the first of several sources that works, resumed, and never without its SHA-256.

    path = fetch(["https://…/a.tar.gz", "/mnt/a.tar.gz"], sha256, cache / "a.tar.gz", size=170_052_171)

Only the SHA-256 says what the file is, so all sources are taken to hold the same bytes until the hash of the
whole says otherwise. What has arrived stays beside the result, under a name made of the hash, and any source
goes on from there. A note beside it has the source and its validator (ETag or Last-Modified): the same source
is asked with If-Range and says itself when its file has changed. When the hash is wrong and the bytes are not
surely from one unchanged file of this source, the source is asked once more, for the whole: only what a
source sent whole is called wrong.

Sources are asked in the order given, and in rounds: one that may recover (503, refused, cut short, silent)
gives way to the next at once and is asked again in the next round, after a pause; one that will not (404, an
HTML page, other bytes) is left out. One that is too slow gives way only while another has not been asked.
`Patience.rounds` rounds in a row that bring nothing are the end.
"""

import hashlib
import io
import os
import random
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import unquote

from filelock import FileLock, Timeout

from stages.common.failure import StageError
from stages.common.outputs import replacing, require_space, sync_folder

if TYPE_CHECKING:  # at run time the first download imports them: they take 0.3 s
    from requests import Response
    from tqdm import tqdm

LINE_EVERY = 10.0  # seconds between two lines of progress where there is no terminal


@dataclass(frozen=True)
class Patience:
    """How long to bear with a source."""

    connect: float = 10  # seconds to the connection
    read: float = 20  # seconds of silence
    floor: float = 32_000  # bytes a second, over
    window: float = 30  # seconds
    rounds: int = 6  # in a row that bring nothing
    pause: float = 0.5  # seconds after the first of them; doubled after each, up to half taken off at random


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

    `sources` are http(s) URLs, file URLs and plain paths. `to` is used as it is when its hash is right, and
    written whole or not at all. `size` in bytes, where known, tells a wrong file by its length and bounds
    what is written. Processes that fetch to the same `to` take turns. Progress and trouble go to stderr.

    Raises `StageError` when no source has the file: one line with `hint`, then the reason of each.
    """
    if _sha256(to) == sha256:
        return to
    to.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(to.with_name(f"{to.name}.lock"))  # the system frees it however its process ends
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        _say(f"{to.name}: waiting for another process that is fetching it")
        held = lock.acquire()
    with held, closing(_Download(to, sha256, size, patience)) as download:
        found = _sha256(to)  # again: another process may have fetched it while this one waited
        if found == sha256:
            return to
        if found:
            _say(f"{to}: has sha256 {found}, expected {sha256}; fetched anew")
        return download.from_first_of(sources, hint)


class _Failed(Exception):
    """A source did not give the file; it is asked again."""


class _Slow(_Failed):
    """A source is too slow or silent; whatever it has brought, the others are asked first."""


class _Refused(_Failed):
    """A source will not give the file, however often it is asked."""


@contextmanager
def _network_errors() -> Iterator[None]:
    """Turn what requests and urllib3 raise into `_Failed` or its like, in the words of the system."""
    from ssl import SSLCertVerificationError

    from requests import exceptions
    from urllib3.exceptions import HTTPError, ReadTimeoutError

    try:
        yield
    except (exceptions.Timeout, ReadTimeoutError) as error:
        raise _Slow("was silent for too long") from error
    except (exceptions.RequestException, HTTPError, ValueError) as error:  # ValueError: not a URL
        cause: BaseException = error  # the system's own error lies below several of theirs
        while not getattr(cause, "strerror", None) and (below := cause.__cause__ or cause.__context__):
            cause = below
        words = "closed the connection early" if isinstance(error, HTTPError) else f"failed: {cause}"
        if isinstance(cause, OSError) and cause.strerror:
            words = f"failed: {cause.strerror}"
        for_good = isinstance(error, (exceptions.TooManyRedirects, ValueError))
        for_good |= isinstance(cause, SSLCertVerificationError)
        raise (_Refused if for_good else _Failed)(words) from error


class _Download:
    """A file on its way: the bytes on disk, their hash so far, and where they come from."""

    def __init__(self, to: Path, sha256: str, size: int | None, patience: Patience) -> None:
        """Open what earlier runs left for this hash, reading it once to hash it, or begin with nothing."""
        self.to, self.sha256, self.size, self.patience = to, sha256, size, patience
        self.path = to.with_name(f"{to.name}.{sha256[:16]}.partial")
        self.file = self.path.open("a+b", buffering=0)  # unbuffered: SIGKILL loses nothing that has arrived
        self.file.seek(0)
        self.hash = hashlib.file_digest(self.file, "sha256")
        self.have = self.best = self.file.tell()  # `best`, the most there has been, tells progress
        self.whole = not self.have  # whether all bytes are surely from one unchanged file of one source
        self.note = self.path.with_suffix(".origin")
        noted = self.note.read_text(encoding="utf-8").split("\n") if self.note.exists() else []
        self.origin = (noted[0], noted[1]) if len(noted) == 2 else ("", "")  # source and validator

    def close(self) -> None:
        """Leave what has arrived to the next run, and nothing if nothing has."""
        self.file.close()
        if not self.have:
            self.path.unlink(missing_ok=True)
            self.note.unlink(missing_ok=True)

    def from_first_of(self, sources: Sequence[str], hint: str) -> Path:
        """Ask the sources in rounds; return `to`, or the path of a local source that has the file."""
        left, reasons = list(dict.fromkeys(sources)), dict[str, str]()
        first, in_vain = True, 0
        while not self.complete and left and in_vain < self.patience.rounds:
            if in_vain:
                self._pause(in_vain)
            best = self.best
            for source in tuple(left):
                try:
                    if not source.startswith(("http://", "https://")):
                        return _local(source, self.sha256)
                    self._from_web(source, any_speed=not first or source == left[-1])
                    break
                except _Failed as failure:
                    if reasons.get(source) != (reason := f"{_shown(source)} {failure}"):
                        _say(f"{self.to.name}: {reason}")
                    reasons[source] = reason
                    if isinstance(failure, _Refused):
                        left.remove(source)
            first, in_vain = False, 0 if self.best > best else in_vain + 1
        if not self.complete:
            why = "; ".join(reasons.values()) or "none is named"
            remedy = f"; {hint}" if hint else ""
            raise StageError(f"{self.to.name}: no source has it with sha256 {self.sha256}{remedy} ({why})")
        os.fsync(self.file.fileno())
        self.path.replace(self.to)
        sync_folder(self.to.parent)
        self.note.unlink(missing_ok=True)
        return self.to

    @property
    def complete(self) -> bool:
        """Whether the file is here."""
        return self.hash.hexdigest() == self.sha256

    def _pause(self, times: int = 1) -> None:
        time.sleep(self.patience.pause * 2 ** (times - 1) * random.uniform(0.5, 1))

    def _from_web(self, source: str, any_speed: bool) -> None:
        """Get the rest of the file from `source`, going on after each cut that brought something."""
        self.floor = _Floor(0 if any_speed else self.patience.floor, self.patience.window)
        asked_again = False
        while True:
            best = self.best
            try:
                self._receive(source)
            except (_Slow, _Refused):
                raise
            except _Failed as failure:
                if self.best == best:
                    raise
                _say(f"{self.to.name}: {_shown(source)} {failure}; going on from {self.have:,} bytes")
                self._pause()
                continue
            if self.complete:
                return
            wrong = f"sent {self.have:,} bytes with sha256 {self.hash.hexdigest()}, expected {self.sha256}"
            for_good = self.whole or asked_again
            self._restart(wrong=True)
            if for_good:
                raise _Refused(wrong)
            asked_again = True
            _say(f"{self.to.name}: the parts do not make the file; {_shown(source)} is asked for the whole")

    @_network_errors()
    def _receive(self, source: str) -> None:
        """Ask `source` once for what is missing and append it; return when it has sent all that it has."""
        import requests

        headers = {"Accept-Encoding": "identity"}
        known = self.have > 0 and self.origin[0] == _shown(source)
        if self.have:
            headers["Range"] = f"bytes={self.have}-"
            if known and self.origin[1]:
                headers["If-Range"] = self.origin[1]
        timeout = self.patience.connect, self.patience.read
        with requests.get(source, headers=headers, stream=True, timeout=timeout) as response:
            if response.status_code == 416 and self.have:
                self.whole = False  # it has no more than is here already, or now has less
                return
            begin, total = _extent(response, self.size)
            etag = response.headers.get("ETag", "")  # a weak one, W/"…", does not promise the same bytes
            validator = etag if etag.startswith('"') else response.headers.get("Last-Modified", "")
            if known and response.status_code == 206:
                validator = validator or self.origin[1]  # which an answer to If-Range need not repeat
            if self.have and (begin != self.have or (known and validator != self.origin[1])):
                _say(f"{self.to.name}: {_shown(source)} cannot go on from {self.have:,} bytes; starting over")
                self._restart()
                if begin != 0:
                    response.close()
                    return self._receive(source)
            if begin != self.have:
                raise _Refused("sends a part when asked for the whole")
            self._note((_shown(source), validator))
            end = self.size or total
            require_space(self.path.parent, (end or 0) - self.have)
            with _progress(self.to.name, self.have, end) as bar:
                # `iter_content` would wait for a full chunk, however slow. A Content-Encoding that was not
                # asked for is not undone: on a .gz it is a label, and otherwise the hash refuses the bytes.
                while chunk := response.raw.read1(1 << 18, decode_content=False):
                    self._append(chunk)
                    bar.update(len(chunk))
                    self.floor.count(len(chunk))
            # Without a length and without chunks, the end of the file and a lost connection look the same.
            sure = "Content-Length" in response.headers or "Transfer-Encoding" in response.headers
            if not self.complete and (self.have < total if total else not sure and self.have != self.size):
                raise _Failed("closed the connection early")

    def _note(self, origin: tuple[str, str]) -> None:
        """Record where the next bytes come from, before the first of them is appended."""
        self.whole = not self.have or (self.whole and origin == self.origin and origin[1] != "")
        if origin != self.origin:
            with replacing(self.note) as note:
                note.write_text("\n".join(origin), encoding="utf-8")
        self.origin = origin

    def _append(self, chunk: bytes) -> None:
        if self.size and self.have + len(chunk) > self.size:
            self._restart(wrong=True)
            raise _Refused(f"sends more than {self.size:,} bytes")
        self.hash.update(chunk)
        self.have += len(chunk)
        self.best = max(self.best, self.have)
        try:
            while chunk:
                chunk = chunk[self.file.write(chunk) :]
        except OSError as error:
            error.filename = str(self.path)  # the system does not say which file
            raise

    def _restart(self, wrong: bool = False) -> None:
        """Drop all bytes; if they were wrong, having them was no progress either."""
        self.file.truncate(0)
        self.hash, self.have, self.whole = hashlib.sha256(), 0, True
        self.best = 0 if wrong else self.best


class _Floor:
    """The lowest speed that is borne with, in bytes a second over each window of seconds."""

    def __init__(self, floor: float, window: float) -> None:
        self.floor, self.window = floor, window
        self.since, self.bytes = time.monotonic(), 0

    def count(self, received: int) -> None:
        """Add bytes that arrived; raise `_Slow` at the end of a window in which they were too few."""
        self.bytes += received
        seconds = time.monotonic() - self.since
        if seconds >= self.window:
            speed = self.bytes / seconds
            if speed < self.floor:
                raise _Slow(f"sends {speed / 1e3:.1f} kB/s, less than {self.floor / 1e3:g} kB/s")
            self.since, self.bytes = time.monotonic(), 0


class _Lines(io.StringIO):
    """Where a progress bar is drawn when stderr is no terminal: each drawing is a line."""

    def write(self, drawing: str) -> int:
        """Print what is left of the drawing without the signs that move the cursor."""
        if text := drawing.strip():
            _say(text)
        return len(drawing)


def _progress(name: str, have: int, end: int | None) -> "tqdm[NoReturn]":
    """Return a bar with speed and remaining time; where stderr is no terminal, it is lines."""
    from tqdm import tqdm

    drawn: dict[str, Any] = {}
    if not sys.stderr.isatty():
        drawn = {"file": _Lines(), "mininterval": LINE_EVERY, "delay": LINE_EVERY, "miniters": 1}
        drawn["bar_format"] = "{desc}: {n_fmt}B of {total_fmt}B, {rate_fmt}, {remaining} left"
    return tqdm(desc=name, initial=have, total=end, unit="B", unit_scale=True, leave=False, **drawn)


def _extent(response: "Response", size: int | None) -> tuple[int, int | None]:
    """Return where in the file a body begins (-1: not said) and the file's length (None: not said).

    Raises `_Failed` or `_Refused` when the body is not one of the file.
    """
    status, headers = response.status_code, response.headers
    if status not in (200, 206):
        not_now = status >= 500 or status in (408, 425, 429)
        raise (_Failed if not_now else _Refused)(f"answers {status} {response.reason}")
    if status == 200:
        begin, total = 0, int(headers["Content-Length"]) if "Content-Length" in headers else None
    else:
        said = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("Content-Range", ""))
        begin, total = (int(said[1]), int(said[2])) if said else (-1, None)
    if "text/html" in headers.get("Content-Type", "") and (size is None or total != size):
        raise _Refused(f"answers {status} with an HTML page instead of the file")
    if size and total not in (None, size):
        raise _Refused(f"has {total:,} bytes, expected {size:,}")
    return begin, total


def _local(source: str, sha256: str) -> Path:
    """Return the path of a local source, once it has been found to have the hash."""
    scheme, _, rest = source.partition("://")
    if rest and scheme != "file" and scheme.isalnum():
        raise _Refused("is no path, and none of file://, http:// and https://")
    if scheme == "file" and not rest.startswith("/"):
        raise _Refused("names no absolute path, as in file:///mnt/archive.tar.gz")
    path = Path(unquote(rest) if scheme == "file" else source).expanduser()
    try:
        found = _sha256(path)
    except OSError as error:
        raise _Refused(f"cannot be read: {error.strerror}") from error
    if found != sha256:
        raise _Refused(f"has sha256 {found}, expected {sha256}" if found else "is not a file")
    return path


def _sha256(path: Path) -> str | None:
    """Return the hash of a file, None where there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _shown(source: str) -> str:
    """Return a source as it may be shown: a URL without user, password and query."""
    return re.sub(r"(?<=//)[^/]*@|[?#].*", "", source) if source.startswith("http") else source


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
