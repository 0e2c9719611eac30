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

SECONDS = 15.0  # for the remote to answer, DVC to load included


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
    try:
        missing, present = _compared()
    except subprocess.TimeoutExpired:
        yield Finding(
            "wrong", f"{name} gave no answer in {SECONDS:g} s; to see why", "dvc status --cloud --verbose"
        )
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or [f"exit code {error.returncode}"]
        yield Finding("wrong", f"{name} cannot be asked: {lines[-1]}; to see more", "dvc status --cloud --verbose")
    else:
        if missing and not present:
            # DVC takes a folder that is not mounted, or a web server that is down, for an empty remote.
            url = config["remote"][name]["url"]
            place = url if "://" not in url else url.partition("://")[0]
            found = f"{name} has no output of dvc.lock: can it be reached ({place}), was nothing pushed yet?"
            yield Finding("wrong", found, "dvc push")
        elif missing:
            found = f"{len(missing)} outputs of dvc.lock are not in {name}: {listed(missing)}"
            yield Finding("wrong", found, "dvc push")
        else:
            yield Finding("ok", f"{name} has every output of dvc.lock")


def _compared() -> tuple[list[str], list[str]]:
    """Return which outputs are missing in the remote, and which are not."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "tools.doctoring.remote", folder],
            env={**os.environ, "DVC_SITE_CACHE_DIR": str(Path(folder) / "site"), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=True,
        )
    found = json.loads(done.stdout.splitlines()[-1])
    return [path for path in found if found[path] == "missing"], [
        path for path in found if found[path] != "missing"
    ]


def main(arguments: Sequence[str]) -> None:
    """Print what DVC says of each output, as JSON: deleted when the remote has it, as the cache here is empty."""
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
    print(json.dumps(found, sort_keys=True))


if __name__ == "__main__":
    main(sys.argv[1:])
