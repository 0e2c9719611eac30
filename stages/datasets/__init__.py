"""The datasets, one module each. Only the download stage imports them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.common.pictures import Decoding


@dataclass(frozen=True)
class Images:
    """One split of a dataset.

    images: uint8 (N, H, W, C), in memory or a `splits.ChunkedArray`; labels: uint8 or uint16 (N,), each below the
    number of classes; official: how many of the first images are identical to those that the authors published;
    names: of picture files.
    """

    images: Any
    labels: NDArray[np.unsignedinteger[Any]]
    official: int
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Dataset:
    """A dataset with its class names in label order, and what it was read from: a description and its SHA-256."""

    name: str
    sha256: str
    edition: str
    classes: tuple[str, ...]
    train: Images
    test: Images
    validation: int = 0  # so many of the last training images are the validation split
    decoding: Decoding | None = None  # of picture files
    # Where runs of training images start and stop that validation must not separate, such as copies.
    together: Sequence[tuple[int, int]] = ()
