"""stages/datasets/digits.py: the embedded digits are scikit-learn's, and only the known file is read."""

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from stages.common.failure import StageError
from stages.datasets import digits


def install_another_scikit_learn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a package named sklearn in `folder` the installed one, and return where its digits belong."""
    (folder / "sklearn" / "datasets" / "data").mkdir(parents=True)
    (folder / "sklearn" / "__init__.py").touch()
    package = types.ModuleType("sklearn")
    package.__spec__ = importlib.util.spec_from_file_location("sklearn", folder / "sklearn" / "__init__.py")
    monkeypatch.setitem(sys.modules, "sklearn", package)
    return folder / "sklearn" / "datasets" / "data" / "digits.csv.gz"


def test_the_digits_are_scikit_learns_with_its_16_grey_levels_spread_over_a_byte() -> None:
    dataset, original = digits.load(), load_digits()
    images = np.concatenate([dataset.train.images, dataset.test.images])[..., 0]
    assert np.array_equal(images, np.rint(original.images / 16 * 255))
    assert np.array_equal(np.concatenate([dataset.train.labels, dataset.test.labels]), original.target)


def test_each_split_is_bytes_and_has_every_class() -> None:
    dataset = digits.load()
    assert (len(dataset.train.images), len(dataset.test.images)) == (1437, 360)
    for split in (dataset.train, dataset.test):
        assert split.images.dtype == split.labels.dtype == np.uint8
        assert split.images.shape == (len(split.labels), 8, 8, 1)
        assert set(split.labels) == set(range(len(dataset.classes)))
        assert split.official == len(split.images)


def test_another_file_than_the_known_one_is_refused_with_both_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = install_another_scikit_learn(tmp_path, monkeypatch)
    path.write_bytes(b"")
    with pytest.raises(StageError, match=f"expected {digits.SHA256[:8]}…, found e3b0c442….; reinstall the locked"):
        digits.load()


def test_without_scikit_learn_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)  # what Python itself keeps for what cannot be imported
    with pytest.raises(StageError, match=r"scikit-learn.* is not installed; run: make setup"):
        digits.load()
