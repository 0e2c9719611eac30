"""Class weights, for training splits in which some classes have many more images than others."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import field_validator

from stages.common.failure import StageError
from stages.common.params import Section

FEW = 10  # images of a class: fewer are a warning
UNBALANCED = 2  # times as many images in the largest class as in the smallest
LISTED = 10  # classes named in one line


class BalanceParams(Section):
    """The part of `train` in params.yaml that weighs the classes."""

    class_weights: str | dict[str, float]  # none, balanced, or weights by class name; the others have 1

    @field_validator("class_weights", mode="plain")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if value in ("none", "balanced"):
            return value
        if not isinstance(value, dict) or not all(
            type(weight) in (int, float) and 0 < weight < float("inf") for weight in value.values()
        ):
            raise ValueError(f"expected none, balanced, or a weight above 0 for class names, found {value!r}")
        return {str(name): float(weight) for name, weight in value.items()}


def class_weights(params: BalanceParams, classes: Sequence[str], counts: Sequence[int]) -> dict[str, float] | None:
    """Return the factor on the loss of each class's images, by class name; None when all are 1.

    counts: images of each class in the training split. balanced: images / (classes * count), like scikit-learn's
    `compute_class_weight`, over the classes that have images. Raises `StageError` for the name of no class.
    """
    chosen = params.class_weights
    if chosen == "none":
        return None
    if isinstance(chosen, str):  # balanced
        used = np.count_nonzero(counts)
        return {
            name: sum(counts) / (used * count) if count else 1.0
            for name, count in zip(classes, counts, strict=True)
        }
    for name in chosen:
        if name not in classes:
            close = difflib.get_close_matches(name, classes, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"classes: {_listed(list(classes))}"
            raise StageError(f"train.class_weights: there is no class '{name}'; {hint}")
    return {name: chosen.get(name, 1.0) for name in classes}


def as_vector(weights: dict[str, float] | None) -> NDArray[np.float32] | None:
    """Return the weights in the order of the classes, float32 (classes,), or None."""
    return None if weights is None else np.array(list(weights.values()), np.float32)


def remarks(params: BalanceParams, classes: Sequence[str], counts: Sequence[int]) -> list[str]:
    """Return a line with the number of training images of each class, and warnings about small classes."""
    ordered = sorted(zip(counts, classes, strict=True), reverse=True)
    (most, largest), (fewest, smallest) = ordered[0], ordered[-1]
    if len(classes) <= LISTED:
        sizes = ", ".join(f"{name} {count:,}" for name, count in zip(classes, counts, strict=True))
    else:
        sizes = f"{len(classes):,} classes, from {smallest} with {fewest:,} to {largest} with {most:,}"
    lines = [f"training images per class: {sizes}"]
    if most > UNBALANCED * fewest and params.class_weights == "none":
        lines.append(
            f"'{largest}' has more than {UNBALANCED} times as many training images as '{smallest}'; "
            "train.class_weights: balanced gives all classes the same influence"
        )
    if few := [f"{name} {count}" for count, name in reversed(ordered) if count < FEW]:
        lines.append(f"warning: classes with fewer than {FEW} training images: {_listed(few)}")
    return lines


def _listed(names: Sequence[str]) -> str:
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more:,} more" if more > 0 else "")
