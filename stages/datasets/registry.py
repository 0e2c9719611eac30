"""The datasets by name: `dataset` of params.yaml."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from stages.common.fetch import cache_folder, sources_from_environment
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
            yield cifar10.load(params.cifar10, sources_from_environment("DATASET_SOURCES"), cache_folder())
        case "digits":
            yield digits.load()
        case "folder":
            with folder.load(params.folder, scratch) as dataset:
                yield dataset
