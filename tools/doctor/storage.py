"""Checks the disk space for the next run, and the objects in DVC's cache against their hashes."""

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

# Space for the model and for two checkpoints with Adam's two moments, each written beside its final name, as in
# train. In units of the model's size.
MODELS = 12


def disk() -> Iterator[Finding]:
    """Compare the free space with what a full run needs, by the sizes in dvc.lock."""
    recorded, config = outputs(), dvc_config()
    for needs in _by_disk(_needs(recorded, config)):
        folders, needed = [str(folder) for folder, _ in needs], sum(size for _, size in needs)
        free = shutil.disk_usage(_there(needs[0][0])).free
        where = " and ".join(dict.fromkeys("this checkout" if name == "." else name for name in folders))
        found = f"{where}: a full run needs up to {megabytes(needed)} more, {megabytes(free)} are free"
        if free < needed:
            # Many runs leave objects behind that no commit names.
            yield Finding("wrong", f"{found}; make room", "dvc gc --all-commits")
        else:
            yield Finding("ok", found)


def _needs(recorded: list[Output], config: dict[str, Any]) -> list[tuple[Path, int]]:
    """Return folders and how many bytes a full run adds to each.

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
    """Return the folder, or its nearest parent that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def cache() -> Iterator[Finding]:
    """Hash each object in the cache that dvc.lock names: DVC trusts read-only objects without hashing them."""
    config, recorded = dvc_config(), outputs()
    folder, kept_by_git = cache_folder(config), in_git()
    here = [output for output in recorded if object_path(folder, output.md5).exists()]
    # Outputs in git are in the cache only for the run cache, and DVC does not pull them.
    absent = [str(each.path) for each in recorded if each not in here and each.path not in kept_by_git]
    damaged = [
        output
        for output in _with_parts(recorded, folder)
        if (path := object_path(folder, output.md5)).exists() and _md5(path) != output.md5.removesuffix(".dir")
    ]
    for output in damaged:
        path = object_path(folder, output.md5)
        found = f"{path}, the object of {output.path}, does not match its hash"
        yield Finding("wrong", found, _repair_command(output, path))
    for output in here:
        if output not in damaged and output.path not in kept_by_git and _is_changed(output, folder):
            remedy = f"dvc checkout --force {shlex.quote(str(output.path))}"
            yield Finding("note", f"{output.path} does not match dvc.lock; to restore it", remedy)
    if absent:
        remedy = "dvc pull" if config["core"].get("remote") else "dvc repro"
        found = f"{len(absent)} of the {len(recorded)} outputs of dvc.lock are not in {folder}: {listed(absent)}"
        yield Finding("note", found if here else f"not yet: {folder} has no output of dvc.lock", remedy)
    elif not damaged:
        size = megabytes(sum(output.size for output in here))
        which = "" if len(here) == len(recorded) else ", without some that git keeps"
        yield Finding("ok", f"{folder}: all {len(here)} outputs of dvc.lock{which}, {size}, match their MD5")


def _is_changed(output: Output, folder: Path) -> bool:
    """Return whether the file in the workspace differs from the object in the cache, which matches dvc.lock."""
    if not output.path.is_file() or output.path.samefile(object_path(folder, output.md5)):
        return False
    return output.path.stat().st_size != output.size or _md5(output.path) != output.md5


def _with_parts(recorded: list[Output], folder: Path) -> Iterator[Output]:
    """Yield the outputs and, for folders, the files that the object of the folder lists."""
    for output in recorded:
        yield output
        path = object_path(folder, output.md5)
        if output.md5.endswith(".dir") and path.exists():
            # A changed object is reported itself; its list is not followed.
            with contextlib.suppress(ValueError, KeyError, TypeError):
                for part in json.loads(path.read_bytes()):
                    yield Output(output.stage, output.path / part["relpath"], part["md5"], 0)


def _repair_command(output: Output, path: Path) -> str:
    """Return the command that replaces an object, with the file in the workspace if it has the right bytes."""
    if output.path.is_file() and _md5(output.path) == output.md5:
        return f"cp -f {shlex.quote(str(output.path))} {shlex.quote(str(path))}"
    # Without both, repro makes it again. The file in the workspace may be a link to the object.
    return f"rm -rf {shlex.quote(str(path))} {shlex.quote(str(output.path))} && dvc repro"


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
