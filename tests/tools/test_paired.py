"""tools/compare/paired.py: the test and the intervals, compared with independent calculations."""

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.evaluation import scoring
from tools.compare.paired import PredictedSplit, intervals, mcnemar


def one_hot(predicted: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    return np.eye(classes)[predicted]


def softmax(generator: np.random.Generator, images: int, classes: int) -> NDArray[np.float64]:
    # One decimal, so there are ties.
    outputs = generator.integers(1, 10, (images, classes)) / 10
    probabilities: NDArray[np.float64] = outputs / outputs.sum(axis=1, keepdims=True)
    return probabilities


@pytest.mark.parametrize(
    ("gained", "lost", "expected"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 5, 1.0),
        (1, 9, 2 * (1 + 10) / 2**10),
        (9, 1, 2 * (1 + 10) / 2**10),
        (0, 6, 2 / 2**6),
        (2, 8, 2 * (1 + 10 + 45) / 2**10),
    ],
)
def test_mcnemar_is_a_two_sided_test_of_a_fair_coin(gained: int, lost: int, expected: float) -> None:
    assert mcnemar(gained, lost) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("top_k", [1, 3])
def test_the_resampled_metrics_are_those_of_scoring(top_k: int) -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(4, size=90)  # of five classes: the last has no image
    probabilities = softmax(generator, 90, 5)
    weights = generator.integers(3, size=90)
    split = PredictedSplit(labels, probabilities, top_k)
    expected = scoring.score(np.repeat(labels, weights), np.repeat(probabilities, weights, axis=0), top_k)
    found = dict(zip(split.names, split.metrics(weights), strict=True))
    assert found == pytest.approx({name: expected[name] for name in split.names}, rel=1e-12)


def test_metrics_that_divide_by_zero_are_zero_as_in_scoring() -> None:
    labels = np.zeros(3, dtype=np.int64)
    split = PredictedSplit(labels, one_hot(labels, 2), 1)
    found = dict(zip(split.names, split.metrics(np.ones(3, dtype=np.int64)), strict=True))
    assert found["kappa"] == found["matthews"] == 0
    assert found["f1_macro"] == 0.5


def test_the_interval_of_the_accuracy_is_that_of_the_normal_distribution_on_many_images() -> None:
    labels = np.zeros(4_000, dtype=np.int64)
    a, b = labels.copy(), labels.copy()
    a[:600] = 1  # 600 that b gains
    b[600:800] = 1  # and 200 that it loses
    low, high = intervals(*(PredictedSplit(labels, one_hot(predicted, 2), 1) for predicted in (a, b)))["accuracy"]
    half = 1.96 * np.sqrt((0.2 - 0.1**2) / 4_000)
    assert (low, high) == pytest.approx((0.1 - half, 0.1 + half), abs=0.001)


def test_a_model_differs_from_itself_by_exactly_zero() -> None:
    generator = np.random.default_rng(0)
    split = PredictedSplit(generator.integers(3, size=50), softmax(generator, 50, 3), 2)
    assert set(intervals(split, split).values()) == {(0.0, 0.0)}


def test_the_intervals_are_reproducible_and_change_sign_with_the_order_of_the_models() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(3, size=50)
    a, b = (PredictedSplit(labels, softmax(generator, 50, 3), 2) for _ in range(2))
    found = intervals(a, b)
    assert found == intervals(a, b)
    for name, (low, high) in intervals(b, a).items():
        assert (-high, -low) == pytest.approx(found[name])
        assert low < high


def test_one_image_has_no_interval() -> None:
    labels = np.array([0])
    assert (
        intervals(PredictedSplit(labels, one_hot(labels, 2), 1), PredictedSplit(labels, one_hot(1 - labels, 2), 1))
        == {}
    )
