"""Finds pictures that occur twice: with identical pixels, or shifted, cropped, re-encoded or recolored.

Two steps. A descriptor of each picture, which small shifts hardly change, proposes the most similar pictures:
matrix products compare all with all. Each proposed pair is then aligned and compared window by window. The
similarity of a pair, from 0 to 1, is the mean of

    shape      the cosine of the two descriptors: histograms of gradient directions in a 4 x 4 grid (as in Dalal
               and Triggs 2005), and the low frequencies of the colors (a discrete cosine transform)
    structure  the correlation of luminance in windows of 7 x 7, at the best shift of up to 4 pixels, averaged
               with more weight on windows of high contrast (the structure term of SSIM, Wang et al. 2004)

Neither depends on the brightness and contrast of the whole picture. Everything is computed on a grid of 32 x 32,
so the size of the pictures does not matter. Descriptors are kept in a temporary file; memory holds blocks of them.
"""

import hashlib
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn, irfft2, rfft2
from scipy.ndimage import gaussian_filter, uniform_filter
from tqdm import tqdm

from stages.common.splits import Split

THRESHOLD = 0.74  # chosen on CIFAR-10: docs/trust.md has precision and recall
SIDE = 32
SMALLEST = 16  # pixels: smaller pictures have too little detail to tell near copies from similar pictures
DIRECTIONS, CELLS, FREQUENCIES = 8, 4, 6
CANDIDATES, COSINE = 4, 0.8  # so many per picture are compared in detail, of at least this cosine
SHIFT, WINDOW = 4, 7  # pixels of the 32 x 32 grid
FLAT = 30.0  # variance, in squared grey levels of 255, below which a window counts less: noise of JPEG
BLOCK, COLUMNS = 1024, 2048  # a block of cosines has 8 MB, and ten times as much where all images are alike
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)

Images = NDArray[np.uint8] | Split  # uint8 (N, H, W, C)
Advance = Callable[[int], object]


@dataclass(frozen=True, eq=False)
class Collection:
    """Images with their descriptors, float16 (N, `size`), which are read from the open file when they are needed.

    Pages of a memory map would count as memory of this process, up to the whole file.
    """

    images: Images
    file: int  # descriptor of the open file
    size: int

    def __len__(self) -> int:
        """Return the number of images."""
        return _extent(self.images)[0]

    def rows(self, start: int, stop: int) -> NDArray[np.float16]:
        """Return the descriptors of the images from `start` to `stop`, float16 (n, size)."""
        width = self.size * np.dtype(np.float16).itemsize
        content = os.pread(self.file, (min(stop, len(self)) - start) * width, start * width)
        return np.frombuffer(content, np.float16).reshape(-1, self.size)

    def at(self, indices: NDArray[np.int64]) -> NDArray[np.float16]:
        """Return the descriptors of the images at `indices`, float16 (n, size)."""
        found = np.empty((len(indices), self.size), np.float16)
        for row, index in enumerate(indices.tolist()):
            found[row] = self.rows(index, index + 1)
        return found


@contextmanager
def describe(images: Images, scratch: Path, advance: Advance = lambda _: None) -> Iterator[Collection]:
    """Yield `images` with their descriptors, which need 480 bytes of `scratch` per image."""
    scratch.mkdir(parents=True, exist_ok=True)
    count, _ = _extent(images)
    size = 0
    with tempfile.TemporaryFile(dir=scratch) as file:
        for start in range(0, count, BLOCK):
            block = _grids(images, np.arange(start, min(start + BLOCK, count)))
            descriptors = _descriptors(block).astype(np.float16)
            file.write(descriptors.data)
            size = descriptors.shape[1]
            advance(len(block))
        file.flush()
        yield Collection(images, file.fileno(), size)


def identical(queries: Images, references: Images) -> NDArray[np.int64]:
    """Return for each query the first reference with the same pixels, int64 (N,); -1: none.

    Images compared with themselves: the first of several copies has none.
    """
    same = queries is references
    known = _digests(references)
    wanted = known if same else _digests(queries)
    values, first = np.unique(known, return_index=True)
    place = np.minimum(np.searchsorted(values, wanted), len(values) - 1)
    found = np.where(values[place] == wanted, first[place], -1)
    return np.where(found == np.arange(len(found)), -1, found) if same else found


def _digests(images: Images) -> NDArray[np.uint64]:
    """Return 64 bits of a hash of each image's pixels: equal ones of 1,000,000 images are equal but for 3e-8."""
    count, _ = _extent(images)
    digests = np.empty(count, np.uint64)
    for piece in _pieces(images, np.arange(count)):
        content = b"".join(hashlib.blake2b(image.data, digest_size=8).digest() for image in _take(images, piece))
        digests[piece] = np.frombuffer(content, np.uint64)
    return digests


def _extent(images: Images) -> tuple[int, tuple[int, ...]]:
    """Return the number of the images and the shape of each."""
    array = images.images if isinstance(images, Split) else images
    return len(array), array.shape[1:]


def _take(images: Images, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return copies of the images at `indices`. A split releases the memory of what it has read from its file."""
    return images.take(indices)[0] if isinstance(images, Split) else images[indices]


def partners(
    queries: Collection, references: Collection, advance: Advance = lambda _: None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return for each query the most similar reference, int64 (N,), and the similarity, float64 (N,).

    The similarity is 1 for identical pixels only, else at most 0.9999, rounded to four decimals. Without a partner
    above `THRESHOLD` they are -1 and 0. A collection compared with itself pairs each of several copies with the
    first one, and no image with itself.
    """
    same = queries is references
    best = identical(queries.images, references.images)
    similarity = np.where(best >= 0, 1.0, 0.0)
    for start in range(0, len(best), BLOCK):
        descriptors = queries.rows(start, start + BLOCK)
        query, reference, cosines = _candidates(descriptors, references, start if same else None)
        query += start
        wanted = best[query] < 0
        query, reference, cosines = query[wanted], reference[wanted], cosines[wanted]
        for piece in range(0, len(query), BLOCK):
            i, j = query[piece : piece + BLOCK], reference[piece : piece + BLOCK]
            structure = _structure(_grids(queries.images, i), _grids(references.images, j))
            found = np.minimum(((cosines[piece : piece + BLOCK] + structure) / 2).round(4), 0.9999)
            for a, b, value in zip(i.tolist(), j.tolist(), found.tolist(), strict=True):
                if value >= THRESHOLD and value > similarity[a]:
                    best[a], similarity[a] = b, value
        advance(len(descriptors))
    return best, similarity


def find_leaks(test: Images, train: Images, near: bool, scratch: Path) -> NDArray[np.float64]:
    """Return the similarity of each test image to its partner in training, float64 (N,); 0: none.

    Only identical pixels count unless `near`, in pictures of fewer than `SMALLEST` pixels a side, and where more
    than half of the test images would have a partner: such pictures, for example digits, all look alike.
    scratch: a folder for temporary files, 480 bytes per image.
    """
    same = np.where(identical(test, train) >= 0, 1.0, 0.0)
    (tests, shape), (trains, _) = _extent(test), _extent(train)
    if not near or min(shape[:2]) < SMALLEST:
        return same
    bar = tqdm(total=tests * 2 + trains, desc="duplicates", unit="", leave=False, disable=None)
    with bar, describe(test, scratch, bar.update) as queries, describe(train, scratch, bar.update) as references:
        _, similarity = partners(queries, references, bar.update)
    return similarity if (similarity > 0).mean() <= 0.5 else same


def _candidates(
    descriptors: NDArray[np.float16], references: Collection, own: int | None
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return pairs of rows of `descriptors` and references, at most `CANDIDATES` per row, and their cosines.

    own: the reference that the first row is, if the rows are references themselves.
    """
    left = descriptors.astype(np.float32)
    rows = len(left)
    found = np.full((rows, CANDIDATES), -1)
    cosine = np.full((rows, CANDIDATES), COSINE, np.float32)
    for start in range(0, len(references), COLUMNS):
        product = left @ references.rows(start, start + COLUMNS).astype(np.float32).T
        if own is not None:
            here = np.arange(rows) + own - start
            inside = (here >= 0) & (here < product.shape[1])
            product[np.flatnonzero(inside), here[inside]] = 0
        row, column = np.nonzero(product > cosine[:, -1:])
        if not len(row):
            continue
        # The best of those found so far and now, row by row.
        row = np.concatenate([np.repeat(np.arange(rows), CANDIDATES), row])
        values = np.concatenate([cosine.ravel(), product[row[rows * CANDIDATES :], column]])
        names = np.concatenate([found.ravel(), column + start])
        order = np.lexsort((names, -values, row))
        rank = np.arange(len(order)) - np.searchsorted(row[order], row[order])
        order = order[rank < CANDIDATES]
        cosine, found = values[order].reshape(rows, CANDIDATES), names[order].reshape(rows, CANDIDATES)
    row, place = np.nonzero(found >= 0)
    names = found[row, place]
    # Again in float64: products of large matrices differ in their last digits from machine to machine.
    exact = np.einsum("nd,nd->n", descriptors[row].astype(np.float64), references.at(names))
    return row, names, exact


def _pieces(images: Images, indices: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yield `indices` in pieces whose images have as many pixels as a block of 32 x 32."""
    _, shape = _extent(images)
    size = max(1, BLOCK * SIDE * SIDE // math.prod(shape[:2]))
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


def _grids(images: Images, indices: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the images at `indices` as `_resized` does, float32 (n, 32, 32, C); n > 0."""
    return np.concatenate([_resized(_take(images, piece)) for piece in _pieces(images, indices)])


def _resized(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return uint8 (n, H, W, C) as float32 (n, 32, 32, C), each pixel the mean of the area that it covers."""
    if images.shape[1:3] == (SIDE, SIDE):
        return images.astype(np.float32)
    down, right = (_areas(size) for size in images.shape[1:3])
    resized: NDArray[np.float32] = np.einsum(
        "yh,nhwc,xw->nyxc", down, images.astype(np.float32), right, optimize=True
    )
    return resized


def _areas(size: int) -> NDArray[np.float32]:
    """Return the part of each of `size` pixels in each of 32, float32 (32, size), rows of sum 1."""
    edges = np.arange(SIDE + 1) * (size / SIDE)
    pixels = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    areas: NDArray[np.float32] = (overlap.clip(0) * (SIDE / size)).astype(np.float32)
    return areas


def _luminance(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (n, 32, 32) of (n, 32, 32, 1 or 3)."""
    return images[..., 0] if images.shape[-1] == 1 else images @ LUMINANCE


def _descriptors(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return unit vectors, float32 (n, D); a picture of a single color is the zero vector."""
    grey = _luminance(images)
    vertical, horizontal = np.gradient(grey, axis=(1, 2))
    magnitude = np.hypot(horizontal, vertical)
    angle = np.arctan2(vertical, horizontal) * (DIRECTIONS / (2 * np.pi)) % DIRECTIONS
    histograms = []
    for direction in range(DIRECTIONS):  # each gradient counts for the two nearest directions
        distance = np.abs(angle - direction)
        weight = np.maximum(0, 1 - np.minimum(distance, DIRECTIONS - distance)) * magnitude
        histograms.append(_cells(weight[..., None], CELLS)[..., 0])
    gradients = np.sqrt(np.stack(histograms, axis=-1))
    colors = dctn(_cells(images, 16), axes=(1, 2), norm="ortho")[:, :FREQUENCIES, :FREQUENCIES]
    order = np.arange(FREQUENCIES)
    colors *= np.sqrt(np.hypot(order[:, None], order))[:, :, None].astype(np.float32)  # 0 for the mean color
    return np.concatenate([_unit(gradients), _unit(colors)], axis=1) * np.float32(0.5**0.5)


def _cells(images: NDArray[np.float32], cells: int) -> NDArray[np.float32]:
    """Return the means of the cells of a grid of cells x cells: (n, 32, 32, C) to (n, cells, cells, C)."""
    size = SIDE // cells
    means: NDArray[np.float32] = images.reshape(len(images), cells, size, cells, size, -1).mean((2, 4))
    return means


def _unit(values: NDArray[np.float32]) -> NDArray[np.float32]:
    flat = values.reshape(len(values), -1)
    units: NDArray[np.float32] = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), np.float32(1e-3))
    return units


def _structure(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the structure term of pairs of images, float32 (n, 32, 32, C) both, as float64 (n,), below 1."""
    a, b = _luminance(left), _luminance(right)
    down, across = _shifts(*(grey - gaussian_filter(grey, (0, 2, 2)) for grey in (a, b)))
    b = np.stack(
        [np.roll(grey, shift, (0, 1)) for grey, shift in zip(b, zip(down, across, strict=True), strict=True)]
    )
    place = np.arange(SIDE)
    rows, columns = (
        (place >= np.maximum(shift, 0)[:, None]) & (place < SIDE + np.minimum(shift, 0)[:, None])
        for shift in (down, across)
    )
    overlap = rows[:, :, None] & columns[:, None, :]

    def mean(values: NDArray[Any]) -> NDArray[Any]:
        averaged: NDArray[Any] = uniform_filter(values.astype(np.float64), (0, WINDOW, WINDOW))
        return averaged

    mean_a, mean_b = mean(a), mean(b)
    variances = [
        np.maximum(mean(a.astype(np.float64) ** 2) - mean_a**2, 0),
        np.maximum(mean(b.astype(np.float64) ** 2) - mean_b**2, 0),
    ]
    covariance = mean(a.astype(np.float64) * b) - mean_a * mean_b
    correlation = covariance / (np.sqrt(variances[0] * variances[1]) + FLAT)
    weight = np.minimum(np.sqrt(np.maximum(*variances)), 20) * overlap
    result: NDArray[np.float64] = (correlation * weight).sum((1, 2)) / np.maximum(weight.sum((1, 2)), 1e-6)
    return result


def _shifts(a: NDArray[Any], b: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the shift of `b` at which both correlate best; a, b: (n, 32, 32), without low frequencies.

    The correlations, over the pixels in which both overlap, come from Fourier transforms (Padfield 2012, Masked
    object registration in the Fourier domain).
    """
    size = (2 * SIDE, 2 * SIDE)
    ones = rfft2(np.ones((1, SIDE, SIDE), np.float32), size)
    product = irfft2(rfft2(a, size) * rfft2(b, size).conj())
    energy = irfft2(rfft2(a * a, size) * ones.conj()) * irfft2(ones * rfft2(b * b, size).conj())
    near = np.r_[0 : SHIFT + 1, -SHIFT:0]
    scores = (product / np.sqrt(np.maximum(energy, 1e-6)))[:, near][:, :, near].reshape(len(a), -1)
    best = scores.argmax(axis=1)
    return near[best // len(near)], near[best % len(near)]
