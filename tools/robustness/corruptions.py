"""The corruptions of Hendrycks and Dietterich (2019, arXiv 1903.12261) that NumPy, SciPy and Pillow can make.

Their strengths are those of CIFAR-10-C, for images of 32 pixels; lengths grow with the images. The implementations
are other ones, so the results are close to those of that data set, not equal.
"""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

SEVERITIES = (1, 2, 3, 4, 5)
SIDE = 32  # pixels, of the images that the lengths are for

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]  # from 0 to 1


def corrupt(images: Pixels, name: str, severity: int, seed: Sequence[int]) -> Pixels:
    """Return `images`, uint8 (N, H, W, C), corrupted: the same for the same seed and images.

    name: a key of `CORRUPTIONS`; severity: 1 to 5.
    """
    function, strengths = CORRUPTIONS[name]
    strength = strengths[severity - 1]
    if function in (_pixelate, _jpeg):
        return np.stack([_unpacked(function(_packed(image), strength), image.shape) for image in images])
    generator = np.random.default_rng([*seed, list(CORRUPTIONS).index(name), severity])
    found: Floats = function(images / 255, strength, generator)
    pixels: Pixels = np.rint(found.clip(0, 1) * 255).astype(np.uint8)
    return pixels


def _gaussian_noise(images: Floats, deviation: float, generator: Generator) -> Floats:
    return images + generator.normal(0, deviation, images.shape)


def _shot_noise(images: Floats, photons: float, generator: Generator) -> Floats:
    return generator.poisson(images * photons) / photons


def _impulse_noise(images: Floats, fraction: float, generator: Generator) -> Floats:
    drawn = generator.random(images.shape)
    return np.where(drawn < fraction / 2, 0, np.where(drawn < fraction, 1, images))


def _speckle_noise(images: Floats, deviation: float, generator: Generator) -> Floats:
    return images * (1 + generator.normal(0, deviation, images.shape))


def _gaussian_blur(images: Floats, deviation: float, _: Generator) -> Floats:
    sigma = deviation * _scale(images)
    blurred: Floats = ndimage.gaussian_filter(images, (0, sigma, sigma, 0), mode="nearest")
    return blurred


def _defocus_blur(images: Floats, strength: tuple[float, float], _: Generator) -> Floats:
    radius, soft = (length * _scale(images) for length in strength)
    reach = int(radius + 4 * soft) + 1
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    kernel = ndimage.gaussian_filter((rows**2 + columns**2 <= radius**2).astype(np.float64), soft)
    blurred: Floats = ndimage.convolve(
        images, (kernel / kernel.sum())[np.newaxis, :, :, np.newaxis], mode="mirror"
    )
    return blurred


def _zoom_blur(images: Floats, largest: float, _: Generator) -> Floats:
    zooms = np.arange(1, largest + 0.005, 0.01)
    total = images.copy()
    for zoom in zooms:
        offset = [(size - 1) * (1 - 1 / zoom) / 2 for size in images.shape[1:3]]
        matrix = [1, 1 / zoom, 1 / zoom, 1]
        total += ndimage.affine_transform(images, matrix, [0, *offset, 0], order=1, mode="nearest")
    return total / (len(zooms) + 1)


def _fog(images: Floats, strength: tuple[float, float], generator: Generator) -> Floats:
    amount, decay = strength
    height, width = images.shape[1:3]
    clouds = np.zeros(images.shape[:3])
    for octave in range(1, int(np.log2(max(height, width))) + 1):  # value noise, each octave twice as fine
        grid = generator.random((len(images), 2**octave, 2**octave))
        zoom = (1, height / 2**octave, width / 2**octave)
        clouds += ndimage.zoom(grid, zoom, order=1, grid_mode=True, mode="nearest") / decay**octave
    clouds -= clouds.min(axis=(1, 2), keepdims=True)
    clouds /= clouds.max(axis=(1, 2), keepdims=True)
    brightest = images.max(axis=(1, 2, 3), keepdims=True)
    foggy: Floats = (images + amount * clouds[..., np.newaxis]) * brightest / (brightest + amount)
    return foggy


def _brightness(images: Floats, added: float, _: Generator) -> Floats:
    value = images.max(axis=3, keepdims=True)  # of hue, saturation and value
    factor = (value + added).clip(max=1) / np.maximum(value, 1 / 510)
    return np.where(value > 0, images * factor, added)


def _contrast(images: Floats, factor: float, _: Generator) -> Floats:
    means = images.mean(axis=(1, 2), keepdims=True)
    found: Floats = (images - means) * factor + means
    return found


def _saturate(images: Floats, strength: tuple[float, float], _: Generator) -> Floats:
    factor, added = strength
    value = images.max(axis=3, keepdims=True)
    saturation = (value - images.min(axis=3, keepdims=True)) / np.maximum(value, 1 / 510)
    wanted = (saturation * factor + added).clip(0, 1)
    grey = saturation == 0  # without a hue
    found: Floats = value - (value - images) * np.where(grey, 1, wanted / np.where(grey, 1, saturation))
    return found


def _pixelate(picture: Image.Image, factor: float) -> Image.Image:
    small = [max(1, int(size * factor)) for size in picture.size]
    return picture.resize((small[0], small[1]), Image.Resampling.BOX).resize(picture.size, Image.Resampling.BOX)


def _jpeg(picture: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file)


def _scale(images: Floats) -> float:
    return float(min(images.shape[1:3]) / SIDE)


def _packed(image: Pixels) -> Image.Image:
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def _unpacked(picture: Image.Image, shape: tuple[int, ...]) -> Pixels:
    return np.asarray(picture, np.uint8).reshape(shape)


CORRUPTIONS: dict[str, tuple[Callable[..., Any], Sequence[Any]]] = {
    "gaussian noise": (_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot noise": (_shot_noise, (500, 250, 100, 75, 50)),
    "impulse noise": (_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "speckle noise": (_speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2)),
    "gaussian blur": (_gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1)),
    "defocus blur": (_defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "zoom blur": (_zoom_blur, (1.05, 1.1, 1.15, 1.2, 1.25)),
    "fog": (_fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": (_brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "saturate": (_saturate, ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))),
    "pixelate": (_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "JPEG": (_jpeg, (80, 65, 58, 50, 40)),
}
