"""The pictures of the report, embedded as PNGs in data URIs."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tools.report.markup import Markup, collapsed, element, image, join, percent, table
from tools.report.results import Results

LARGEST = 96  # pixels of the longer side, to keep the page small
OF_EACH_CLASS = 10
MOST_CLASSES = 20  # to keep the page short


def mistakes(run: Results, most: int = 24) -> Markup:
    """Return the misclassified test images with the highest probabilities."""
    confidence = run.probabilities.max(axis=1)
    return _gallery(run, _first(run.probabilities.argmax(axis=1) != run.labels, -confidence, most))


def hits(run: Results, most: int = 12) -> Markup:
    """Return the correctly classified test images with the lowest probabilities."""
    confidence = run.probabilities.max(axis=1)
    return _gallery(run, _first(run.probabilities.argmax(axis=1) == run.labels, confidence, most))


def filters(run: Results) -> Markup:
    """Return the filters of the first convolution, with their weights' range and means in a table."""
    if run.filters is None:
        return element("p", "The network has no convolution.")
    height, width, channels, count = run.filters.shape
    means = [f"mean {name}" for name in (("red", "green", "blue") if channels == 3 else ("grey",))]
    rows, shown = [], []
    for number, picture in enumerate(filter_images(run.filters), start=1):
        weights = run.filters[..., number - 1]
        values = [f"{value:+.3f}" for value in (weights.min(), weights.max(), *weights.mean(axis=(0, 1)))]
        rows.append([str(number), *values])
        average = ", ".join(f"{name} {value}" for name, value in zip(means, values[2:], strict=True))
        words = f"filter {number}: weights from {values[0]} to {values[1]}, {average}"
        shown.append(element("li", image(data_uri(picture), words)))
    caption = f"{count} filters of {height} x {width} weights a channel"
    numbers = table(caption, ["filter", "lowest", "highest", *means], rows, "nnn" + "n" * channels)
    return join([element("ul", join(shown), class_="filters"), collapsed(numbers)])


def grid(run: Results) -> Markup:
    """Return the first training images of each class, a row a class."""
    shown = run.classes[:MOST_CLASSES]
    rows = []
    if len(shown) < len(run.classes):
        rows.append(element("p", f"{len(shown)} of {len(run.classes)} classes."))
    for number, name in enumerate(shown):
        indices = np.flatnonzero(run.training.labels == number)[:OF_EACH_CLASS]
        images = [image(data_uri(run.training.images[i]), f"{name}, training image {i}") for i in indices]
        strip = element("div", join(images), class_="strip")
        rows.append(element("div", join([element("h3", name), strip]), class_="of-class"))
    return join(rows)


def data_uri(pixels: NDArray[np.uint8]) -> str:
    """Return an image, uint8 (H, W, 1 or 3), as a PNG in a data URI, scaled down to `LARGEST`."""
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    picture.thumbnail((LARGEST, LARGEST))
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def filter_images(weights: NDArray[np.float32]) -> list[NDArray[np.uint8]]:
    """Return the filters, (h, w, channels, filters), as pictures on one scale, with zero as mid-grey."""
    largest = float(np.abs(weights).max()) or 1.0
    return list(np.rint(np.moveaxis(127.5 + 127.5 * weights / largest, 3, 0)).astype(np.uint8))


def _first(chosen: NDArray[np.bool_], key: NDArray[np.float32], most: int) -> list[int]:
    indices = np.flatnonzero(chosen)
    return [int(index) for index in indices[np.argsort(key[indices], kind="stable")][:most]]  # ties in file order


def _gallery(run: Results, indices: Sequence[int]) -> Markup:
    if not indices:
        return element("p", "There are none.")
    return element("ul", join(_shown(run, index) for index in indices), class_="gallery")


def _shown(run: Results, index: int) -> Markup:
    order = np.argsort(-run.probabilities[index], kind="stable")
    true = run.classes[run.labels[index]]
    first, *others = (f"{run.classes[i]}, {percent(float(run.probabilities[index, i]))}" for i in order[:2])
    # The second class is interesting only if the prediction is correct.
    then = others[0] if others and order[0] == run.labels[index] else None
    parts = [
        image(data_uri(run.test.images[index]), f"true {true}, predicted {first}"),
        element("span", f"true {true}"),
        element("span", f"predicted {first}", class_="predicted"),
        element("span", f"then {then}", class_="aside") if then else "",
        element("span", f"image {index}", class_="aside"),
    ]
    return element("li", join(parts))
