"""Initial weights of the fast network: a whitening first layer and identity convolutions."""

import numpy as np
from numpy.typing import NDArray

# Enough images to estimate the covariance of small patches. They are processed in parts to limit memory.
IMAGES, PART = 5000, 500
# Directions of lower variance are noise and must not be amplified (Jordan 2024).
LEAST_VARIANCE = 5e-4
# As a fraction of the largest variance. Below it patches do not vary, for instance between the channels of grey
# pictures, and the direction that a library returns depends on rounding.
NO_VARIANCE = 1e-9


def whitening(images: NDArray[np.float32], side: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return kernel and bias of a convolution whose outputs on patches have mean 0, variance 1, no correlation.

    images: float32 (N, H, W, C); only the first 5,000 are used. kernel: float32 (side, side, C, 2 * side² * C),
    the principal directions of the patches by decreasing variance, then their negatives, with zeros where patches
    do not vary; bias: float32, one per filter. Both are rounded, so they do not depend on the linear-algebra
    library.
    """
    channels = images.shape[3]
    count, total, products = 0, np.zeros(side * side * channels), np.zeros((side * side * channels,) * 2)
    for start in range(0, min(IMAGES, len(images)), PART):
        windows = np.lib.stride_tricks.sliding_window_view(
            images[start : min(start + PART, IMAGES)], (side, side), axis=(1, 2)
        )
        patches = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, len(total)).astype(np.float64)
        count, total, products = count + len(patches), total + patches.sum(axis=0), products + patches.T @ patches
    mean = total / count
    variances, directions = np.linalg.eigh(products / count - np.outer(mean, mean))
    # The sign of an eigenvector is arbitrary.
    directions *= np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(len(total))])
    directions[:, variances < NO_VARIANCE * variances[-1]] = 0
    rows = (directions / np.sqrt(variances + LEAST_VARIANCE)).T[::-1]
    rows = np.round(np.concatenate([rows, -rows]) * 1024) / 1024
    kernel = rows.T.reshape(side, side, channels, -1)
    return kernel.astype(np.float32), (-rows @ mean).round(4).astype(np.float32)


def identity_kernel(kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a copy of a convolution kernel, float32 (h, w, C, filters), whose first filters are the identity.

    The other filters do not change ("dirac" initialization, Zagoruyko and Komodakis 2017).
    """
    passed = min(kernel.shape[2:])
    changed = kernel.copy()
    changed[..., :passed] = 0
    middle = np.arange(passed)
    changed[kernel.shape[0] // 2, kernel.shape[1] // 2, middle, middle] = 1
    return changed
