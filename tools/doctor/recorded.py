"""Reads dvc.lock and DVC's configuration as files, because DVC's own commands would write to .dvc/tmp."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.common.failure import StageError
from tools.doctor.finding import NotChecked

LOCK = Path("dvc.lock")
PIPELINE = Path("dvc.yaml")


@dataclass(frozen=True)
class Output:
    """An output of a stage; size: in bytes, of a folder the sum of its files."""

    stage: str
    path: Path
    md5: str  # the name of its object in the cache; ends in .dir for a folder
    size: int


def stages() -> dict[str, Any]:
    """Return the stages in dvc.lock; raises `NotChecked` when it is missing or broken."""
    import yaml

    from tools.check import refuse_a_broken_lock

    try:
        refuse_a_broken_lock(LOCK)
    except StageError:
        raise NotChecked(f"not checked: {LOCK} is broken, see dvc.lock") from None
    if not LOCK.exists():
        raise NotChecked(f"not yet: there is no {LOCK}, so no run is recorded")
    found: dict[str, Any] = yaml.safe_load(LOCK.read_bytes())["stages"]
    return found


def outputs() -> list[Output]:
    """Return the outputs in dvc.lock; raises `NotChecked` like `stages`, and when there are none."""
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
    """Return the outputs in dvc.yaml, of stages in dvc.lock, that dvc.lock does not record."""
    there = {str(output.path) for output in outputs()}
    listed = pipeline()
    return [path for name in stages() for path in listed.get(name, {}) if path not in there]


def pipeline() -> dict[str, dict[str, bool]]:
    """Return, by stage, the outputs in dvc.yaml, each with whether DVC caches it (otherwise git keeps it).

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
        raise NotChecked(f"not checked: {PIPELINE} is broken, see dvc.yaml") from None
    return found


def in_git() -> set[Path]:
    """Return the outputs that git keeps; raises `NotChecked` like `pipeline`."""
    return {Path(path) for outs in pipeline().values() for path, cached in outs.items() if not cached}


def dvc_config() -> dict[str, Any]:
    """Return DVC's configuration, all levels merged; raises `NotChecked` when it is broken."""
    from dvc.config import Config, ConfigError

    try:
        return dict(Config(".dvc"))
    except ConfigError:
        raise NotChecked("not checked: DVC's configuration is broken, see config") from None


def cache_folder(config: dict[str, Any]) -> Path:
    """Return the path that `dvc cache dir` prints, relative if it is in the checkout."""
    folder = Path(config["cache"].get("dir") or Path(".dvc/cache").absolute())
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def object_path(cache: Path, md5: str) -> Path:
    """Return the path of an object in the cache."""
    return cache / "files" / "md5" / md5[:2] / md5[2:]
