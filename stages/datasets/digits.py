"""The 1,797 handwritten digits that come with scikit-learn: 8 x 8 pixels, grey, 10 classes. Needs no network.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998.
"""

import gzip
import hashlib
import importlib.util
from pathlib import Path

import numpy as np

from stages.common.failure import StageError
from stages.datasets import Dataset, Images

SHA256 = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"  # of digits.csv.gz
CLASSES = tuple("0123456789")
GREY_LEVELS = 16  # a pixel is 0 to 16
TRAIN_IMAGES = 1437  # the first four fifths; the others are the test split


def load() -> Dataset:
    """Return the digits, with their grey levels scaled to 0 to 255.

    Raises `StageError` when scikit-learn is not installed or its file does not match `SHA256`.
    """
    # Importing scikit-learn would take a second.
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise StageError("digits: scikit-learn, which contains them, is not installed; run: make setup")
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise StageError(
            f"{path}: checksum mismatch (expected {SHA256[:8]}…, found {found[:8]}…); "
            "reinstall the locked scikit-learn"
        )
    table = np.loadtxt(gzip.decompress(content).decode().splitlines(), delimiter=",", dtype=np.uint8)
    images = np.rint(table[:, :64] * (255 / GREY_LEVELS)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = table[:, 64]

    def split(rows: slice) -> Images:
        return Images(images[rows], labels[rows], official=len(images[rows]))

    return Dataset(
        name="digits",
        sha256=found,
        edition="the digits embedded in scikit-learn",
        classes=CLASSES,
        train=split(slice(TRAIN_IMAGES)),
        test=split(slice(TRAIN_IMAGES, None)),
    )
