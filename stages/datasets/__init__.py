"""What a dataset is, and the datasets, one module each: the README says how to add one."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Images:
    """One split of a dataset as its source has it.

    images: uint8 (N, H, W, C); labels: uint8 (N,), each below the number of classes; official: how many of
    the first images are byte for byte those that the dataset's authors published.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    official: int


@dataclass(frozen=True)
class Dataset:
    """A dataset, its class names in label order, and what it was read from: the SHA-256 and plain words."""

    name: str
    sha256: str
    edition: str
    classes: tuple[str, ...]
    train: Images
    test: Images
