"""The datasets by name: `dataset` of params.yaml, and where archives are fetched from and cached."""

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import platformdirs

from stages.common.failure import StageError
from stages.common.params import Section
from stages.datasets import Dataset, cifar10, digits, folder


class DatasetParams(Section):
    """`dataset` of params.yaml: the name of the dataset, and the params of each dataset that has any."""

    name: Literal["cifar10", "digits", "folder"]
    cifar10: cifar10.Params
    folder: folder.Params


@contextmanager
def load_dataset(params: DatasetParams, scratch: Path) -> Iterator[Dataset]:
    """Yield the dataset named `params.name`, fetching it if necessary; temporary files go to `scratch`."""
    match params.name:
        case "cifar10":
            yield cifar10.load(params.cifar10, sources_from_environment(), cache_folder())
        case "digits":
            yield digits.load()
        case "folder":
            with folder.load(params.folder, scratch) as dataset:
                yield dataset


def sources_from_environment() -> list[str]:
    """Return the copies and mirrors in DATASET_SOURCES; raises `StageError` when a quote is not closed."""
    try:
        return shlex.split(os.environ.get("DATASET_SOURCES", ""))
    except ValueError as error:
        raise StageError(f"DATASET_SOURCES: {error}; quote a path with spaces as in a shell") from None


def cache_folder() -> Path:
    """Return the folder for fetched archives, outside the outputs, which DVC deletes before each run."""
    named = os.environ.get("DATASET_CACHE")
    return Path(named) if named else platformdirs.user_cache_path("reproducible-cifar10")
