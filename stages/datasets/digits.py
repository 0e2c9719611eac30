"""The 1,797 handwritten digits that scikit-learn ships: 8 x 8 pixels, grey, 10 classes; needs no network.

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
TRAIN_IMAGES = 1437  # the first four fifths; the rest is the test split


def load() -> Dataset:
    """Return the digits, their grey levels spread over uint8's 0 to 255.

    Raises `StageError` when scikit-learn is missing or its file is not the one that `SHA256` names.
    """
    # Importing scikit-learn takes a second and is not needed to find the file.
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise StageError("digits: scikit-learn, which ships them, is not installed; run: make .venv")
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise StageError(f"{path}: sha256 {SHA256} expected, {found} found; install the locked scikit-learn again")
    table = np.loadtxt(gzip.decompress(content).decode().splitlines(), delimiter=",", dtype=np.uint8)
    images = np.rint(table[:, :64] * (255 / GREY_LEVELS)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = table[:, 64]

    def split(part: slice) -> Images:
        return Images(images[part], labels[part], official=len(images[part]))

    return Dataset(
        name="digits",
        sha256=found,
        edition="the digits embedded in scikit-learn",
        classes=CLASSES,
        train=split(slice(TRAIN_IMAGES)),
        test=split(slice(TRAIN_IMAGES, None)),
    )
