"""What did not end: the checkpoints from which the next run goes on, and files that a killed `dvc` was writing."""

import hashlib
import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

from tools.doctor.finding import Finding, listed
from tools.doctor.processes import STAGES, is_held

CHECKPOINTS = Path("checkpoints")
OUTPUTS = ("data", "models", "metrics")
TEMPORARY = re.compile(r"\.[\w-]{22}\.tmp")  # under such a name DVC writes what it then moves


def checkpoints() -> Iterator[Finding]:
    """Tell from where a run that was not finished goes on."""
    from stages.training.checkpoints import DIGEST_SIZE

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
        place = f"{paths[-1]}, {minutes:,.0f} min old, after epoch {int(latest[1])}, step {int(latest[2])}"
        if is_held(Path(STAGES["train"]) / ".lock"):
            yield Finding("note", f"{place}: of the training that is going on")
        else:
            then = "the next dvc repro goes on from there, unless params, data or code have changed"
            yield Finding("note", f"{place}: a run ended early; {then}")


def leftovers() -> Iterator[Finding]:
    """Tell of the files among the outputs that a killed `dvc` left, which nothing reads or removes."""
    paths = [path for folder in OUTPUTS for path in sorted(Path(folder).rglob(".*.tmp"))]
    left = [str(path) for path in paths if TEMPORARY.fullmatch(path.name)]
    if left:
        found = f"{listed(left)}: left by a dvc that was killed, if none is running"
        yield Finding("note", found, f"rm -f {shlex.join(left)}")
    else:
        yield Finding("ok", "no killed dvc has left a temporary file among the outputs")
