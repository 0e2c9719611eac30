"""stages/model/networks.py: the tutorial's network, layer by layer, and what cannot be built."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from stages.common.failure import StageError
from stages.model.archive import save_model
from stages.model.initialization import whitening
from stages.model.networks import (
    Block,
    FastParams,
    TutorialParams,
    build_model,
    check_smaller,
    load_network,
    remarks,
)
from stages.training.fused_batch_norm import fuse_batch_norm

pytestmark = pytest.mark.usefixtures("started")

TUTORIAL = TutorialParams(
    network="tutorial",
    blocks=[
        Block(filters=32, layers=2, pool=2, dropout=0.25),
        Block(filters=64, layers=2, pool=2, dropout=0.25),
    ],
    kernel=3,
    padding="same",
    activation="relu",
    head="flatten",
    dense=[512],
    dropout=0.5,
)
SMALL = TUTORIAL.model_copy(
    update={"blocks": [Block(filters=4, layers=1, pool=2, dropout=0.25)], "dense": [8], "dropout": 0.5}
)


def layers(model: keras.Model) -> list[str]:
    """Each layer's kind, with what distinguishes it, in order."""
    facts = ("filters", "kernel_size", "padding", "pool_size", "rate", "units")
    found = []
    for layer in model.layers:
        values = [str(getattr(layer, fact)) for fact in facts if hasattr(layer, fact)]
        activation = getattr(layer, "activation", None)
        found.append(" ".join([type(layer).__name__, *values, *([activation.__name__] if activation else [])]))
    return found


def test_the_tutorials_network_has_its_layers_in_order() -> None:
    assert layers(build_model(TUTORIAL, (32, 32, 3), 10)) == [
        "Conv2D 32 (3, 3) same relu",
        "Conv2D 32 (3, 3) same relu",
        "MaxPooling2D valid (2, 2)",
        "Dropout 0.25",
        "Conv2D 64 (3, 3) same relu",
        "Conv2D 64 (3, 3) same relu",
        "MaxPooling2D valid (2, 2)",
        "Dropout 0.25",
        "Flatten",
        "Dense 512 relu",
        "Dropout 0.5",
        "Dense 10 softmax",
    ]


FAST = FastParams(
    network="fast", activation="relu", widths=[64, 128, 128], batch_norm_momentum=0.6, logit_scale=0.1111
)
IMAGES = np.random.default_rng(0).random((20, 32, 32, 3), np.float32)


def test_the_fast_network_has_its_layers_in_order() -> None:
    def pair(width: int) -> list[str]:
        norm = ["BatchNormalization", "Activation relu"]
        conv = f"Conv2D {width} (3, 3) same linear"
        return [conv, "MaxPooling2D valid (2, 2)", *norm, conv, *norm]

    assert layers(build_model(FAST, (32, 32, 3), 10, IMAGES)) == [
        "Conv2D 24 (2, 2) valid linear",
        "Activation relu",
        *pair(64),
        *pair(128),
        *pair(128),
        "GlobalMaxPooling2D",
        "Dense 10 linear",
        "Rescaling",
        "Softmax",
    ]


def test_the_fast_network_s_first_layer_whitens_and_is_not_trained() -> None:
    model = build_model(FAST, (32, 32, 3), 10, IMAGES)
    kernel, _ = whitening(IMAGES, 2)
    np.testing.assert_array_equal(model.get_layer("whitening").get_weights()[0], kernel)
    assert not any("whitening" in variable.path for variable in model.trainable_variables)


def test_a_saved_fast_network_loads_where_this_project_is_not(tmp_path: Path) -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build_model(FAST, (32, 32, 3), 10, IMAGES)
    finally:
        keras.config.set_dtype_policy("float32")
    fuse_batch_norm(model)
    save_model(model, tmp_path / "model.keras")
    np.save(tmp_path / "images.npy", IMAGES)
    code = """
import keras, numpy, sys
assert not any(name.startswith("stages") for name in sys.modules)
numpy.save("found.npy", keras.saving.load_model("model.keras")(numpy.load("images.npy"), training=False))
"""
    subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, check=True, capture_output=True, timeout=120)
    wanted = model(IMAGES, training=False).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), wanted, atol=2e-3)  # bfloat16 on other threads
    assert np.load(tmp_path / "found.npy").shape == (20, 10)


def test_images_too_small_for_the_fast_network_are_refused_by_key() -> None:
    with pytest.raises(StageError, match=r"^model\.widths\[2\]: images of 8 x 8 pixels are too small .*; use f"):
        build_model(FAST, (8, 8, 1), 10)


def test_scaled_images_too_small_for_the_fast_network_are_refused_by_both_keys() -> None:
    check_smaller(FAST, (32, 32, 3), (9, 12, 3))
    with pytest.raises(
        StageError,
        match=r"^model\.widths\[2\]: images of 8 x 12 pixels are too small .*fewer widths, or larger train\.s",
    ):
        check_smaller(FAST, (32, 32, 3), (8, 12, 3))


def test_scaled_images_are_refused_for_the_tutorial_s_network() -> None:
    check_smaller(TUTORIAL, (32, 32, 3), (32, 32, 3))
    with pytest.raises(
        StageError, match=r"^train\.scales: the network tutorial accepts only one .*; use scales: \[1\]$"
    ):
        check_smaller(TUTORIAL, (32, 32, 3), (16, 16, 3))


def test_a_network_that_is_none_names_those_there_are(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("model: {network: fsat}", encoding="utf-8")
    with pytest.raises(
        StageError,
        match=r":1: model\.network: .*'tutorial', 'fast' or 'pretrained', found 'fsat'; did you mean 'f",
    ):
        load_network(path)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{network: fast, blocks: []}", r"model\.blocks: unknown key.*: python -m tools\.recipe fast$"),
        ("{network: tutorial, widths: [8]}", r"model\.widths: unknown key.*: python -m tools\.recipe tutorial$"),
        ("{network: Fast, activation: relu, widths: [8], batch_norm_momentum: 0.6, logit_scale: 0.1}",
         r"model\.network: .*, found 'Fast'; did you mean 'fast'\?$"),
        ("{network: fast, activation: relu, widths: [100000], batch_norm_momentum: 0.6, logit_scale: 0.1}",
         r"model\.widths.*less than or equal to 65536"),
    ],
)  # fmt: skip
def test_keys_of_another_network_are_distinguished_from_typos(tmp_path: Path, section: str, message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(f"model: {section}", encoding="utf-8")
    with pytest.raises(StageError, match=message):
        load_network(path)


def test_the_tutorials_network_has_2_168_362_parameters() -> None:
    assert build_model(TUTORIAL, (32, 32, 3), 10).count_params() == 2_168_362


def test_what_is_off_is_no_layer() -> None:
    off = {"blocks": [Block(filters=4, layers=1, pool=1, dropout=0)], "dense": [], "dropout": 0}
    model = build_model(TUTORIAL.model_copy(update=off), (8, 8, 1), 3)
    assert layers(model) == ["Conv2D 4 (3, 3) same relu", "Flatten", "Dense 3 softmax"]


def test_each_image_gets_probabilities_of_all_classes() -> None:
    images = np.random.default_rng(0).random((5, 8, 6, 2), np.float32)
    probabilities = build_model(SMALL, (8, 6, 2), 3)(images).numpy()
    assert (probabilities.shape, probabilities.dtype) == ((5, 3), np.float32)
    assert (probabilities > 0).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)


def test_probabilities_are_float32_under_bfloat16_too() -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build_model(SMALL, (8, 8, 1), 3)
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.get_layer("dense1").compute_dtype == "bfloat16"
    assert model.get_layer("probabilities").compute_dtype == "float32"


def test_the_same_seed_gives_the_same_weights() -> None:
    def weights() -> list[Any]:
        keras.utils.set_random_seed(3)
        return [variable.numpy() for variable in build_model(SMALL, (8, 8, 1), 3).variables]

    for first, second in zip(weights(), weights(), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("changes", "shape", "block"),
    [
        ({"blocks": [*TUTORIAL.blocks, *TUTORIAL.blocks]}, (8, 8, 1), 3),
        ({"blocks": [Block(filters=4, layers=1, pool=9, dropout=0)]}, (8, 8, 1), 0),
        ({"blocks": [Block(filters=4, layers=1, pool=4, dropout=0)]}, (8, 3, 1), 0),
        ({"padding": "valid", "kernel": 5}, (12, 12, 1), 1),
        ({"padding": "valid", "kernel": 9}, (16, 16, 1), 0),
    ],
)
def test_a_block_that_leaves_nothing_of_the_image_is_named(
    changes: dict[str, Any], shape: tuple[int, int, int], block: int
) -> None:
    message = rf"^model\.blocks\[{block}\]: images of {shape[0]} x {shape[1]} pixels are too small .*; use"
    with pytest.raises(StageError, match=message):
        build_model(TUTORIAL.model_copy(update=changes), shape, 10)


@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({}, (4, 4, 1)),
        ({"padding": "valid"}, (16, 16, 1)),
        ({"padding": "valid", "kernel": 4, "blocks": SMALL.blocks}, (5, 5, 1)),
    ],
)
def test_blocks_that_just_fit_are_built(changes: dict[str, Any], shape: tuple[int, int, int]) -> None:
    model = build_model(TUTORIAL.model_copy(update=changes), shape, 10)
    assert model.get_layer("flatten").input.shape[1:3] == (1, 1)


def test_a_dense_layer_without_units_is_refused_by_key(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(
        "model: {network: tutorial, blocks: [], kernel: 3, padding: same, activation: relu, "
        "head: flatten, dense: [512, 0], dropout: 0.5}"
    )
    with pytest.raises(
        StageError, match=r"params\.yaml:1: model\.dense\[1\]: .*greater than or equal to 1, found 0"
    ):
        load_network(path)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{network: pretrained, widths: [8]}", r"model\.widths: unknown key.*tools\.recipe pretrained$"),
        ("{network: pretrian, backbone: EfficientNetV2B0, weights: none, sha256: '', dropout: 0, "
         "fine_tune_epochs: 0, fine_tune_rate: 1e-5}", r"model\.network: .*did you mean 'pretrained'\?$"),
        ("{network: pretrained, backbone: MobilenetV3Small, weights: none, sha256: '', dropout: 0, "
         "fine_tune_epochs: 0, fine_tune_rate: 1e-5}", r"model\.backbone: .*did you mean 'MobileNetV3Small'\?$"),
        ("{network: pretrained, backbone: EfficientNetV2B0, weights: none, sha256: abc, dropout: 0, "
         "fine_tune_epochs: 0, fine_tune_rate: 1e-5}", r"model\.sha256: it should be a SHA-256, 64 digits"),
    ],
)  # fmt: skip
def test_mistakes_in_the_keys_of_the_pretrained_network_are_named(
    tmp_path: Path, section: str, message: str
) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(f"model: {section}", encoding="utf-8")
    with pytest.raises(StageError, match=message):
        load_network(path)


def test_with_the_head_average_the_size_of_the_network_does_not_depend_on_that_of_the_images() -> None:
    params = SMALL.model_copy(update={"head": "average"})
    small, large = (build_model(params, (side, side, 3), 5).count_params() for side in (8, 64))
    assert small == large < build_model(SMALL, (64, 64, 3), 5).count_params()


def test_a_huge_dense_layer_is_reported_with_the_key_to_change() -> None:
    large = SMALL.model_copy(update={"dense": [2500]})  # 48 * 48 * 4 * 2500 weights
    (line,) = remarks(large, build_model(large, (96, 96, 3), 5))
    assert line.startswith("layer dense1 has 23 million of the network's 23 million weights")
    assert line.endswith("model.head: average needs few")
    averaged = large.model_copy(update={"head": "average"})
    assert not remarks(averaged, build_model(averaged, (96, 96, 3), 5))
    assert not remarks(SMALL, build_model(SMALL, (8, 8, 3), 5))
