"""Runs a measurement in a separate process, so that runs share no caches, settings or loaded libraries."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from stages.common.failure import StageError
from stages.common.records import Statistics, read_record

ROOT = Path(__file__).parent.parent


def measured(module: str, *arguments: str) -> Any:
    """Run `python -m module` and return the JSON of its last line; `StageError` says why there is none."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        words = done.stderr.strip() or f"it ended with {done.returncode}"
        raise StageError(words.splitlines()[-1])
    return json.loads(done.stdout.splitlines()[-1])


def require_float32(processed: Path) -> None:
    """Raise `StageError` when the splits in `processed` hold uint8 images, which bare Keras would not scale."""
    if read_record(processed / "statistics.json", Statistics).storage == "uint8":
        raise StageError(
            f"{processed}: the images are stored as uint8, which only the stages scale. Set preprocess.storage to "
            "float32 and run: dvc repro preprocess"
        )
