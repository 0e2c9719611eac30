"""Check params.yaml and DVC's files before any stage runs: `python -m tools.check [params.yaml]`.

Each stage checks the sections that it reads when it starts, so a mistake in the last section would show up only
after hours of download and training. `make repro` calls this first. It also removes an rwlock that a killed `dvc`
left unreadable, because every later `dvc repro` would fail on it.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from stages.common import failure
from stages.common.failure import StageError
from stages.common.params import Section, load
from stages.datasets.registry import DatasetParams
from stages.evaluation.results import EvaluateParams
from stages.model.networks import load_network
from stages.model.pretrained import check_scaling, require_pin
from stages.model.runtime import RuntimeParams
from stages.preprocess import PreprocessParams
from stages.training.augmentation import check_color_jitter
from stages.training.params import TrainParams
from tools.rwlock import remove_unreadable_rwlock

CLASSES: dict[str, type[Section]] = {
    "dataset": DatasetParams,
    "preprocess": PreprocessParams,
    "train": TrainParams,
    "runtime": RuntimeParams,
    "evaluate": EvaluateParams,
}


def main(arguments: Sequence[str]) -> None:
    """Check all files; the first mistake is the error."""
    path = Path(arguments[0]) if arguments else Path("params.yaml")
    remove_unreadable_rwlock(Path())
    refuse_a_broken_lock(Path("dvc.lock"))
    check_params(path)
    if not load(path, "train", TrainParams).start_from:
        require_pin(load_network(path))  # not a mistake in a recipe, which leaves the pin to the user


def check_params(path: Path) -> None:
    """Load every section; raises `StageError` for the first mistake."""
    sections: dict[str, Any] = {section: load(path, section, model) for section, model in CLASSES.items()}
    check_scaling(load_network(path), sections["preprocess"].scaling)
    check_color_jitter(sections["train"], sections["preprocess"].scaling)
    _refuse_what_dvc_cannot_watch(path, Path(sections["dataset"].folder.path))


def _refuse_what_dvc_cannot_watch(params: Path, pictures: Path) -> None:
    """DVC reads the folder whatever the dataset is, and its own message names neither the key nor a remedy."""
    if pictures.is_file():  # an archive
        return
    if not pictures.is_dir():
        raise StageError(
            f"{params}: dataset.folder.path: {pictures}: not found; make the folder, even if it is empty"
        )
    for entry in pictures.rglob("*"):
        if entry.is_symlink() and entry.is_dir():
            raise StageError(f"{entry}: a link to a folder, in which DVC sees no change; move the folder here")
        if entry.is_symlink() and not entry.exists():
            raise StageError(
                f"{entry}: a link to a file that is not there, which DVC cannot read; remove the link"
            )


def refuse_a_broken_lock(path: Path) -> None:
    """Raise `StageError` when dvc.lock exists and is incomplete.

    DVC writes it in place, and its own message does not say what to do after a kill.
    """
    if not path.exists():
        return
    try:
        content = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError:
        content = None
    if not _is_whole(content):
        raise StageError(
            f"{path}: incomplete, as after a kill of dvc; run: git checkout {path}, or rm {path} if no commit "
            "has it (earlier outputs are found in the cache)"
        )


def _is_whole(content: Any) -> bool:
    """Return whether DVC accepts the content of a dvc.lock; an incomplete file can still be valid YAML."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    try:
        COMPILED_LOCKFILE_SCHEMA(content)
    except Invalid:
        return False
    return "stages" in content  # optional in DVC's schema, but always written


if __name__ == "__main__":
    sys.exit(failure.run("params", main))
