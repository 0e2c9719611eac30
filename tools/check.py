"""Check the whole params.yaml at once, before any stage runs: `python -m tools.check [params.yaml]`.

Each stage checks the sections that it reads when it starts. A slip in the last section would then show up
after hours of download and training; `make repro` calls this first.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from stages import failure
from stages.download import DatasetParams
from stages.engine import TrainParams
from stages.evaluate import EvaluateParams
from stages.failure import StageError
from stages.model import ModelParams
from stages.params import Section, load
from stages.preprocess import PreprocessParams
from stages.runtime import RuntimeParams

CLASSES: dict[str, type[Section]] = {
    "dataset": DatasetParams,
    "preprocess": PreprocessParams,
    "model": ModelParams,
    "train": TrainParams,
    "runtime": RuntimeParams,
    "evaluate": EvaluateParams,
}


def main(arguments: Sequence[str]) -> None:
    """Load every section; the first mistake is the error."""
    path = Path(arguments[0]) if arguments else Path("params.yaml")
    _refuse_a_broken_lock(Path("dvc.lock"))
    sections: dict[str, Any] = {section: load(path, section, model) for section, model in CLASSES.items()}
    _refuse_what_dvc_cannot_watch(path, Path(sections["dataset"].folder.path))


def _refuse_what_dvc_cannot_watch(params: Path, pictures: Path) -> None:
    """DVC reads the folder whatever the dataset, and its own message names neither the key nor a remedy."""
    if not pictures.exists():
        raise StageError(
            f"{params}: dataset.folder.path: {pictures}: no such folder; make it, even when it is empty"
        )
    for entry in pictures.rglob("*"):
        if entry.is_symlink() and not entry.exists():
            raise StageError(
                f"{entry}: a link to a file that is not there, which DVC cannot read; remove the link"
            )


def _refuse_a_broken_lock(path: Path) -> None:
    """DVC writes this file in place, and its own message does not say what to do when it was killed meanwhile."""
    if not path.exists():
        return
    try:
        content = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError:
        content = None
    if not isinstance(content, dict) or not {"schema", "stages"} <= content.keys():
        raise StageError(
            f"{path}: cut short, as when dvc is killed while it writes it; run: git checkout {path}, or rm {path} "
            "where no commit has it: what was made before is found in the cache"
        )


if __name__ == "__main__":
    sys.exit(failure.run("params", main))
