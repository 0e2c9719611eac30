"""stages/common/fetch.py against a real server that misbehaves in each of the ways that real ones do."""

import hashlib
import os
import pty
import random
import re
import subprocess
import sys
import termios
import time
from dataclasses import replace
from pathlib import Path

import pytest

from stages.common.failure import StageError
from stages.common.fetch import Patience, fetch
from tests.project import ROOT
from tests.servers import Answer, Length, Server, refusing_url

BODY = random.Random(1).randbytes(300_000)
OTHER = random.Random(2).randbytes(300_000)
SHA256, OTHER_SHA256 = (hashlib.sha256(content).hexdigest() for content in (BODY, OTHER))
QUICK = Patience(connect=2, read=0.3, floor=100_000, window=0.2, rounds=3, pause=0.01)
PAGE = Answer(b"<!doctype html><p>Back soon", kind="text/html; charset=utf-8", ranges=False)
FETCH = """
import sys
from pathlib import Path
from stages.common.fetch import fetch
fetch(sys.argv[3:], sys.argv[1], Path(sys.argv[2]))
"""


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the proxies of the environment away from loopback."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")


@pytest.fixture
def to(tmp_path: Path) -> Path:
    """Return where the file is to be, in a folder that is not there yet."""
    return tmp_path / "cache" / "archive.tar.gz"


def left_beside(to: Path) -> list[str]:
    """Return the suffixes of the files in the folder of `to`, the lock's aside."""
    return sorted(path.suffix for path in to.parent.iterdir() if path.suffix != ".lock")


def start(code: str, *arguments: str | Path) -> subprocess.Popen[str]:
    """Run Python code in a separate process."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def test_the_file_arrives_and_nothing_is_left_beside_it(to: Path) -> None:
    with Server(Answer(BODY)) as server:
        assert fetch([server.url], SHA256, to) == to
    assert to.read_bytes() == BODY
    assert left_beside(to) == [".gz"]


def test_a_file_that_is_there_is_used_without_a_request_or_a_word(
    to: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    to.parent.mkdir()
    to.write_bytes(BODY)
    assert fetch([refusing_url()], SHA256, to) == to
    assert capfd.readouterr() == ("", "")


def test_a_file_whose_bytes_have_changed_is_fetched_again(to: Path, capfd: pytest.CaptureFixture[str]) -> None:
    to.parent.mkdir()
    to.write_bytes(OTHER)
    with Server(Answer(BODY)) as server:
        fetch([server.url], SHA256, to)
    assert to.read_bytes() == BODY
    assert (
        f"checksum mismatch (expected {SHA256[:8]}…, found {OTHER_SHA256[:8]}…); fetching it again"
        in capfd.readouterr().err
    )


@pytest.mark.parametrize("length", ["stated", "chunked", "missing"])
def test_a_body_cut_at_random_places_is_resumed_without_a_byte_twice(to: Path, length: Length) -> None:
    cuts = [random.randrange(1, 60_000) for _ in range(5)]
    answers = [Answer(BODY, etag='"1"', length=length, cut=cut) for cut in cuts]
    with Server(*answers, Answer(BODY, etag='"1"', length=length)) as server:
        fetch([server.url], SHA256, to, patience=QUICK)
    assert to.read_bytes() == BODY
    assert server.sent == len(BODY)
    assert server.ranges == [""] + [f"bytes={sum(cuts[: n + 1])}-" for n in range(5)]


@pytest.mark.parametrize("etag, modified", [('"1"', ""), ("", "Mon, 01 Jan 2024 00:00:00 GMT"), ("", "")])
def test_the_next_run_resumes_what_the_last_one_left(to: Path, etag: str, modified: str) -> None:
    good = Answer(BODY, etag=etag, modified=modified)
    with Server(replace(good, cut=100_000), Answer(status=404), good) as server:
        with pytest.raises(StageError):
            fetch([server.url], SHA256, to, patience=QUICK)
        assert ".partial" in left_beside(to)
        fetch([server.url], SHA256, to, patience=QUICK)
    assert to.read_bytes() == BODY
    assert server.sent == len(BODY)
    assert server.requests[-1].get("If-Range", "") == etag + modified


def test_the_next_run_needs_no_request_when_all_had_arrived(to: Path) -> None:
    to.parent.mkdir()
    partial = to.with_name(f"archive.tar.gz.{SHA256[:16]}.partial")
    partial.write_bytes(BODY)
    fetch([], SHA256, to)
    assert to.read_bytes() == BODY


def test_a_weak_validator_is_not_sent(to: Path) -> None:
    with Server(Answer(BODY, etag='W/"1"', cut=100_000), Answer(BODY, etag='W/"1"')) as server:
        fetch([server.url], SHA256, to, patience=QUICK)
    assert to.read_bytes() == BODY
    assert "If-Range" not in server.requests[-1]


@pytest.mark.parametrize(
    "resumed",
    [
        Answer(BODY, etag='"1"', ranges=False),
        Answer(BODY, etag='"1"', shift=1000),
        Answer(BODY, etag='"1"', shift=-1000),
        Answer(BODY, etag='"1"', content_range=""),
        Answer(BODY, etag='"1"', content_range="bytes 7-3/*"),
    ],
    ids=["Range ignored", "begins later", "begins earlier", "no Content-Range", "bad Content-Range"],
)
def test_a_body_that_does_not_go_on_from_there_is_never_appended(to: Path, resumed: Answer) -> None:
    with Server(Answer(BODY, etag='"1"', cut=100_000), resumed) as server:
        fetch([server.url], SHA256, to, patience=QUICK)
    assert to.read_bytes() == BODY
    assert not server.ranges[0] and server.ranges[1]


@pytest.mark.parametrize("if_range", [True, False])
def test_a_file_that_changes_between_two_requests_is_not_glued_together(to: Path, if_range: bool) -> None:
    changed = Answer(BODY, etag='"new"', if_range=if_range)
    with Server(Answer(OTHER, etag='"old"', cut=100_000), changed) as server:
        fetch([server.url], SHA256, to, patience=QUICK)
    assert to.read_bytes() == BODY
    assert server.sent <= 100_000 + len(BODY) + (1 << 17)


@pytest.mark.parametrize("etag", ["", '"same"'], ids=["no validator", "a validator that lies"])
def test_a_change_that_no_validator_tells_is_found_by_the_hash(to: Path, etag: str) -> None:
    with Server(Answer(OTHER, etag=etag, cut=100_000), Answer(status=404), Answer(BODY, etag=etag)) as server:
        with pytest.raises(StageError):
            fetch([server.url], SHA256, to, patience=QUICK)
        fetch([server.url], SHA256, to, patience=QUICK)
    assert to.read_bytes() == BODY


def test_what_one_mirror_began_another_completes(to: Path) -> None:
    with (
        Server(Answer(BODY, etag='"a"', cut=100_000), Answer(hang_up=True)) as first,
        Server(Answer(BODY, etag='"b"')) as second,
    ):
        fetch([first.url, second.url], SHA256, to, patience=QUICK)
    assert to.read_bytes() == BODY
    assert second.ranges == ["bytes=100000-"]
    assert "If-Range" not in second.requests[0]


def test_a_mirror_that_began_wrongly_does_not_spoil_the_next(to: Path) -> None:
    with Server(Answer(OTHER, cut=100_000), Answer(status=404)) as first, Server(Answer(BODY)) as second:
        fetch([first.url, second.url], SHA256, to, patience=QUICK)
    assert to.read_bytes() == BODY
    assert second.ranges == ["bytes=100000-", ""]


def test_a_mirror_with_a_longer_file_does_not_spoil_the_next(to: Path) -> None:
    with (
        Server(Answer(BODY + OTHER, cut=len(BODY) + 9), Answer(status=404)) as first,
        Server(Answer(BODY)) as good,
    ):
        fetch([first.url, good.url], SHA256, to, patience=QUICK)
    assert to.read_bytes() == BODY


@pytest.mark.parametrize(
    "bad, reason",
    [
        (Answer(status=503), "answers 503 Service Unavailable"),
        (Answer(status=404), "answers 404 Not Found"),
        (PAGE, "answers 200 with an HTML page instead of the file"),
        (Answer(status=302, location="/again"), "Exceeded 30 redirects"),
        (Answer(status=302, location="http://[bad"), "failed: "),
        (Answer(hang_up=True), "failed: "),
        (Answer(OTHER), f"sent 300,000 bytes with SHA-256 {OTHER_SHA256}, expected {SHA256}"),
        (Answer(OTHER[:-1]), "sent 299,999 bytes with SHA-256"),
        (
            Answer(OTHER, length="chunked"),
            f"sent 300,000 bytes with SHA-256 {OTHER_SHA256}, expected {SHA256}",
        ),
        (Answer(BODY, packed=True), "with SHA-256"),
        (Answer(BODY, cut=100_000, stall=True), "timed out"),
        (
            Answer(BODY, status=206, content_range="bytes 9-300008/300009"),
            "sent part of the file when asked for all of it",
        ),
        (Answer(BODY, rate=20_000), "kB/s, less than 100"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mirror_that_fails_gives_way_to_the_next_and_says_why(
    to: Path, capfd: pytest.CaptureFixture[str], bad: Answer, reason: str
) -> None:
    with Server(bad) as first, Server(Answer(BODY)) as second:
        fetch([first.url, second.url], SHA256, to, patience=QUICK)
    assert to.read_bytes() == BODY
    assert second.requests
    (line,) = [line for line in capfd.readouterr().err.splitlines() if reason in line]
    assert line.startswith(f"archive.tar.gz: {first.url} ")


def test_a_mirror_that_refuses_the_connection_gives_way_to_the_next(
    to: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    url = refusing_url()
    with Server(Answer(BODY)) as server:
        fetch([url, server.url], SHA256, to, patience=QUICK)
    assert to.read_bytes() == BODY
    assert capfd.readouterr().err == f"archive.tar.gz: {url} failed: Connection refused\n"


def test_a_page_in_place_of_the_rest_does_not_cost_what_has_arrived(to: Path) -> None:
    with Server(Answer(BODY, cut=100_000), PAGE) as first, Server(Answer(BODY)) as second:
        fetch([first.url, second.url], SHA256, to, patience=QUICK)
    assert to.read_bytes() == BODY
    assert second.ranges == ["bytes=100000-"]


def test_the_only_source_is_asked_again_after_a_failure_that_may_pass(to: Path) -> None:
    with Server(Answer(status=503), Answer(hang_up=True), Answer(BODY)) as server:
        fetch([server.url], SHA256, to, patience=QUICK)
    assert to.read_bytes() == BODY


def test_a_source_that_refuses_for_good_is_asked_once(to: Path) -> None:
    with Server(Answer(status=404)) as server, pytest.raises(StageError, match="answers 404 Not Found"):
        fetch([server.url], SHA256, to, patience=QUICK)
    assert len(server.requests) == 1


def test_rounds_that_bring_something_are_not_counted(to: Path) -> None:
    pieces = [answer for _ in range(9) for answer in (Answer(BODY, cut=30_000), Answer(status=503))]
    with Server(*pieces, Answer(BODY)) as server:
        fetch([server.url], SHA256, to, patience=QUICK)
    assert to.read_bytes() == BODY


def test_the_last_mirror_may_be_slow(to: Path) -> None:
    with Server(Answer(BODY[:20_000], rate=40_000)) as server:
        sha256 = hashlib.sha256(BODY[:20_000]).hexdigest()
        fetch([refusing_url(), server.url], sha256, to, patience=QUICK)
    assert to.read_bytes() == BODY[:20_000]
    assert len(server.requests) == 1


def test_a_slow_mirror_is_asked_again_when_the_others_have_failed(to: Path) -> None:
    with Server(Answer(BODY[:20_000], rate=40_000)) as slow, Server(Answer(status=404)) as dead:
        sha256 = hashlib.sha256(BODY[:20_000]).hexdigest()
        fetch([slow.url, dead.url], sha256, to, patience=QUICK)
    assert to.read_bytes() == BODY[:20_000]
    assert len(dead.requests) == 1


def test_a_redirect_is_followed(to: Path) -> None:
    with Server(Answer(BODY)) as server, Server(Answer(status=301, location=server.url)) as moved:
        fetch([moved.url], SHA256, to)
    assert to.read_bytes() == BODY


def test_a_gz_that_is_labelled_as_gzip_is_kept_as_it_is(to: Path) -> None:
    with Server(Answer(BODY, labelled=True)) as server:
        fetch([server.url], SHA256, to)
    assert to.read_bytes() == BODY
    assert server.requests[0]["Accept-Encoding"] == "identity"


def test_no_output_and_both_hashes_when_every_mirror_has_other_bytes(to: Path) -> None:
    both = pytest.raises(StageError, match=f"SHA-256 {SHA256}.*{OTHER_SHA256}.*sent 9 bytes")
    with Server(Answer(OTHER)) as first, Server(Answer(OTHER[:9])) as second, both:
        fetch([first.url, second.url], SHA256, to, patience=QUICK)
    assert left_beside(to) == []


def test_no_source_at_all_is_one_line_with_the_remedy_before_the_reasons(to: Path) -> None:
    with pytest.raises(StageError, match=r"; name a local copy \(.* failed: Connection refused\)$") as caught:
        fetch([refusing_url()], SHA256, to, hint="name a local copy", patience=QUICK)
    assert "\n" not in str(caught.value)
    with pytest.raises(StageError, match="there are no sources"):
        fetch([], SHA256, to)


def test_a_file_of_another_length_is_refused_before_it_is_sent(to: Path) -> None:
    lengths = pytest.raises(StageError, match="has 600,000 bytes, expected 300,000")
    with Server(Answer(BODY, cut=50_000), Answer(BODY + OTHER, rate=1)) as server, lengths:
        fetch([server.url], SHA256, to, size=len(BODY), patience=QUICK)
    assert [path.stat().st_size for path in to.parent.glob("*.partial")] == [50_000]


def test_no_more_is_written_than_the_file_is_long(to: Path) -> None:
    with (
        Server(Answer(BODY, length="missing")) as server,
        pytest.raises(StageError, match="sent more than 1,000"),
    ):
        fetch([server.url], SHA256, to, size=1000, patience=QUICK)
    assert left_beside(to) == []


def test_the_space_that_is_missing_is_named_before_anything_is_written(to: Path) -> None:
    space = pytest.raises(StageError, match="1,000,000,000 MB needed")
    with Server(Answer(BODY, length="missing")) as server, space:
        fetch([server.url], SHA256, to, size=10**15)
    assert left_beside(to) == []


@pytest.mark.parametrize("form", ["path", "URL"])
def test_a_local_copy_is_used_where_it_is_and_before_what_comes_after_it(
    to: Path, tmp_path: Path, form: str
) -> None:
    copy = tmp_path / "A ünï%20code#name.tar.gz"
    copy.write_bytes(BODY)
    with Server(Answer(BODY)) as server:
        assert fetch([copy.as_uri() if form == "URL" else str(copy), server.url], SHA256, to) == copy
    assert not server.requests
    assert left_beside(to) == []


def test_a_local_copy_stands_in_for_a_dead_mirror(to: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").write_bytes(BODY)
    assert fetch([refusing_url(), str(tmp_path / "copy")], SHA256, to, patience=QUICK) == tmp_path / "copy"


def test_local_copies_that_cannot_be_used_are_named_with_the_reason(to: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(OTHER)
    sources = [
        str(tmp_path / "other"),
        str(tmp_path / "absent"),
        "file://data/copy",
        str(tmp_path),
        "ftp://host/a",
    ]
    reasons = (
        f"other has SHA-256 {OTHER_SHA256}.*absent is not a file.*data/copy is not an absolute path"
        ".*is not a file.*ftp://host/a is neither a path nor"
    )
    with pytest.raises(StageError, match=reasons):
        fetch(sources, SHA256, to)


def test_what_arrived_of_another_file_is_never_used(to: Path) -> None:
    with Server(Answer(OTHER, cut=100_000), Answer(status=404), Answer(BODY)) as server:
        with pytest.raises(StageError):
            fetch([server.url], OTHER_SHA256, to, patience=QUICK)
        fetch([server.url], SHA256, to, patience=QUICK)
    assert to.read_bytes() == BODY
    assert server.ranges == ["", "bytes=100000-", ""]


def test_passwords_and_tokens_are_not_shown(to: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Server(Answer(status=403)) as server:
        url = server.url.replace("//", "//me:secret@") + "?token=secret"
        with pytest.raises(StageError) as caught:
            fetch([url, url.replace("archive", "other")], SHA256, to)
    assert "secret" not in str(caught.value) + capfd.readouterr().err
    assert server.requests[0]["Authorization"].startswith("Basic ")


def test_two_processes_share_one_download(to: Path) -> None:
    with Server(Answer(BODY, rate=300_000)) as server:
        both = [start(FETCH, SHA256, to, server.url) for _ in range(2)]
        errors = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert server.sent == len(BODY)
    assert sorted(errors) == ["", "archive.tar.gz: another process is fetching it; waiting\n"]


@pytest.mark.parametrize("seed", range(12))
def test_one_source_that_has_the_file_is_enough_whatever_the_others_do(to: Path, seed: int) -> None:
    chosen = random.Random(seed)

    def anything() -> Answer:
        answer = Answer(
            chosen.choice([BODY, BODY, OTHER, OTHER[:-5], OTHER + b"more"]),
            etag=chosen.choice(["", '"1"', '"2"', 'W/"1"']),
            modified=chosen.choice(["", "Mon, 01 Jan 2024 00:00:00 GMT"]),
            ranges=chosen.random() < 0.7,
            if_range=chosen.random() < 0.7,
            length=chosen.choice(["stated", "chunked", "missing"]),
        )
        cut = replace(answer, cut=chosen.randrange(len(BODY)))
        return chosen.choice([answer, cut, cut, cut, replace(cut, stall=True), replace(answer, shift=9), PAGE])

    quick = replace(QUICK, read=0.05)
    with (
        Server(*[anything() for _ in range(6)]) as bad,
        Server(
            Answer(BODY, cut=9_000), Answer(status=503), Answer(BODY, cut=99_000, ranges=False), Answer(BODY)
        ) as good,
        Server(*[anything() for _ in range(6)]) as worse,
    ):
        fetch([bad.url, good.url, worse.url], SHA256, to, patience=quick)
    assert to.read_bytes() == BODY


def test_sigkill_at_any_moment_costs_next_to_nothing(to: Path) -> None:
    body = random.Random(3).randbytes(4_000_000)
    sha256 = hashlib.sha256(body).hexdigest()
    fetched: list[int] = []  # bytes sent for each complete file
    with Server(Answer(body, etag='"1"', rate=6_000_000)) as server:

        def finish() -> None:
            process = start(FETCH, sha256, to, server.url)
            assert process.communicate()[1] == ""
            assert to.read_bytes() == body
            fetched.append(server.sent - sum(fetched))
            to.unlink()

        began = time.monotonic()
        finish()
        duration = time.monotonic() - began
        for _ in range(20):
            process = start(FETCH, sha256, to, server.url)
            time.sleep(random.uniform(0, duration))
            process.kill()
            process.communicate()
            if to.exists():
                finish()
        finish()
    print(f"bytes fetched / file size: {[round(sent / len(body), 3) for sent in fetched]}")
    assert max(fetched) < 2 * len(body)


def test_a_terminal_shows_a_bar_with_speed_and_remaining_time(to: Path) -> None:
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    termios.tcsetwinsize(theirs, (24, 100))
    with Server(Answer(BODY, rate=600_000)) as server, os.fdopen(theirs), os.fdopen(ours, "rb") as screen:
        command = [sys.executable, "-c", FETCH, SHA256, str(to), server.url]
        subprocess.run(command, cwd=ROOT, stderr=theirs, check=True)
        assert re.search(rb"archive\.tar\.gz: +\d+%\|.*/300k \[.*<.*kB/s\]", screen.read())


def test_a_log_gets_lines_with_speed_and_remaining_time(
    to: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.common.fetch.LINE_EVERY", 0.1)
    with Server(Answer(BODY, rate=600_000)) as server:
        fetch([server.url], SHA256, to)
    lines = capfd.readouterr().err.splitlines()
    assert lines
    for line in lines:
        assert re.fullmatch(r"archive\.tar\.gz: \S+kB of 300kB, \S+kB/s, 00:0\d left", line)


def test_a_full_disk_is_named_with_the_file(to: Path) -> None:
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))" + FETCH
    with Server(Answer(BODY)) as server:
        errors = start(code, SHA256, to, server.url).communicate()[1]
    assert "File too large" in errors
    assert ".partial" in errors


def test_what_is_slow_to_import_is_imported_only_for_a_download() -> None:
    process = start("import sys, stages.common.fetch; sys.exit(not {'requests', 'tqdm'}.isdisjoint(sys.modules))")
    process.communicate()
    assert process.returncode == 0
