"""Checks the team's DVC remote: whether it answers, and has every output in dvc.lock in full size.

DVC's own `dvc status --cloud` writes to .dvc/tmp, removes what is damaged in a remote that is a folder, and takes
what was cut short there for whole. So only sizes are asked for, and from a folder made for it, with the same
configuration; as a separate process, `python -m tools.doctor.remote FOLDER`, which can be given up.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tools.doctor import recorded, repository
from tools.doctor.finding import Finding, NotChecked, listed

SECONDS = 15.0  # time limit, including the start of DVC


@dataclass(frozen=True)
class Object:
    """A file that a push sends, and its size in the remote; sizes in bytes, None if unknown."""

    path: str
    md5: str
    place: str  # in the remote
    there: bool
    expected: int | None = None
    size: int | None = None

    @property
    def is_damaged(self) -> bool:
        """Whether the remote has it with another size."""
        return None not in (self.size, self.expected) and self.size != self.expected


def remote(offline: bool) -> Iterator[Finding]:
    """Compare the default remote with dvc.lock."""
    config = recorded.dvc_config()
    name = config["core"].get("remote")
    if name not in config["remote"]:
        yield _not_configured(name, list(config["remote"]))
        return
    if offline:
        raise NotChecked(f"{name}: not asked: --offline")
    recorded.stages()  # raises `NotChecked` if there is nothing to compare
    try:
        objects = _ask()
    except subprocess.TimeoutExpired:
        yield Finding(
            "wrong", f"{name} gave no answer in {SECONDS:g} s; to see why", "dvc status --cloud --verbose"
        )
        return
    except subprocess.CalledProcessError as error:
        if any(finding.state == "wrong" for finding in repository.pipeline()):
            raise NotChecked(f"{name}: {recorded.PIPELINE} is incomplete") from None
        lines = error.stderr.strip().splitlines() or [f"exit code {error.returncode}"]
        yield Finding("wrong", f"{name} cannot be read: {lines[-1]}; to see more", "dvc status --cloud --verbose")
        return
    url = config["remote"][name]["url"]
    findings = [*_missing(name, url, objects, config), *_damaged(name, url, objects)]
    yield from findings or [Finding("ok", f"{name} has every output of dvc.lock, in full size")]
    if not config["remote"][name].get("verify"):
        found = f"verify is not set for {name}, so dvc pull accepts truncated files"
        yield Finding("note", found, f"dvc remote modify {name} verify true")


def _not_configured(name: str | None, names: list[str]) -> Finding:
    remedy = f"dvc remote default {names[0]}" if names else "dvc remote add --default NAME URL"
    if name:
        return Finding("wrong", f"{name}, the default one, is not configured", remedy)
    if names:
        return Finding(
            "note", f"none of {listed(names)} is the default, so dvc push and pull need --remote", remedy
        )
    return Finding("note", "none is configured: the results are on this machine only", remedy)


def _missing(name: str, url: str, objects: list[Object], config: dict[str, Any]) -> Iterator[Finding]:
    missing = [each for each in objects if not each.there]
    if not missing:
        return
    found = f"{len(missing)} outputs of dvc.lock are not in {name}: {listed([each.path for each in missing])}"
    if len(missing) == len(objects):
        # An unmounted folder or a web server that is down looks like an empty remote.
        place = url if "://" not in url else url.partition("://")[0]
        found = f"{name} has no output of dvc.lock: can it be reached ({place}), was nothing pushed yet?"
    cache = recorded.cache_folder(config)
    to_push = all(recorded.object_path(cache, each.md5).exists() for each in missing)
    yield Finding("wrong", found, "dvc push" if to_push else "dvc repro && dvc push")


def _damaged(name: str, url: str, objects: list[Object]) -> Iterator[Finding]:
    for each in objects:
        if each.is_damaged:
            found = f"{each.path} has {each.size:,} bytes in {name}, and {each.expected:,} by dvc.lock"
            # A push only checks that the file exists.
            if "://" in url:
                yield Finding("wrong", f"{found}; remove {each.place} there, and where it is whole", "dvc push")
            else:
                remedy = f"rm -f {shlex.quote(each.place)} && dvc push"
                yield Finding("wrong", f"{found}; where it is whole", remedy)


def _ask() -> list[Object]:
    """Run this module in a separate process, and return what `main` prints."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "tools.doctor.remote", folder],
            env={**os.environ, "DVC_SITE_CACHE_DIR": str(Path(folder) / "site"), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=True,
        )
    return [Object(**each) for each in json.loads(done.stdout.splitlines()[-1])]


def main(arguments: Sequence[str]) -> None:
    """Print each object that a push sends as JSON."""
    from dvc.config import Config
    from dvc.repo import Repo

    folder = Path(arguments[0]).resolve()
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
    repo = Repo(str(folder), config=config)
    outs = [out for out in repo.index.outs if out.use_cache and out.can_push and out.hash_info]
    objects = [each for out in outs for each in _objects(repo, out, os.path.relpath(out.fs_path, folder))]
    print(json.dumps([asdict(each) for each in objects]))


def _objects(repo: Any, out: Any, path: str) -> Iterator[Object]:
    """Yield the object of an output and, for a folder, those of its files, whose sizes DVC does not record."""
    store = repo.cloud.get_remote_odb(out.remote, hash_name=out.hash_info.name)
    md5 = out.hash_info.value
    place = store.oid_to_path(md5)
    try:
        size = store.fs.info(place).get("size")
    except FileNotFoundError:
        yield Object(path, md5, place, there=False)
        return
    if not out.hash_info.isdir:
        yield Object(path, md5, place, True, out.meta.size, size)
        return
    yield Object(path, md5, place, True)
    with store.fs.open(place) as file:
        parts = json.load(file)
    places = [store.oid_to_path(part["md5"]) for part in parts]
    for part, where, there in zip(parts, places, store.fs.exists(places), strict=True):
        yield Object(f"{path}/{part['relpath']}", part["md5"], where, there)


if __name__ == "__main__":
    main(sys.argv[1:])
