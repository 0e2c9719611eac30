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
    check_image_size,
    scale_of,
    scaled_size,
)

pytestmark = pytest.mark.usefixtures("started")

OFF = AugmentationParams(flip=False, shift=0, scales=[1])
FLIP = AugmentationParams(flip=True, shift=0, scales=[1])
SHIFT = AugmentationParams(flip=False, shift=2, scales=[1])
BOTH = AugmentationParams(flip=True, shift=2, scales=[1])

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


@pytest.mark.parametrize("change", [{"flip": True}, {"flip": "alternate"}, {"shift": 1}, {"scales": [0.5, 1]}])
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
        check_image_size(AugmentationParams(flip=False, shift=6, scales=[1]), NETWORK, (6, 7, 3))


def test_the_longest_shift_works() -> None:
    longest = AugmentationParams(flip=False, shift=5, scales=[1])
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
    params = AugmentationParams(flip=False, shift=0, scales=scales)
    assert [scale_of(params, epoch, epochs) for epoch in range(epochs)] == expected


def test_a_scaled_size_is_whole_pixels_and_at_least_one() -> None:
    assert scaled_size(0.625, 32, 48) == (20, 30)
    assert scaled_size(0.01, 32, 32) == (1, 1)
    assert scaled_size(1, 7, 9) == (7, 9)
