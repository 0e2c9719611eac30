"""Checks the dataset's archive: what the user's cache has of it, and which sources have it."""

import hashlib
import shlex
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from stages.common.failure import StageError
from tools.doctor import recorded
from tools.doctor.finding import Finding, NotChecked, listed, megabytes
from tools.doctor.processes import is_held

CONNECT, SILENCE = 3.0, 4.0  # time limits in seconds, for connecting and for an answer
SECONDS = 8.0  # for all sources together, because name resolution has no time limit


def folder() -> Path:
    """Return the folder that keeps downloaded archives."""
    from stages.common.fetch import cache_folder

    return cache_folder()


def missing_bytes() -> int:
    """Return how many bytes of the archive are still to be downloaded."""
    from stages.datasets.cifar10 import ARCHIVE_BYTES

    sha256 = _wanted()
    if not sha256 or _archive().exists():
        return 0
    partial = _partial(sha256)
    return max(0, ARCHIVE_BYTES - (partial.stat().st_size if partial.exists() else 0))


def download() -> Iterator[Finding]:
    """Report what the user's cache has of the archive: all, a part, or other bytes."""
    from stages.datasets.cifar10 import ARCHIVE_BYTES

    sha256 = _wanted()
    if not sha256:
        yield Finding("ok", "the dataset in params.yaml needs no archive")
        return
    archive, partial = _archive(), _partial(sha256)
    if is_held(archive.with_name(f"{archive.name}.lock")):
        yield Finding("note", f"{archive}: being downloaded by another process")
    elif _is_sound(archive, sha256):
        yield Finding("ok", f"{archive} matches the SHA-256 in params.yaml")
    elif archive.exists():
        yield Finding(
            "note", f"{archive} does not match the SHA-256 in params.yaml; the next download fetches it again"
        )
    if partial.exists():
        size = f"{megabytes(partial.stat().st_size)} of {megabytes(ARCHIVE_BYTES)}"
        yield Finding("note", f"{partial}: {size} are here; the next dvc repro continues from there")
    elif not archive.exists():
        yield Finding("note", f"not yet: {archive} has not been downloaded")
    others = [path for path in sorted(archive.parent.glob(f"{archive.name}.*.partial")) if path != partial]
    if others:
        found = f"{listed([str(path) for path in others])}: started for another SHA-256 than that in params.yaml"
        yield Finding("note", found, f"rm {shlex.join(map(str, others))}")


def mirrors(offline: bool) -> Iterator[Finding]:
    """Ask all sources of the archive in parallel, unless it is here."""
    from stages.common.fetch import sources_from_environment
    from stages.datasets.cifar10 import SOURCES

    sha256 = _wanted()
    if not sha256 or _is_sound(_archive(), sha256):
        yield Finding("ok", "not asked, because no archive is needed")
        return
    if offline:
        raise NotChecked("not asked: --offline")
    named = sources_from_environment("DATASET_SOURCES")
    problems = _ask(list(dict.fromkeys([*named, *SOURCES])))
    good = [source for source, problem in problems.items() if not problem]
    if good:
        yield Finding("ok", f"the archive is available from {listed([_shown(source) for source in good])}")
    # Each source in DATASET_SOURCES gets its own line; of the built-in ones, one is enough.
    for source in named if good else []:
        if problems[source]:
            yield Finding("note", f"DATASET_SOURCES: {_shown(source)} {problems[source]}")
    if not good:
        reasons = "; ".join(f"{_shown(source)} {problem}" for source, problem in problems.items())
        remedy = "DATASET_SOURCES=/path/to/a/copy make repro, or offline: make demo"
        if _has_run(sha256):
            yield Finding("note", f"none has it, though what dvc.lock records of download is here: {reasons}")
        else:
            yield Finding("wrong", f"none has the archive that download needs: {reasons}", remedy)


def _wanted() -> str:
    """Return the SHA-256 of the archive in params.yaml; empty if the dataset needs none.

    Raises `NotChecked` when params.yaml has a mistake.
    """
    from stages.common.params import load
    from stages.datasets.registry import DatasetParams

    try:
        params = load(Path("params.yaml"), "dataset", DatasetParams)
    except StageError:
        raise NotChecked("not checked: params.yaml has a mistake, see params") from None
    return params.cifar10.sha256 if params.name == "cifar10" else ""


def _archive() -> Path:
    from stages.datasets.cifar10 import ARCHIVE

    return folder() / ARCHIVE


def _partial(sha256: str) -> Path:
    archive = _archive()
    return archive.with_name(f"{archive.name}.{sha256[:16]}.partial")


def _is_sound(path: Path, sha256: str) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def _has_run(sha256: str) -> bool:
    """Return whether the outputs of download for this archive are here or in DVC's cache."""
    try:
        dataset: Any = recorded.stages()["download"]["params"]["params.yaml"]["dataset"]
        made = [output for output in recorded.outputs() if output.stage == "download"]
    except (NotChecked, KeyError):
        return False
    cache = recorded.cache_folder(recorded.dvc_config())
    here = all(each.path.exists() or recorded.object_path(cache, each.md5).exists() for each in made)
    return bool(here and dataset["name"] == "cifar10" and dataset["cifar10"]["sha256"] == sha256)


def _ask(places: list[str]) -> dict[str, str]:
    """Return the problem of each source; empty if it has a file of the right size."""
    problems = {place: f"gave no answer in {SECONDS:g} s" for place in places}

    def ask(place: str) -> None:
        problems[place] = _web(place) if place.startswith(("http://", "https://")) else _local(place)

    threads = [threading.Thread(target=ask, args=(place,), daemon=True) for place in places]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + SECONDS
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
    return dict(problems)


def _web(url: str) -> str:
    import requests

    try:
        # Not HEAD, which some servers answer differently. The body is not read.
        with requests.get(
            url, headers={"Accept-Encoding": "identity"}, stream=True, timeout=(CONNECT, SILENCE)
        ) as had:
            if had.status_code != 200:
                return f"answers {had.status_code} {had.reason}"
            if "text/html" in had.headers.get("Content-Type", ""):
                return "answers with an HTML page instead of the file"
            return _of_size(int(had.headers.get("Content-Length", 0)))
    except requests.Timeout:
        return "gives no answer"
    except (requests.RequestException, ValueError) as error:
        cause: BaseException = error  # the system's own message is the innermost cause
        while not getattr(cause, "strerror", None) and (below := cause.__cause__ or cause.__context__):
            cause = below
        return f"cannot be reached ({getattr(cause, 'strerror', None) or type(error).__name__})"


def _local(place: str) -> str:
    if "://" in place and not place.startswith("file://"):
        return "is no path, and none of file://, http:// and https://"
    path = Path(unquote(place[7:]) if place.startswith("file://") else place).expanduser()
    return _of_size(path.stat().st_size) if path.is_file() else "is not a file here"


def _of_size(size: int) -> str:
    """Return the problem with a file of `size` bytes; 0: unknown size."""
    from stages.datasets.cifar10 import ARCHIVE_BYTES, OFFICIAL

    wrong = size and _wanted() == OFFICIAL and size != ARCHIVE_BYTES
    return f"has {size:,} bytes, expected {ARCHIVE_BYTES:,}" if wrong else ""


def _shown(place: str) -> str:
    """Return a source for display: of a URL only the host, without user and password."""
    return urlsplit(place).netloc.rpartition("@")[2] if place.startswith(("http://", "https://")) else place
