"""Training that did not end: the checkpoints from which the next run goes on."""

import hashlib
import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

from tools.doctoring.finding import Finding

CHECKPOINTS = Path("checkpoints")


def checkpoints() -> Iterator[Finding]:
    """Tell from where a run that was not finished goes on."""
    from stages.checkpoints import DIGEST_SIZE

    # Several runs may have left some; within one the names sort by epoch and step.
    paths = sorted(CHECKPOINTS.glob("*.npz"), key=lambda path: (path.stat().st_mtime_ns, path.name))
    if not paths:
        yield Finding("ok", f"none in {CHECKPOINTS}/: no training was left unfinished")
        return
    for path in paths:
        content = path.read_bytes()
        if hashlib.sha256(content[:-DIGEST_SIZE]).digest() != content[-DIGEST_SIZE:]:
            yield Finding(
                "wrong", f"{path} is damaged; training would pass over it", f"rm {shlex.quote(str(path))}"
            )
    if latest := re.search(r"-(\d+)-(\d+)\.npz$", paths[-1].name):
        minutes = (time.time() - paths[-1].stat().st_mtime) / 60
        found = (
            f"{paths[-1]}, {minutes:,.0f} min old: a run ended early after epoch {int(latest[1])}, step "
            f"{int(latest[2])}; the next dvc repro goes on from there, unless params, data or code have changed"
        )
        yield Finding("note", found)
