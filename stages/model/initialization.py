"""First values of the fast network's weights: patches of the training images whitened, signals passed through."""

import numpy as np
from numpy.typing import NDArray

# Enough for the covariance of some numbers a patch; their patches are made in parts, to bound the memory.
IMAGES, PART = 5000, 500
# Below this variance a direction of the patches is noise, and not to be blown up. As in Jordan 2024.
LEAST_VARIANCE = 5e-4
# Of the largest; below it a direction is one in which patches do not differ, as between the channels of grey
# pictures, and which of such directions a library finds is left to its rounding.
NO_VARIANCE = 1e-9


def whitening(images: NDArray[np.float32], side: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return kernel and bias of a convolution whose outputs on patches have mean 0, variance 1, no correlation.

    images: float32 (N, H, W, C), of which the first 5,000 count. kernel: float32 (side, side, C, 2 * side² * C),
    the principal directions of the patches, the strongest first, then their opposites, zeros where patches do not
    differ; bias: float32, as many.
    Rounded, so that the last bits of one linear-algebra library or another do not matter.
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
    # The library may give a direction or its opposite.
    directions *= np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(len(total))])
    directions[:, variances < NO_VARIANCE * variances[-1]] = 0
    rows = (directions / np.sqrt(variances + LEAST_VARIANCE)).T[::-1]
    rows = np.round(np.concatenate([rows, -rows]) * 1024) / 1024
    kernel = rows.T.reshape(side, side, channels, -1)
    return kernel.astype(np.float32), (-rows @ mean).round(4).astype(np.float32)


def identity_kernel(kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a convolution's kernel, float32 (h, w, C, filters), whose first filters pass the channels on.

    The other filters stay as they are: the layer starts as what it was given, and something new beside it (the
    "dirac" initialization of Zagoruyko and Komodakis 2017).
    """
    passed = min(kernel.shape[2:])
    changed = kernel.copy()
    changed[..., :passed] = 0
    middle = np.arange(passed)
    changed[kernel.shape[0] // 2, kernel.shape[1] // 2, middle, middle] = 1
    return changed
