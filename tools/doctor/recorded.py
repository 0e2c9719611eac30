"""What dvc.lock records and where DVC keeps it; files are read, DVC's own commands would write to .dvc/tmp."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.common.failure import StageError
from tools.doctor.finding import NotChecked

LOCK = Path("dvc.lock")
PIPELINE = Path("dvc.yaml")


@dataclass(frozen=True)
class Output:
    """What a stage made; `size` in bytes, of a folder all of its files."""

    stage: str
    path: Path
    md5: str  # the name of its object in the cache; of a folder it ends in .dir
    size: int


def stages() -> dict[str, Any]:
    """Return what dvc.lock has of each stage; raises `NotChecked` when it has nothing or is broken."""
    import yaml

    from tools.check import refuse_a_broken_lock

    try:
        refuse_a_broken_lock(LOCK)
    except StageError:
        raise NotChecked(f"not looked at: {LOCK} is broken, see there") from None
    if not LOCK.exists():
        raise NotChecked(f"not yet: there is no {LOCK}, so no run is recorded")
    found: dict[str, Any] = yaml.safe_load(LOCK.read_bytes())["stages"]
    return found


def outputs() -> list[Output]:
    """Return every output that dvc.lock records; raises `NotChecked` as `stages` does, and when there is none."""
    found = [
        Output(name, Path(out["path"]), out["md5"], out["size"])
        for name, stage in stages().items()
        for out in stage.get("outs", [])
        if {"md5", "size"} <= out.keys()
    ]
    if not found:
        raise NotChecked(f"not yet: {LOCK} records no output")
    return found


def unrecorded() -> list[str]:
    """Return the outputs that dvc.yaml gives the stages in dvc.lock, and that dvc.lock does not record."""
    there = {str(output.path) for output in outputs()}
    listed = pipeline()
    return [path for name in stages() for path in listed.get(name, {}) if path not in there]


def pipeline() -> dict[str, dict[str, bool]]:
    """Return, by stage, the outputs that dvc.yaml lists, and of each whether DVC's cache keeps it, or git.

    Raises `NotChecked` when dvc.yaml is broken.
    """
    import yaml

    try:
        listed = yaml.safe_load(PIPELINE.read_bytes())["stages"]
        found: dict[str, dict[str, bool]] = {}
        for name, stage in listed.items():
            outs = [out for kind in ("outs", "metrics", "plots") for out in stage.get(kind, [])]
            named = [{out: {}} if isinstance(out, str) else out for out in outs]
            found[name] = {path: choices.get("cache", True) for out in named for path, choices in out.items()}
    except (OSError, yaml.YAMLError, LookupError, TypeError, AttributeError):
        raise NotChecked(f"not looked at: {PIPELINE} is broken, see there") from None
    return found


def in_git() -> set[Path]:
    """Return the outputs that dvc.yaml leaves to git; raises `NotChecked` as `pipeline` does."""
    return {Path(path) for outs in pipeline().values() for path, cached in outs.items() if not cached}


def dvc_config() -> dict[str, Any]:
    """Return DVC's configuration of all levels, with absolute paths; raises `NotChecked` when it is broken."""
    from dvc.config import Config, ConfigError

    try:
        return dict(Config(".dvc"))
    except ConfigError:
        raise NotChecked("not looked at: DVC's configuration is broken, see config") from None


def cache_folder(config: dict[str, Any]) -> Path:
    """Return what `dvc cache dir` prints, relative where it is in the checkout."""
    folder = Path(config["cache"].get("dir") or Path(".dvc/cache").absolute())
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def object_path(cache: Path, md5: str) -> Path:
    """Return where the cache keeps the object of that name."""
    return cache / "files" / "md5" / md5[:2] / md5[2:]
