"""Checks for unfinished work: checkpoints of interrupted training, and temporary files of a killed `dvc`."""

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
TEMPORARY = re.compile(r"\.[\w-]{22}\.tmp")  # the temporary names of DVC's outputs


def checkpoints() -> Iterator[Finding]:
    """Report where an unfinished run will continue."""
    from stages.training.checkpoints import DIGEST_SIZE

    # There may be checkpoints of several runs; within a run their names sort by epoch and step.
    found = [*CHECKPOINTS.glob("*.npz"), *CHECKPOINTS.glob("fine-tuning/*.npz")]
    paths = sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name))
    if not paths:
        yield Finding("ok", f"none in {CHECKPOINTS}/: no unfinished training")
        return
    for path in paths:
        content = path.read_bytes()
        if hashlib.sha256(content[:-DIGEST_SIZE]).digest() != content[-DIGEST_SIZE:]:
            yield Finding("wrong", f"{path} is damaged; training would skip it", f"rm {shlex.quote(str(path))}")
    if latest := re.search(r"-(\d+)-(\d+)\.npz$", paths[-1].name):
        minutes = (time.time() - paths[-1].stat().st_mtime) / 60
        place = f"{paths[-1]}, {minutes:,.0f} min old, after epoch {int(latest[1])}, step {int(latest[2])}"
        if is_held(Path(STAGES["train"]) / ".lock"):
            yield Finding("note", f"{place}: of the training that is running")
        else:
            then = "the next dvc repro continues from there, unless params, data or code have changed"
            yield Finding("note", f"{place}: a run ended early; {then}")


def leftovers() -> Iterator[Finding]:
    """Report files among the outputs that a killed `dvc` left; nothing reads or deletes them."""
    paths = [path for folder in OUTPUTS for path in sorted(Path(folder).rglob(".*.tmp"))]
    left = [str(path) for path in paths if TEMPORARY.fullmatch(path.name)]
    if left:
        found = f"{listed(left)}: left by a dvc that was killed, if none is running"
        yield Finding("note", found, f"rm -f {shlex.join(left)}")
    else:
        yield Finding("ok", "no killed dvc has left a temporary file among the outputs")
