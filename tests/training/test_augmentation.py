"""stages/training/augmentation.py: which changes of an image there are, and that (seed, step) alone draws them."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from stages.common.failure import StageError
from stages.model.networks import FastParams
from stages.training.augmentation import (
    AugmentationParams,
    augment,
    augments,
    check_color_jitter,
    check_image_size,
    mixed,
    mixing_weights,
    scale_of,
    scaled_size,
)

pytestmark = pytest.mark.usefixtures("started")

OFF = AugmentationParams(
    flip=False, shift=0, resized_crop=0, rotation=0, color_jitter=0, cutout=0, mixup=0, scales=[1]
)
FLIP = OFF.model_copy(update={"flip": True})
SHIFT = OFF.model_copy(update={"shift": 2})
BOTH = OFF.model_copy(update={"flip": True, "shift": 2})
NEW: dict[str, Any] = {"resized_crop": 0.3, "rotation": 30, "color_jitter": 0.4, "cutout": 3}

NETWORK = FastParams(network="fast", activation="relu", widths=[8], batch_norm_momentum=0.6, logit_scale=0.1)
IMAGES = np.random.default_rng(0).random((200, 6, 7, 3), np.float32)


def augmented(
    params: AugmentationParams,
    seed: int = 0,
    step: int = 0,
    places: Sequence[int] = range(len(IMAGES)),
    size: tuple[int, int] = (6, 7),
) -> NDArray[np.float32]:
    images = tf.constant(IMAGES[list(places)])
    changed: NDArray[np.float32] = augment(
        params, images, seed, tf.constant(step), tf.constant(places), len(IMAGES), size
    ).numpy()
    return changed


def offsets(params: AugmentationParams, seed: int = 0, step: int = 0) -> list[tuple[int, ...]]:
    """Return the row and column of the window of the reflected image that each augmented image is."""
    most = params.shift
    reflected = np.pad(IMAGES, [(0, 0), (most, most), (most, most), (0, 0)], mode="reflect")
    rows, columns = IMAGES.shape[1:3]
    places = list(itertools.product(range(2 * most + 1), repeat=2))
    windows = [reflected[:, row : row + rows, column : column + columns] for row, column in places]
    found = []
    for index, image in enumerate(augmented(params, seed, step)):
        hits = [place for place, window in zip(places, windows, strict=True) if (window[index] == image).all()]
        assert len(hits) == 1, f"image {index} is {len(hits)} windows of the reflected one"
        found.append(hits[0])
    return found


def test_off_changes_nothing() -> None:
    np.testing.assert_array_equal(augmented(OFF), IMAGES)
    assert not augments(OFF)


@pytest.mark.parametrize(
    "change",
    [
        {"flip": True},
        {"flip": "alternate"},
        {"shift": 1},
        {"scales": [0.5, 1]},
        {"mixup": 0.2},
        *({key: NEW[key]} for key in NEW),
    ],
)
def test_each_key_that_is_on_counts_as_augmentation(change: dict[str, Any]) -> None:
    assert augments(OFF.model_copy(update=change))


def test_a_flipped_image_is_its_exact_mirror_image_and_half_of_them_are() -> None:
    changed, mirrored = augmented(FLIP), IMAGES[:, :, ::-1]
    flipped = (changed == mirrored).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(changed[~flipped], IMAGES[~flipped])
    assert 80 < flipped.sum() < 120


def test_a_shifted_image_is_a_window_of_the_reflected_one_and_every_window_occurs() -> None:
    assert set(offsets(SHIFT)) == set(itertools.product(range(5), repeat=2))


@pytest.mark.parametrize("params", [FLIP, SHIFT, BOTH])
def test_the_same_seed_and_step_give_the_same_pixels(params: AugmentationParams) -> None:
    np.testing.assert_array_equal(augmented(params, seed=3, step=5), augmented(params, seed=3, step=5))


@pytest.mark.parametrize("params", [FLIP, SHIFT])
@pytest.mark.parametrize("other", [{"seed": 3, "step": 6}, {"seed": 4, "step": 5}])
def test_another_seed_or_step_gives_other_pixels(params: AugmentationParams, other: dict[str, int]) -> None:
    changed = augmented(params, other["seed"], other["step"])
    assert (augmented(params, seed=3, step=5) != changed).any(axis=(1, 2, 3)).mean() > 0.3


@pytest.mark.parametrize("seed", [0, 2**30 - 1])
@pytest.mark.parametrize("step", [0, 2**31 - 1])
def test_every_seed_and_step_that_params_admit_will_do(seed: int, step: int) -> None:
    assert augmented(BOTH, seed, step).shape == IMAGES.shape


def test_a_compiled_batch_of_unknown_size_is_changed_like_any_other() -> None:
    compiled = tf.function(
        lambda images, step: augment(BOTH, images, 3, step, tf.range(len(IMAGES)), len(IMAGES), (6, 7)),
        input_signature=[tf.TensorSpec((None, *IMAGES.shape[1:]), tf.float32), tf.TensorSpec((), tf.int32)],
    )
    np.testing.assert_array_equal(compiled(IMAGES, np.int32(5)).numpy(), augmented(BOTH, seed=3, step=5))


def test_a_share_of_a_batch_is_changed_as_the_whole_batch_is() -> None:
    np.testing.assert_array_equal(augmented(BOTH, places=range(50, 130)), augmented(BOTH)[50:130])


def test_a_shift_as_long_as_the_image_is_refused_by_key() -> None:
    with pytest.raises(StageError, match=r"^train\.shift: 6 is too far .* 6 x 7 pixels; use at most 5$"):
        check_image_size(OFF.model_copy(update={"shift": 6}), NETWORK, (6, 7, 3))


def test_the_longest_shift_works() -> None:
    longest = OFF.model_copy(update={"shift": 5})
    check_image_size(longest, NETWORK, (6, 7, 3))
    assert augmented(longest).shape == IMAGES.shape


def test_a_smaller_image_is_the_means_of_what_its_pixels_cover() -> None:
    # Half the size: each pixel is the mean of 4 x 4 with the weights 1, 3, 3, 1 of a triangle, at the border of 3.
    along = np.zeros((3, 6), np.float32)
    for row, weights in zip(along, [(0, [3, 3, 1]), (1, [1, 3, 3, 1]), (3, [1, 3, 3])], strict=True):
        first, values = weights
        row[first : first + len(values)] = np.array(values) / sum(values)
    expected = np.einsum("ij,njwc->niwc", along, IMAGES)
    np.testing.assert_allclose(augmented(OFF, size=(3, 7)), expected, atol=1e-6)


def test_what_is_drawn_does_not_depend_on_the_size() -> None:
    whole = tf.image.resize(augmented(BOTH, 3, 5), (4, 5), antialias=True).numpy()
    np.testing.assert_array_equal(augmented(BOTH, 3, 5, size=(4, 5)), whole)


@pytest.mark.parametrize(
    ("scales", "epochs", "expected"),
    [
        ([1], 3, [1, 1, 1]),
        ([0.5, 1], 4, [0.5, 0.5, 1, 1]),
        ([0.5, 1], 5, [0.5, 0.5, 1, 1, 1]),
        ([0.5, 0.75, 1], 6, [0.5, 0.5, 0.75, 0.75, 1, 1]),
        ([0.5, 0.75, 1], 1, [1]),
        ([0.5, 0.75, 1], 2, [0.75, 1]),
    ],
)
def test_each_scale_has_its_part_of_the_run_and_the_last_epoch_the_last(
    scales: list[float], epochs: int, expected: list[float]
) -> None:
    params = OFF.model_copy(update={"scales": scales})
    assert [scale_of(params, epoch, epochs) for epoch in range(epochs)] == expected


def test_a_scaled_size_is_whole_pixels_and_at_least_one() -> None:
    assert scaled_size(0.625, 32, 48) == (20, 30)
    assert scaled_size(0.01, 32, 32) == (1, 1)
    assert scaled_size(1, 7, 9) == (7, 9)


@pytest.mark.parametrize("key", [*NEW, "all"])
def test_a_step_changes_every_image_in_the_same_way_whichever_replica_has_it(key: str) -> None:
    params = OFF.model_copy(update=NEW if key == "all" else {key: NEW[key]})
    whole = augmented(params, step=5)
    places = [7, 0, 150, 7]
    np.testing.assert_array_equal(augmented(params, step=5, places=places), whole[places])
    assert np.isfinite(whole).all() and whole.min() >= 0 and whole.max() <= 1
    changed = (whole != IMAGES).any(axis=(1, 2, 3)).mean()
    assert changed > 0.95
    assert (augmented(params, step=6) != whole).any()
    assert (augmented(params, seed=1, step=5) != whole).any()


def gradient(height: int, width: int) -> NDArray[np.float32]:
    """An image whose channels are the row and the column of each pixel."""
    return np.moveaxis(np.indices((height, width)), 0, 2).astype(np.float32)


def test_a_resized_crop_is_a_window_of_the_allowed_area_and_aspect() -> None:
    image = np.repeat(gradient(20, 30)[None], 200, axis=0)
    params = OFF.model_copy(update={"resized_crop": 0.25})
    step, places = tf.constant(0), tf.range(200)
    crops = augment(params, tf.constant(image), 0, step, places, 200, (20, 30)).numpy()
    # Steps between two neighboring output pixels inside: the size of the window as a fraction of the image's.
    high = crops[:, 10, 15, 0] - crops[:, 9, 15, 0]
    wide = crops[:, 10, 15, 1] - crops[:, 10, 14, 1]
    assert (high * wide >= 0.25 * 0.86).all()  # less where a side was limited to the image's
    assert (high <= 1.0001).all() and (wide <= 1.0001).all()
    free = (high < 0.999) & (wide < 0.999)
    assert (high * wide)[free].min() >= 0.2499 and (high * wide).max() > 0.85
    assert ((wide / high)[free] >= 0.7499).all() and ((wide / high)[free] <= 1.3334).all()
    np.testing.assert_allclose(crops[:, 10, 15, 1] - crops[:, 9, 15, 1], 0, atol=1e-4)


def test_a_rotation_turns_around_the_center_by_at_most_the_angle() -> None:
    image = np.repeat(gradient(21, 21)[None] - 10, 100, axis=0)  # relative to the center
    params = OFF.model_copy(update={"rotation": 40})
    turned = augment(params, tf.constant(image), 0, tf.constant(0), tf.range(100), 100, (21, 21)).numpy()
    np.testing.assert_allclose(turned[:, 10, 10], 0, atol=1e-4)
    row, column = turned[:, 10, 14, 0], turned[:, 10, 14, 1]
    np.testing.assert_allclose(np.hypot(row, column), 4, atol=1e-3)
    angles = np.degrees(np.arctan2(row, column))
    assert np.abs(angles).max() <= 40 and angles.min() < -30 and angles.max() > 30


def test_color_jitter_leaves_grey_images_grey_and_changes_their_mean_within_bounds() -> None:
    grey = np.full((100, 4, 4, 3), 0.5, np.float32)
    params = OFF.model_copy(update={"color_jitter": 0.4})
    jittered = augment(params, tf.constant(grey), 0, tf.constant(0), tf.range(100), 100, (4, 4)).numpy()
    assert np.ptp(jittered, axis=(1, 2, 3)).max() < 1e-6
    assert 0.2999 <= jittered.min() < 0.35 and 0.65 < jittered.max() <= 0.7001


def test_cutout_covers_a_square_with_the_mean_color_and_nothing_else() -> None:
    covered = augmented(OFF.model_copy(update={"cutout": 3}))
    means = IMAGES.mean(axis=(1, 2))
    for before, after, mean in zip(IMAGES, covered, means, strict=True):
        inside = (before != after).any(axis=-1)
        rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        assert inside.sum() == len(rows) * len(columns) > 0
        assert 2 <= len(rows) <= 3 and 2 <= len(columns) <= 3  # cut off at the border
        np.testing.assert_allclose(after[inside], np.tile(mean, (inside.sum(), 1)), rtol=1e-5)


def test_a_square_as_large_as_the_image_is_refused() -> None:
    with pytest.raises(StageError, match=r"train.cutout: a square of 6 pixels covers images of 6 x 7 pixels"):
        check_image_size(OFF.model_copy(update={"cutout": 6}), NETWORK, (6, 7, 3))


def test_color_jitter_is_refused_with_standardized_pixels() -> None:
    with pytest.raises(StageError, match=r"train.color_jitter: needs pixels from 0 to 1"):
        check_color_jitter(OFF.model_copy(update={"color_jitter": 0.1}), "standardize")
    check_color_jitter(OFF, "standardize")


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1.0])
def test_mixing_weights_have_the_moments_of_the_beta_distribution(alpha: float) -> None:
    weights = mixing_weights(OFF.model_copy(update={"mixup": alpha}), 3, 20_000, 0).astype(np.float64)
    assert abs(weights.mean() - 0.5) < 0.01
    assert abs(weights.var() - 0.25 / (2 * alpha + 1)) < 0.005


def test_mixing_weights_depend_on_seed_and_step_alone() -> None:
    params = OFF.model_copy(update={"mixup": 0.4})
    weights = mixing_weights(params, 3, 50, 7)
    np.testing.assert_array_equal(weights, mixing_weights(params, 3, 50, 7))
    assert (weights != mixing_weights(params, 4, 50, 7)).any()
    assert (weights != mixing_weights(params, 3, 50, 8)).any()


def test_images_and_labels_are_mixed_with_the_same_weights() -> None:
    weights = np.array([0.25, 1], np.float32)
    images = mixed(weights, np.ones((2, 2, 2, 1), np.float32), np.zeros((2, 2, 2, 1), np.float32))
    labels = mixed(weights, np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32)[::-1])
    assert images[0].max() == 0.25 and images[1].min() == 1
    assert labels.tolist() == [[0.25, 0.75], [0, 1]]
