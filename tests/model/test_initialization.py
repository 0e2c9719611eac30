"""stages/model/initialization.py: what the whitened patches and the passed-on channels are."""

from typing import Any

import keras
import numpy as np
import pytest

from stages.common.scaling import ByChannel, ScaledImages, scale
from stages.model.initialization import identity_kernel, whitening

pytestmark = pytest.mark.usefixtures("started")

RNG = np.random.default_rng(0)
# Neighbouring pixels and channels alike, as in pictures.
SMOOTH = RNG.random((1200, 1, 1, 1)) + 0.3 * RNG.random((1200, 1, 1, 3)) + 0.1 * RNG.random((1200, 9, 8, 3))
IMAGES = SMOOTH.astype(np.float32)


def test_patches_come_out_with_mean_0_variance_1_and_uncorrelated() -> None:
    kernel, bias = whitening(IMAGES, 2)
    assert kernel.shape == (2, 2, 3, 24)
    assert kernel.dtype == bias.dtype == np.float32
    layer = keras.layers.Conv2D(24, 2)
    layer.build(IMAGES.shape)
    layer.set_weights([kernel, bias])
    out = layer(IMAGES).numpy().reshape(-1, 24)
    np.testing.assert_allclose(out[:, :12].mean(axis=0), 0, atol=2e-3)
    correlation = np.cov(out[:, :12].T.astype(np.float64))
    np.testing.assert_allclose(correlation - np.diag(np.diag(correlation)), 0, atol=0.02)
    assert (np.diag(correlation) > 0.5).all()  # the weakest directions are held down
    assert (np.diag(correlation) < 1.01).all()
    assert correlation[0, 0] > 0.99
    np.testing.assert_allclose(out[:, 12:], -out[:, :12], atol=1e-5)


def test_a_constant_direction_is_not_blown_up() -> None:
    kernel, bias = whitening(np.full((10, 8, 8, 1), 0.5, np.float32), 2)
    assert np.isfinite(kernel).all()
    assert np.abs(kernel).max() <= 1 / np.sqrt(5e-4) + 1 / 1024  # to which it is rounded
    assert np.isfinite(bias).all()


def test_what_does_not_differ_is_left_out_so_that_no_library_chooses_it() -> None:
    grey = np.repeat(IMAGES[..., :1], 3, axis=3)
    kernel, bias = whitening(grey, 2)
    used = np.abs(kernel).max(axis=(0, 1, 2)) > 0
    assert used.tolist() == [True] * 4 + [False] * 8 + [True] * 4 + [False] * 8
    assert not bias[~used].any()
    # Between the channels the last bits differ, as they do between libraries.
    other = whitening(np.nextafter(grey, RNG.choice(np.array([0, 1], np.float32), grey.shape)), 2)[0]
    np.testing.assert_allclose(other, kernel, atol=2 / 1024)


def test_no_more_than_the_first_5000_images_count() -> None:
    images = RNG.random((6000, 3, 3, 1), np.float32)
    changed = images.copy()
    changed[5000:] = 0
    for found, wanted in zip(whitening(changed, 2), whitening(images, 2), strict=True):
        np.testing.assert_array_equal(found, wanted)
    changed[4999] = 0
    assert (whitening(changed, 2)[1] != whitening(images, 2)[1]).any()


@pytest.mark.parametrize(("channels", "filters"), [(3, 3), (3, 5), (5, 3)])
def test_the_first_filters_pass_the_channels_on(channels: int, filters: int) -> None:
    layer = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)
    layer.build((None, 6, 6, channels))
    layer.kernel.assign(identity_kernel(layer.kernel.numpy()))
    images = RNG.random((2, 6, 6, channels), np.float32)
    passed = min(channels, filters)
    np.testing.assert_allclose(layer(images).numpy()[..., :passed], images[..., :passed], rtol=1e-6)


def test_the_other_filters_stay_as_they_are() -> None:
    kernel = RNG.random((3, 3, 2, 5), np.float32)
    np.testing.assert_array_equal(identity_kernel(kernel)[..., 2:], kernel[..., 2:])


@pytest.mark.parametrize("by_channel", [None, ([0.4, 0.5, 0.6], [0.2, 0.3, 0.25])])
def test_images_stored_as_uint8_give_the_same_whitening(by_channel: ByChannel | None) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 6, 5, 3), dtype=np.uint8)
    scaled = next(scale([pixels], by_channel))
    stored: Any = ScaledImages(pixels, by_channel)
    for ours, theirs in zip(whitening(stored, 2), whitening(scaled, 2), strict=True):
        np.testing.assert_array_equal(ours, theirs)
