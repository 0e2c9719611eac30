"""stages/model/pretrained.py: a backbone of keras.applications gets the pixels and weights that it expects."""

import hashlib
import inspect
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from stages.common.failure import StageError
from stages.model.archive import save_model
from stages.model.inference import Predictor
from stages.model.networks import build_model, check_smaller
from stages.model.pretrained import (
    BACKBONES,
    PUBLISHED,
    PretrainedParams,
    backbone_of,
    check_scaling,
    fetch_weights,
    unfreeze,
)
from tests.model.weights import weights_file
from tests.servers import Answer, Server
from tools.export.network import float32_twin

pytestmark = pytest.mark.usefixtures("started")

SMALL = PretrainedParams(
    network="pretrained",
    backbone="MobileNetV3Small",
    weights="none",
    sha256="",
    dropout=0.2,
    fine_tune_epochs=0,
    fine_tune_rate=1e-5,
)
PICTURES = np.random.default_rng(0).integers(0, 256, (4, 40, 48, 3), dtype=np.uint8)
UNIT = np.divide(PICTURES, np.float32(255), dtype=np.float32)  # as the stage preprocess scales


def with_(**changes: Any) -> PretrainedParams:
    return SMALL.model_copy(update=changes)


def module_of(backbone: str) -> Any:
    """The module of keras.applications that defines a backbone, with its own `preprocess_input`."""
    return sys.modules[getattr(keras.applications, backbone).__module__]


@pytest.fixture(scope="module")
def file(started: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of `weights_file`."""
    return weights_file(tmp_path_factory.mktemp("weights") / "small_no_top.h5")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "name",
    [
        "MobileNetV3Small",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("EfficientNetV2B0", "ResNet50V2")),
    ],
)
def test_the_backbone_sees_what_keras_s_own_preprocessing_gives_it(name: str) -> None:
    model = build_model(with_(backbone=name), (40, 48, 3), 5)
    features = keras.Model(model.input, model.get_layer("features").output)
    seen = module_of(name).preprocess_input(PICTURES.astype(np.float32))
    expected = backbone_of(model)(seen, training=False).numpy().mean(axis=(1, 2), keepdims=True)
    found = features(UNIT, training=False).numpy()
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    twice = backbone_of(model)(UNIT, training=False).numpy().mean(axis=(1, 2), keepdims=True)
    assert np.abs(twice - expected).max() > 0.1 * np.abs(expected).max()


@pytest.mark.parametrize("name", BACKBONES)
def test_file_and_scaling_of_a_backbone_are_those_of_the_installed_keras(name: str) -> None:
    module, backbone = module_of(name), BACKBONES[name]
    pixels = np.array([[[[0.0, 100.0, 255.0]]]], np.float32)
    own = module.preprocess_input(pixels.copy())
    np.testing.assert_allclose(own, pixels if backbone.scales else pixels / 127.5 - 1, rtol=1e-6)
    base = inspect.getsource(sys.modules["keras.src.applications.resnet"] if "ResNet" in name else module)
    assert PUBLISHED + backbone.file.rpartition("/")[0] in base
    assert backbone.md5 in base


def test_pixels_over_255_times_255_are_the_pixels_again() -> None:
    model = build_model(SMALL, (32, 32, 3), 2)
    pixels = np.arange(256, dtype=np.float32)
    np.testing.assert_array_equal(model.get_layer("pixels")(pixels / np.float32(255)).numpy(), pixels)


@pytest.mark.slow
def test_a_grey_picture_is_seen_as_that_picture_in_rgb() -> None:
    grey, rgb = (build_model(SMALL, (40, 48, channels), 5) for channels in (1, 3))
    rgb.set_weights(grey.get_weights())
    image = UNIT[..., :1]
    np.testing.assert_array_equal(Predictor(grey)(image), Predictor(rgb)(np.repeat(image, 3, axis=-1)))


def test_weights_in_keras_s_format_reach_the_backbone(file: Path) -> None:
    model = build_model(SMALL, (40, 48, 3), 5, weights=file)
    expected = keras.applications.MobileNetV3Small(include_top=False, weights=str(file), input_shape=(40, 48, 3))
    for found, wanted in zip(backbone_of(model).get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_weights_of_another_backbone_are_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"^model\.weights: .*small_no_top\.h5 does not fit MobileNetV3Large "):
        build_model(with_(backbone="MobileNetV3Large"), (40, 48, 3), 5, weights=file)
    damaged = tmp_path / "damaged.h5"
    damaged.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(StageError, match=r"damaged\.h5 does not fit MobileNetV3Small .*truncated"):
        build_model(SMALL, (40, 48, 3), 5, weights=damaged)
    with pytest.raises(StageError, match=r"weights\.pth: expected a file of Keras weights, named \*\.h5"):
        build_model(SMALL, (40, 48, 3), 5, weights=tmp_path / "weights.pth")


def test_only_the_last_layer_is_trained_and_later_all_but_batch_normalization() -> None:
    model = build_model(SMALL, (40, 48, 3), 5)
    assert [variable.path for variable in model.trainable_variables] == [
        "probabilities/kernel",
        "probabilities/bias",
    ]
    unfreeze(model)
    norms = [each for each in backbone_of(model).layers if isinstance(each, keras.layers.BatchNormalization)]
    assert len(model.trainable_variables) > 50
    assert len(norms) > 10
    assert not any(norm.trainable_variables for norm in norms)


@pytest.mark.parametrize("fine_tuned", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_backbone_stays_in_inference_mode_saved_and_called_for_training_too(
    tmp_path: Path, fine_tuned: bool
) -> None:
    model = build_model(
        with_(backbone="EfficientNetV2B0", dropout=0), (40, 48, 3), 5
    )  # with dropout in its blocks
    if fine_tuned:
        unfreeze(model)
    before = [weight.copy() for weight in model.get_weights()]
    expected = model(UNIT, training=False).numpy()
    np.testing.assert_array_equal(model(UNIT, training=True).numpy(), expected)
    save_model(model, tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False, safe_mode=True)
    np.testing.assert_array_equal(loaded(UNIT, training=True).numpy(), expected)
    for found, wanted in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.slow
def test_the_twin_for_exports_computes_in_float32_everywhere() -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build_model(SMALL, (40, 48, 3), 5)
    finally:
        keras.config.set_dtype_policy("float32")
    twin = float32_twin(model)
    assert {layer.compute_dtype for layer in backbone_of(model).layers} == {"bfloat16"}
    assert {layer.compute_dtype for layer in [*twin.layers, *backbone_of(twin).layers]} == {"float32"}
    np.testing.assert_allclose(Predictor(twin)(UNIT), Predictor(model)(UNIT), atol=0.02)


def test_an_image_s_probabilities_do_not_depend_on_its_batch() -> None:
    predict = Predictor(build_model(SMALL, (40, 48, 3), 5))
    whole = predict(UNIT)
    np.testing.assert_array_equal(np.concatenate([predict(UNIT[:1]), predict(UNIT[1:])]), whole)


def test_images_too_small_for_the_backbone_are_refused() -> None:
    with pytest.raises(StageError, match=r"^model\.backbone: images of 8 x 8 pixels do not fit MobileNetV3Small"):
        build_model(SMALL, (8, 8, 1), 10)
    with pytest.raises(StageError, match=r"^train\.scales: the network pretrained accepts only one image size"):
        check_smaller(SMALL, (40, 48, 3), (20, 24, 3))


def test_standardized_pixels_are_refused() -> None:
    check_scaling(SMALL, "unit")
    with pytest.raises(StageError, match=r"^preprocess\.scaling: standardize does not go .* use: unit$"):
        check_scaling(SMALL, "standardize")


@pytest.fixture
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATASET_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("WEIGHTS_SOURCES", raising=False)


@pytest.mark.usefixtures("_empty_cache")
def test_weights_are_fetched_once_and_only_those_that_are_pinned(file: Path) -> None:
    with Server(Answer(file.read_bytes()), Answer(b"other")) as server:
        url = f"{server.url.rpartition('/')[0]}/small_no_top.h5"
        pinned = with_(weights=url, sha256=sha256(file))
        fetched = fetch_weights(pinned)
        assert fetched is not None
        assert fetched.read_bytes() == file.read_bytes()
        assert fetched.suffix == ".h5"
        assert fetch_weights(pinned) == fetched
        assert len(server.requests) == 1
        with pytest.raises(
            StageError, match=r"no source has the file .*set WEIGHTS_SOURCES to a copy .*expected 0"
        ):
            fetch_weights(with_(weights=url, sha256="0" * 64))


@pytest.mark.usefixtures("_empty_cache")
def test_weights_come_from_a_file_or_from_a_copy_when_offline(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fetch_weights(with_(weights=str(file), sha256=sha256(file))) == file
    monkeypatch.setenv("WEIGHTS_SOURCES", str(file))
    assert fetch_weights(with_(weights="imagenet", sha256=sha256(file))) == file


def test_weights_without_a_pin_are_refused_with_the_file_that_keras_publishes() -> None:
    with pytest.raises(
        StageError, match=r"^model\.sha256: not set\. Download https://\S+mobilenet_v3/\S+\.h5, check"
    ):
        fetch_weights(with_(weights="imagenet"))
    assert fetch_weights(SMALL) is None
