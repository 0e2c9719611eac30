"""What dvc.lock records and where DVC keeps it; files are read, DVC's own commands would write to .dvc/tmp."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.failure import StageError
from tools.doctoring.finding import NotLookedAt

LOCK = Path("dvc.lock")


@dataclass(frozen=True)
class Output:
    """What a stage made; `size` in bytes, of a folder all of its files."""

    stage: str
    path: Path
    md5: str  # the name of its object in the cache; of a folder it ends in .dir
    size: int


def stages() -> dict[str, Any]:
    """Return what dvc.lock has of each stage; raises `NotLookedAt` when it has nothing or is broken."""
    import yaml

    from tools.check import refuse_a_broken_lock

    try:
        refuse_a_broken_lock(LOCK)
    except StageError:
        raise NotLookedAt(f"not looked at: {LOCK} is broken, see there") from None
    if not LOCK.exists():
        raise NotLookedAt(f"not yet: there is no {LOCK}, so no run is recorded")
    found: dict[str, Any] = yaml.safe_load(LOCK.read_bytes())["stages"]
    return found


def outputs() -> list[Output]:
    """Return every output that dvc.lock records; raises `NotLookedAt` as `stages` does, and when there is none."""
    found = [
        Output(name, Path(out["path"]), out["md5"], out["size"])
        for name, stage in stages().items()
        for out in stage.get("outs", [])
        if {"md5", "size"} <= out.keys()
    ]
    if not found:
        raise NotLookedAt(f"not yet: {LOCK} records no output")
    return found


def unrecorded() -> list[str]:
    """Return the outputs that dvc.yaml gives the stages in dvc.lock, and that dvc.lock does not record."""
    import yaml

    listed = yaml.safe_load(Path("dvc.yaml").read_bytes())["stages"]
    there = {str(output.path) for output in outputs()}
    named = [
        out if isinstance(out, str) else next(iter(out))
        for name in stages()
        for kind in ("outs", "metrics", "plots")
        for out in listed.get(name, {}).get(kind, [])
    ]
    return [path for path in named if path not in there]


def dvc_config() -> dict[str, Any]:
    """Return DVC's configuration of all levels, with absolute paths."""
    from dvc.config import Config

    return dict(Config(".dvc"))


def cache_folder(config: dict[str, Any]) -> Path:
    """Return what `dvc cache dir` prints, relative where it is in the checkout."""
    folder = Path(config["cache"].get("dir") or Path(".dvc/cache").absolute())
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def object_path(cache: Path, md5: str) -> Path:
    """Return where the cache keeps the object of that name."""
    return cache / "files" / "md5" / md5[:2] / md5[2:]
