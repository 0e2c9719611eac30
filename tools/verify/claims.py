"""What a revision claims: the hashes in its dvc.lock, or those of the demo in tools/demo.json."""

import functools
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.common.failure import StageError
from stages.common.params import read
from tools.verify.differences import digest
from tools.verify.lock import NAME, PARAMS, Lock, Output, contradictions, differing_params
from tools.verify.machine import Environments, read_environments

DEMO = "tools/demo.json"


@dataclass(frozen=True)
class Claim:
    """What a rebuild is compared with: hashes, the files that are available, and the machine that made them.

    name: for messages. committed: the folder with the files from git. tracked: the outputs that git keeps instead
    of DVC's cache. checkout: its DVC cache may have other files. environment: by stage.
    """

    name: str
    outputs: Mapping[str, Output]
    committed: Path
    tracked: frozenset[str] = frozenset()
    checkout: Path | None = None
    environment: Environments = field(default_factory=dict)

    def file(self, path: str) -> Path | None:
        """Return a file with the claimed content of the output `path`, if this machine has one."""
        md5 = self.outputs[path].md5
        if md5 is None:
            return None
        caches = _caches(self.checkout) if self.checkout else ()
        places = [self.committed / path, *(cache / md5[:2] / md5[2:] for cache in caches)]
        # Verified, because files in a cache may have changed.
        return next((place for place in places if place.is_file() and digest(place) == md5), None)


def claim_of_lock(lock: Lock, folder: Path, kept: Path) -> Claim:
    """Return the claim of the `lock` of the clone in `folder`, whose files from git will be in `kept`."""
    return Claim(
        name=f"its {NAME}",
        outputs=lock.outputs(),
        committed=kept,
        tracked=_tracked(folder) & lock.outputs().keys(),
        checkout=Path.cwd(),
        environment=read_environments(folder),
    )


def claim_of_demo(folder: Path, commit: str, nowhere: Path) -> tuple[Claim, dict[str, Any]]:
    """Return the claim in tools/demo.json of the clone, and its params by dotted key.

    Git has no outputs of the demo, so the folder `nowhere` is empty.
    """
    try:
        content = json.loads((folder / DEMO).read_bytes())
        outputs = {path: Output("-", path, str(md5)) for path, md5 in content["outputs"].items()}
        params = dict(content["params"])
    except (FileNotFoundError, ValueError, AttributeError, LookupError, TypeError) as error:
        raise StageError(
            f"{DEMO} of {commit[:10]}: cannot be read ({error}); make it: python -m tools.demo --record"
        ) from None
    return Claim(f"its {DEMO}", outputs, nowhere, checkout=Path.cwd()), params


def remarks(lock: Lock, values: Mapping[str, Any], environment: Environments, others: Sequence[str]) -> list[str]:
    """Describe contradictions in a revision between its dvc.lock, params.yaml and environment/.

    values: params.yaml by dotted key. others: the stages whose record belongs to another model.
    """
    read_there = {
        key: value for stage in lock.stages.values() for key, value in stage.params.get(PARAMS, {}).items()
    }
    found = [f"{words}; the rebuild has that of {NAME}" for words in differing_params(read_there, values)]
    found += (words for _, words in contradictions(lock))
    found += (
        f"environment/{stage}.json belongs to another model than metrics/train.csv and is not used"
        for stage in others
    )
    params = lock.params()
    for stage, record in environment.items():
        for key in sorted(record.keys() & params.keys()):
            if key.startswith("runtime.") and record[key] != params[key]:
                found.append(
                    f"environment/{stage}.json has {key} {record[key]}, {NAME} {params[key]}: another run's"
                )
    return found


def _tracked(folder: Path) -> frozenset[str]:
    """Return the outputs that dvc.yaml does not cache, so that git keeps them."""
    stages = (read(folder / "dvc.yaml").get("stages") or {}).values()
    entries = (each for stage in stages for kind in ("outs", "metrics", "plots") for each in stage.get(kind, ()))
    named = (item for entry in entries if isinstance(entry, dict) for item in entry.items())
    return frozenset(
        path for path, choices in named if isinstance(choices, dict) and choices.get("cache") is False
    )


@functools.cache  # DVC takes a second to start
def _caches(checkout: Path) -> list[Path]:
    """Return the DVC caches of the checkout and of its demo."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "cache", "dir"], cwd=checkout, capture_output=True, text=True, check=False
    )
    own = [Path(done.stdout.strip())] if done.returncode == 0 else []
    return [folder / "files" / "md5" for folder in (*own, checkout / "demo" / ".dvc" / "cache")]
