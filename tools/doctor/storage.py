"""The disk and DVC's cache: is there room for the next run, and are the objects what their names say?"""

import contextlib
import hashlib
import json
import shlex
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.doctor import sources
from tools.doctor.finding import Finding, listed, megabytes
from tools.doctor.recorded import Output, cache_folder, dvc_config, in_git, object_path, outputs

# The model, and two checkpoints of it with Adam's two moments, each written aside before it is moved: as train
# asks for it. In units of the model, which is little more than its weights.
MODELS = 12


def disk() -> Iterator[Finding]:
    """Hold the free space to what a run needs that makes everything anew, by the sizes that dvc.lock records."""
    recorded, config = outputs(), dvc_config()
    for needs in _by_disk(_needs(recorded, config)):
        folders, needed = [str(folder) for folder, _ in needs], sum(size for _, size in needs)
        free = shutil.disk_usage(_there(needs[0][0])).free
        where = " and ".join(dict.fromkeys("this checkout" if name == "." else name for name in folders))
        found = f"{where}: a run of everything needs up to {megabytes(needed)} more, {megabytes(free)} are free"
        if free < needed:
            # Objects that no commit names are what many runs leave behind.
            yield Finding("wrong", f"{found}; make room", "dvc gc --all-commits")
        else:
            yield Finding("ok", found)


def _needs(recorded: list[Output], config: dict[str, Any]) -> list[tuple[Path, int]]:
    """Return folders and how many bytes a run of everything adds to each.

    DVC removes a stage's outputs before it runs, and keeps the old ones in its cache. With copies (the default,
    where the file system has no reflinks) the cache then takes as much again; with links it takes the file itself.
    """
    cache = cache_folder(config)
    size = sum(output.size for output in recorded)
    model = sum(output.size for output in recorded if output.path.suffix == ".keras")
    files = [output.path for output in recorded if output.path.is_file() and not output.path.is_symlink()]
    freed = sum(path.stat().st_size for path in files if path.stat().st_nlink == 1)
    linked = (config["cache"].get("type") or ["copy"])[0] in ("hardlink", "symlink")
    moved = linked and _device(cache) == _device(Path())
    checkout = MODELS * model + (0 if moved else max(0, size - freed))
    return [(Path(), checkout), (cache, size), (sources.folder(), sources.missing_bytes())]


def _by_disk(needs: list[tuple[Path, int]]) -> list[list[tuple[Path, int]]]:
    disks: dict[int, list[tuple[Path, int]]] = defaultdict(list)
    for folder, size in needs:
        if size:
            disks[_device(folder)].append((folder, size))
    return list(disks.values())


def _device(folder: Path) -> int:
    return _there(folder).stat().st_dev


def _there(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def cache() -> Iterator[Finding]:
    """Hash each object of the cache that dvc.lock names: DVC trusts one unhashed as long as it is read-only."""
    config, recorded = dvc_config(), outputs()
    folder, kept_by_git = cache_folder(config), in_git()
    here = [output for output in recorded if object_path(folder, output.md5).exists()]
    # What git keeps DVC has for its run cache only, and does not pull.
    absent = [str(each.path) for each in recorded if each not in here and each.path not in kept_by_git]
    damaged = [
        output
        for output in _with_parts(recorded, folder)
        if (path := object_path(folder, output.md5)).exists() and _md5(path) != output.md5.removesuffix(".dir")
    ]
    for output in damaged:
        path = object_path(folder, output.md5)
        found = f"{path}, which is {output.path}, has other bytes than its name says"
        yield Finding("wrong", found, _mend(output, path))
    for output in here:
        if output not in damaged and output.path not in kept_by_git and _is_changed(output, folder):
            remedy = f"dvc checkout --force {shlex.quote(str(output.path))}"
            yield Finding("note", f"{output.path} has other bytes than dvc.lock names; to have those", remedy)
    if absent:
        remedy = "dvc pull" if config["core"].get("remote") else "dvc repro"
        found = f"{len(absent)} of the {len(recorded)} outputs of dvc.lock are not in {folder}: {listed(absent)}"
        yield Finding("note", found if here else f"not yet: {folder} has no output of dvc.lock", remedy)
    elif not damaged:
        size = megabytes(sum(output.size for output in here))
        which = "" if len(here) == len(recorded) else ", without some that git keeps"
        yield Finding(
            "ok", f"{folder}: all {len(here)} outputs of dvc.lock{which}, {size}, have the bytes of their MD5"
        )


def _is_changed(output: Output, folder: Path) -> bool:
    """Whether the workspace has the file with other bytes than the cache, which holds what dvc.lock names."""
    if not output.path.is_file() or output.path.samefile(object_path(folder, output.md5)):
        return False
    return output.path.stat().st_size != output.size or _md5(output.path) != output.md5


def _with_parts(recorded: list[Output], folder: Path) -> Iterator[Output]:
    """Yield the outputs and, of those that are folders, the files that the folder's object lists."""
    for output in recorded:
        yield output
        path = object_path(folder, output.md5)
        if output.md5.endswith(".dir") and path.exists():
            # An object with changed bytes is found as such; what it then lists is not followed.
            with contextlib.suppress(ValueError, KeyError, TypeError):
                for part in json.loads(path.read_bytes()):
                    yield Output(output.stage, output.path / part["relpath"], part["md5"], 0)


def _mend(output: Output, path: Path) -> str:
    """Return the command that replaces an object, by the file in the workspace if that has the right bytes."""
    if output.path.is_file() and _md5(output.path) == output.md5:
        return f"cp -f {shlex.quote(str(output.path))} {shlex.quote(str(path))}"
    # A repro that finds neither makes it again. The file in the workspace may be the same one, linked.
    return f"rm -rf {shlex.quote(str(path))} {shlex.quote(str(output.path))} && dvc repro"


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
