"""Fetches the trained model of a git revision or DVC experiment, from DVC's cache or remote."""

import os
import subprocess
import sys
from pathlib import Path

from stages.common.failure import StageError


def fetch_model(checkout: Path, revision: str, folder: Path, asked_by: str) -> Path:
    """Write the model of `revision` in `checkout`, and its records, to `folder`; return the model's path.

    asked_by: the option or key that names the revision, for errors. Raises `StageError` when the revision does not
    exist, or DVC finds its model in neither cache nor remote.
    """
    for name in ("model.json", "model.keras", "confidence.json"):
        command = [sys.executable, "-m", "dvc", "get", "--rev", revision, "--out", str(folder / name)]
        done = subprocess.run(
            [*command, str(checkout.absolute()), f"models/{name}"],
            cwd=folder,
            env={**os.environ, "DVC_NO_ANALYTICS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            if name == "confidence.json" and "does not exist" in done.stderr:
                break  # older code did not write it
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
            reason = errors[0].removeprefix("ERROR: ") if errors else f"dvc get ended with {done.returncode}"
            unknown = "unknown Git revision" in reason
            remedy = "dvc exp list --all-commits" if unknown else "dvc push, where the model was trained"
            raise StageError(f"{asked_by} {revision}: models/{name} cannot be fetched: {reason}. Run: {remedy}")
    return folder / "model.keras"
