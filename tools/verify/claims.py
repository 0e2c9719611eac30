"""What a revision says that it makes: the hashes in its dvc.lock, or those of the demo in tools/demo.json."""

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
    """What a rebuild is held to: hashes, the files of them that are at hand, and the machine that made them.

    name: as in sentences. committed: the folder of the files that were in git. tracked: the outputs that git, and
    not DVC's cache, keeps. checkout: the one whose DVC cache may hold others. environment: by stage.
    """

    name: str
    outputs: Mapping[str, Output]
    committed: Path
    tracked: frozenset[str] = frozenset()
    checkout: Path | None = None
    environment: Environments = field(default_factory=dict)

    def file(self, path: str) -> Path | None:
        """Return a file with the claimed bytes of the output `path`, if there is one on this machine."""
        md5 = self.outputs[path].md5
        if md5 is None:
            return None
        caches = _caches(self.checkout) if self.checkout else ()
        places = [self.committed / path, *(cache / md5[:2] / md5[2:] for cache in caches)]
        # A cache's bytes may have changed since: what is shown here must be what the hash names.
        return next((place for place in places if place.is_file() and digest(place) == md5), None)


def claim_of_lock(lock: Lock, folder: Path, kept: Path) -> Claim:
    """Return what the `lock` of the clone in `folder` claims; its files of git will be in `kept`."""
    return Claim(
        name=f"its {NAME}",
        outputs=lock.outputs(),
        committed=kept,
        tracked=_tracked(folder) & lock.outputs().keys(),
        checkout=Path.cwd(),
        environment=read_environments(folder),
    )


def claim_of_demo(folder: Path, commit: str, nowhere: Path) -> tuple[Claim, dict[str, Any]]:
    """Return what tools/demo.json of the clone claims, and of which params by dotted key.

    There are no files of it in git, so `nowhere` is empty.
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
    """Return in words what in a revision does not go together: its dvc.lock, params.yaml and environment/.

    values: those of params.yaml, by dotted key. others: the stages whose record is of another model.
    """
    read_there = {
        key: value for stage in lock.stages.values() for key, value in stage.params.get(PARAMS, {}).items()
    }
    found = [f"{words}; the rebuild has that of {NAME}" for words in differing_params(read_there, values)]
    found += (words for _, words in contradictions(lock))
    found += (f"environment/{stage}.json is of another model than metrics/train.csv: not used" for stage in others)
    params = lock.params()
    for stage, record in environment.items():
        for key in sorted(record.keys() & params.keys()):
            if key.startswith("runtime.") and record[key] != params[key]:
                found.append(
                    f"environment/{stage}.json has {key} {record[key]}, {NAME} {params[key]}: another run's"
                )
    return found


def _tracked(folder: Path) -> frozenset[str]:
    """Return the outputs that dvc.yaml leaves to git."""
    stages = (read(folder / "dvc.yaml").get("stages") or {}).values()
    entries = (each for stage in stages for kind in ("outs", "metrics", "plots") for each in stage.get(kind, ()))
    named = (item for entry in entries if isinstance(entry, dict) for item in entry.items())
    return frozenset(
        path for path, choices in named if isinstance(choices, dict) and choices.get("cache") is False
    )


@functools.cache  # DVC takes a second to start
def _caches(checkout: Path) -> list[Path]:
    """Return where DVC keeps the files of earlier runs here, of the checkout and of its demo."""
    told = subprocess.run(
        [sys.executable, "-m", "dvc", "cache", "dir"], cwd=checkout, capture_output=True, text=True, check=False
    )
    own = [Path(told.stdout.strip())] if told.returncode == 0 else []
    return [folder / "files" / "md5" for folder in (*own, checkout / "demo" / ".dvc" / "cache")]
