"""The team's DVC remote: can it be reached, and has it all that dvc.lock names?

DVC's own `dvc status --cloud` writes to .dvc/tmp. So the question is put from a folder made for it, with the same
configuration and an empty cache: what DVC then calls missing is missing in the remote. As a process of its own,
`python -m tools.doctoring.remote FOLDER`, which can be given up.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tools.doctoring import recorded
from tools.doctoring.finding import Finding, NotLookedAt, listed

SECONDS = 10.0  # for the remote to answer


def remote(offline: bool) -> Iterator[Finding]:
    """Hold what the default remote has to what dvc.lock names."""
    config = recorded.dvc_config()
    name = config["core"].get("remote")
    if name not in config["remote"]:
        names = list(config["remote"])
        remedy = f"dvc remote default {names[0]}" if names else "dvc remote add --default NAME URL"
        if name:
            yield Finding("wrong", f"{name}, the default one, is not configured", remedy)
        elif names:
            yield Finding(
                "note", f"none of {listed(names)} is the default, so dvc push and pull need --remote", remedy
            )
        else:
            yield Finding("note", "none is configured: the results are on this machine only", remedy)
        return
    if offline:
        raise NotLookedAt(f"{name}: not asked: --offline")
    recorded.stages()  # which may say that there is nothing to ask for
    url = config["remote"][name]["url"]
    gone = f"; {url} is not there, is it mounted?" if "://" not in url and not Path(url).exists() else ""
    try:
        missing = _missing()
    except subprocess.TimeoutExpired:
        yield Finding("wrong", f"{name} gave no answer in {SECONDS:g} s", "dvc remote list")
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or [f"exit code {error.returncode}"]
        yield Finding("wrong", f"{name} cannot be asked: {lines[-1]}", "dvc status --cloud --verbose")
    else:
        if missing:
            yield Finding(
                "wrong", f"{name} has not {len(missing)} outputs of dvc.lock: {listed(missing)}{gone}", "dvc push"
            )
        else:
            yield Finding("ok", f"{name} has every output of dvc.lock")


def _missing() -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "tools.doctoring.remote", folder],
            env={**os.environ, "DVC_SITE_CACHE_DIR": str(Path(folder) / "site"), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=True,
        )
    missing: list[str] = json.loads(done.stdout.splitlines()[-1])
    return missing


def main(arguments: Sequence[str]) -> None:
    """Print the paths that are missing in the remote, as a JSON list."""
    from dvc.config import Config
    from dvc.repo import Repo

    folder = Path(arguments[0])
    (folder / ".dvc").mkdir()
    for path in [
        Path("dvc.yaml"),
        Path("params.yaml"),
        recorded.LOCK,
        *Path().glob("*.dvc"),
        *Path().glob("*/*.dvc"),
    ]:
        if path.is_file():
            (folder / path).parent.mkdir(exist_ok=True)
            shutil.copy2(path, folder / path)
    config = Config(".dvc").load_config_to_level()  # relative paths in it are made absolute
    config["core"]["no_scm"] = True
    config["cache"] = {"dir": str(folder / "cache")}
    found = Repo(str(folder), config=config).status(cloud=True)
    print(json.dumps(sorted(path for path, state in found.items() if state == "missing")))


if __name__ == "__main__":
    main(sys.argv[1:])
