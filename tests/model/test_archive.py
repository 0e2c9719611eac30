"""stages/model/archive.py: a model's bytes depend on the model alone, and Keras reads them."""

import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

from stages.model.archive import save_model
from tests.project import ROOT

pytestmark = pytest.mark.usefixtures("started")


SAVE = """
import sys
from pathlib import Path
from stages.model import runtime

params = {"cpu_isa": "native", "precision": "float32", "emulate": False, "strategy": "single", "devices": 1}
runtime.start(runtime.RuntimeParams(threads=2, **params), 0)
from stages.model.archive import save_model
from tests.model.test_archive import build

save_model(build(), Path(sys.argv[1]))
"""


def build() -> keras.Model:
    """Return a small model, the same weights each time, with an object that two layers share."""
    keras.utils.set_random_seed(0)
    shared = keras.initializers.GlorotUniform()
    model = keras.Sequential(name="classifier")
    model.add(keras.Input((8, 8, 1), name="images"))
    model.add(keras.layers.Conv2D(4, 3, activation="relu", kernel_initializer=shared, name="conv"))
    model.add(keras.layers.Dropout(0.5, name="dropout"))
    model.add(keras.layers.Flatten(name="flatten"))
    model.add(keras.layers.Dense(3, activation="softmax", kernel_initializer=shared, name="probabilities"))
    return model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_model(build(), tmp_path / "model.keras")
    return tmp_path / "model.keras"


def shared_objects(path: Path) -> list[int]:
    """What names the objects that layers share (an initializer, the dtype policy), as often as it occurs."""
    with zipfile.ZipFile(path) as archive:
        config = archive.read("config.json").decode()
    return [int(number) for number in re.findall(r'"shared_object_id": (\d+)', config)]


def test_the_same_model_saved_by_another_process_has_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.keras"
    subprocess.run([sys.executable, "-c", SAVE, str(other)], cwd=ROOT, check=True)
    assert other.read_bytes() == saved.read_bytes()


def test_the_same_model_built_again_has_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    keep = [build() for _ in range(3)]  # so that the next one's objects lie elsewhere
    save_model(keep[-1], tmp_path / "again.keras")
    assert (tmp_path / "again.keras").read_bytes() == saved.read_bytes()


def test_other_weights_give_other_bytes(saved: Path, tmp_path: Path) -> None:
    model = build()
    model.layers[0].bias.assign([0, 0, 0, 1e-7])
    save_model(model, tmp_path / "other.keras")
    assert (tmp_path / "other.keras").read_bytes() != saved.read_bytes()


def test_keras_loads_it_and_it_predicts_the_same(saved: Path) -> None:
    images = np.random.default_rng(0).random((20, 8, 8, 1), np.float32)
    loaded = keras.saving.load_model(saved, compile=False, safe_mode=True)
    np.testing.assert_array_equal(loaded(images).numpy(), build()(images).numpy())


def test_shared_objects_keep_apart_as_their_addresses_do(saved: Path, tmp_path: Path) -> None:
    build().save(tmp_path / "keras.keras")
    addresses, numbers = shared_objects(tmp_path / "keras.keras"), shared_objects(saved)
    assert len(addresses) == len(numbers)
    assert len(set(zip(addresses, numbers, strict=True))) == len(set(addresses)) == len(set(numbers)) == 2


def test_no_memory_address_is_left(saved: Path) -> None:
    assert set(shared_objects(saved)) == {1, 2}


def test_the_optimizer_is_left_out_and_stays_with_the_model(saved: Path, tmp_path: Path) -> None:
    model, optimizer = build(), keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    model.optimizer = optimizer
    save_model(model, tmp_path / "trained.keras")
    assert (tmp_path / "trained.keras").read_bytes() == saved.read_bytes()
    assert model.optimizer is optimizer


def test_no_entry_has_a_date_or_a_compression(saved: Path) -> None:
    with zipfile.ZipFile(saved) as archive:
        assert archive.namelist() == ["config.json", "metadata.json", "model.weights.h5"]
        for entry in archive.infolist():
            assert entry.date_time == (1980, 1, 1, 0, 0, 0)
            assert entry.compress_type == zipfile.ZIP_STORED
        assert json.loads(archive.read("metadata.json"))["date_saved"] == "1980-01-01@00:00:00"


def test_a_full_disk_leaves_the_old_model_and_nothing_else(small_disk: Path) -> None:
    path = small_disk / "model.keras"
    path.write_text("old")
    large = keras.Sequential([keras.Input((100,)), keras.layers.Dense(1000)])
    with pytest.raises(OSError, match=r"No space left on device: .*/model\.keras'"):
        save_model(large, path)
    assert [file.name for file in small_disk.iterdir()] == ["model.keras"]
    assert path.read_text() == "old"


def test_a_full_folder_for_temporary_files_is_no_obstacle(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    large = keras.Sequential([keras.Input((100,)), keras.layers.Dense(1000)])
    save_model(large, tmp_path / "models" / "model.keras")
    assert [file.name for file in (tmp_path / "models").iterdir()] == ["model.keras"]
