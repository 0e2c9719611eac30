"""stages/evaluation/confidence.py and stages/common/confidence.py: temperature, and when not to answer."""

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.common.confidence import Confidence, soften
from stages.evaluation.confidence import abstention_threshold, figures, fit_temperature, risk_coverage
from stages.evaluation.scoring import score

CLASSES = 5


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float32]:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float32] = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return probabilities


@pytest.fixture(scope="module")
def sample() -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Labels drawn from softmax(logits), and these logits: a model that is calibrated."""
    generator = np.random.default_rng(0)
    logits = generator.normal(scale=2, size=(20_000, CLASSES))
    return (softmax(logits).cumsum(axis=1) < generator.random((20_000, 1))).sum(axis=1).clip(max=4), logits


@pytest.mark.parametrize("factor", [0.5, 1, 3])
def test_the_temperature_undoes_a_factor_on_the_logits(
    sample: tuple[NDArray[np.int64], NDArray[np.float64]], factor: float
) -> None:
    labels, logits = sample
    assert fit_temperature(labels, softmax(logits * factor)) == pytest.approx(factor, rel=0.03)


def test_no_other_temperature_has_a_higher_likelihood(
    sample: tuple[NDArray[np.int64], NDArray[np.float64]],
) -> None:
    labels, logits = sample
    overconfident = softmax(logits * 3)
    fitted = fit_temperature(labels, overconfident)
    best = score(labels, soften(overconfident, fitted))["loss"]
    for other in (fitted * 0.99, fitted * 1.01, 1):
        assert score(labels, soften(overconfident, other))["loss"] > best


def test_one_class_has_no_temperature() -> None:
    assert fit_temperature(np.zeros(9, np.int64), np.ones((9, 1), np.float32)) == 1


def test_a_saturated_softmax_has_a_finite_temperature() -> None:
    probabilities = np.eye(2, dtype=np.float32)[[0, 0, 1, 1]]
    assert 1 < fit_temperature(np.array([0, 1, 1, 1]), probabilities) <= 10


def test_softened_probabilities_are_the_softmax_of_divided_logits(
    sample: tuple[NDArray[np.int64], NDArray[np.float64]],
) -> None:
    _, logits = sample
    np.testing.assert_allclose(soften(softmax(logits), 2.5), softmax(logits / 2.5), rtol=1e-5)
    np.testing.assert_array_equal(soften(softmax(logits), 1), softmax(logits))


def test_softened_rows_do_not_depend_on_the_others(
    sample: tuple[NDArray[np.int64], NDArray[np.float64]],
) -> None:
    probabilities = softmax(sample[1][:203])
    whole = soften(probabilities, 1.7)
    for size in (1, 2, 7):
        parts = [soften(probabilities[start : start + size], 1.7) for start in range(0, 203, size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_the_threshold_answers_as_much_as_the_error_rate_allows() -> None:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4], [0.55, 0.45]], np.float32)
    labels = np.array([0, 1, 0, 0, 1])  # errors by confidence: 0/1, 1/2, 1/3, 1/4, 2/5
    for error, expected in ((0.1, 0.9), (0.25, 0.6), (0.3, 0.6), (0.4, 0.55)):
        assert abstention_threshold(labels, probabilities, error) == pytest.approx(expected)
    assert abstention_threshold(labels, probabilities, 0) is None


def test_images_of_equal_confidence_are_answered_together() -> None:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.8, 0.2]], np.float32)
    assert abstention_threshold(np.array([0, 0, 1]), probabilities, 0.1) == pytest.approx(0.9)


def test_without_a_threshold_a_note_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert abstention_threshold(np.array([1]), np.array([[0.9, 0.1]], np.float32), 0.05) is None
    assert capsys.readouterr().err == (
        "evaluate: evaluate.abstain is 0.05, but even the most confident predictions on the validation split are "
        "wrong more often: the model always answers\n"
    )


def test_the_curve_ends_in_the_error_rate_of_all_images(
    sample: tuple[NDArray[np.int64], NDArray[np.float64]],
) -> None:
    labels, logits = sample
    probabilities = softmax(logits)
    curve = risk_coverage(labels, probabilities)
    assert curve["coverage"].tolist() == [percent / 100 for percent in range(1, 101)]
    assert curve["error"].iloc[-1] == (probabilities.argmax(axis=1) != labels).mean()
    half = probabilities.max(axis=1) >= curve["threshold"][49]
    assert curve["error"][49] == pytest.approx((probabilities.argmax(axis=1) != labels)[half].mean())
    assert len(risk_coverage(labels[:3], probabilities[:3])) == 3


def test_the_figures_are_of_the_images_that_get_an_answer() -> None:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]], np.float32)
    confidence = Confidence(model_sha256="a" * 64, threshold=0.75)
    found = figures(np.array([0, 1, 1]), probabilities, 2, probabilities, confidence)
    assert found["abstain"] == {"threshold": 0.75, "coverage": 2 / 3, "accuracy": 0.5}
    assert found["uncalibrated"]["loss"] != found["calibrated"]["loss"]


def test_without_validation_there_are_no_figures_of_confidence() -> None:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2]], np.float32)
    assert figures(np.array([0, 1]), probabilities, None, probabilities, Confidence(model_sha256="a" * 64)) == {}
