"""evaluation/scoring.py against cases worked by hand, reference libraries, and what must change no metric."""

import math
import subprocess
import sys
import warnings
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn import metrics as sklearn_metrics

from stages.common.failure import StageError
from stages.evaluation.scoring import (
    balanced_accuracy,
    confusion,
    most_confused,
    notes,
    per_class,
    reliability,
    score,
    wilson,
)

Case = tuple[NDArray[np.int64], NDArray[np.floating[Any]]]

# Four samples of three classes: the first three predicted right, wrong, right; the last a tie of 0 and 1,
# which the lower index wins, so right again.
LABELS = np.array([0, 0, 1, 0])
PROBABILITIES = np.array([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125], [0.25, 0.5, 0.25], [0.5, 0.5, 0.0]])
PREDICTED = np.array([0, 1, 1, 0])
CLASSES = ["cat", "dog", "eel"]

# No deadline: an import or a busy core in the middle of an example is no failure.
unhurried = settings(deadline=None, max_examples=50)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Few samples, few classes and coarse probabilities: ties, zeros, ones and absent classes are common."""
    classes = draw(st.integers(2, 5))
    row = st.lists(st.integers(0, 4), min_size=classes, max_size=classes).filter(any)
    weights = np.array(
        draw(st.lists(row, min_size=1, max_size=25)), draw(st.sampled_from([np.float32, np.float64]))
    )
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=len(weights), max_size=len(weights)))
    return np.array(labels), weights / weights.sum(axis=1, keepdims=True)


@st.composite
def untied_cases(draw: st.DrawFn) -> Case:
    """Probabilities that differ within a row, so that nothing hangs on the order of the classes."""
    classes, samples = draw(st.integers(2, 5)), draw(st.integers(1, 25))
    row = st.permutations([1, 2, 4, 7, 13][:classes])
    weights = np.array(draw(st.lists(row, min_size=samples, max_size=samples)), np.float32)
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=samples, max_size=samples))
    return np.array(labels), weights / weights.sum(axis=1, keepdims=True)


def names(probabilities: NDArray[Any]) -> list[str]:
    return [f"class {index}" for index in range(probabilities.shape[1])]


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    powers: NDArray[np.float32] = np.exp(logits - logits.max(axis=1, keepdims=True))
    powers /= powers.sum(axis=1, keepdims=True)
    return powers


def by_published_formula(labels: NDArray[Any], probabilities: NDArray[Any], bins: int = 15) -> float:
    """The calibration error as torchmetrics 1.9 writes it down: Σ b_i |p_i - c_i|, bins closed below."""
    error = 0.0
    edges = [*np.linspace(0, 1, bins + 1).astype(np.float32), np.float32(2)]
    for low, high in pairwise(edges):
        inside = [row for row in range(len(labels)) if low <= np.float32(max(probabilities[row])) < high]
        if inside:
            p = sum(int(np.argmax(probabilities[row])) == labels[row] for row in inside) / len(inside)
            c = sum(float(max(probabilities[row])) for row in inside) / len(inside)
            error += len(inside) / len(labels) * abs(p - c)
    return error


# Worked by hand


def test_a_case_worked_by_hand() -> None:
    # Confusion: cat 2 as cat, 1 as dog; dog 1 as dog. eel neither occurs nor is predicted.
    assert score(LABELS, PROBABILITIES, k=2) == pytest.approx(
        {
            "accuracy": 3 / 4,
            "accuracy_low": wilson(3, 4)[0],
            "accuracy_high": wilson(3, 4)[1],
            "top_2_accuracy": 1.0,  # in sample 1 cat and eel tie for the second place: the lower index has it
            "loss": (3 * math.log(2) + math.log(8)) / 4,
            "brier": (0.375 + (0.875**2 + 0.75**2 + 0.125**2) + 0.375 + 0.5) / 4,
            "calibration_error": (3 * (1 - 0.5) + 1 * (0.75 - 0)) / 4,
            "precision_macro": (1 + 1 / 2 + 0) / 3,
            "recall_macro": (2 / 3 + 1 + 0) / 3,
            "f1_macro": (4 / 5 + 2 / 3 + 0) / 3,
            # cat 0.5, 0.125, 0.5 against 0.25: 2 of 3. dog 0.5 against 0.25, 0.75, 0.5: 1 and a tie of 3.
            "roc_auc_macro": (2 / 3 + 1.5 / 3) / 2,
            "kappa": (3 / 4 - 1 / 2) / (1 - 1 / 2),  # by chance 3/4 · 2/4 + 1/4 · 2/4
            "matthews": (4 * 3 - 8) / math.sqrt((16 - 10) * (16 - 8)),
        },
        abs=1e-15,
    )


def test_per_class_has_a_row_for_each_class_in_order() -> None:
    table = per_class(LABELS, PROBABILITIES, CLASSES)
    assert table.to_dict("list") == {
        "class": ["cat", "dog", "eel"],
        "support": [3, 1, 0],
        "predicted": [2, 2, 0],
        "precision": [1.0, 0.5, 0.0],
        "recall": [2 / 3, 1.0, 0.0],
        "f1": [0.8, 2 / 3, 0.0],
        "roc_auc": [2 / 3, 0.5, 0.0],
    }


def test_confusion_lists_every_pair_with_zeros_in_class_order() -> None:
    rows = confusion(LABELS, PREDICTED, CLASSES).to_numpy().tolist()
    assert rows == [
        *(["cat", "cat", 2], ["cat", "dog", 1], ["cat", "eel", 0]),
        *(["dog", "cat", 0], ["dog", "dog", 1], ["dog", "eel", 0]),
        *(["eel", "cat", 0], ["eel", "dog", 0], ["eel", "eel", 0]),
    ]


def test_with_very_many_classes_confusion_lists_the_pairs_that_occur() -> None:
    classes = [str(number) for number in range(1000)]
    rows = confusion(np.array([5, 5, 900]), np.array([5, 7, 900]), classes).to_numpy().tolist()
    assert rows == [["5", "5", 1], ["5", "7", 1], ["900", "900", 1]]


def test_confusion_counts_labels_stored_in_eight_bits() -> None:
    labels, predicted = np.array([199, 199], np.uint8), np.array([198, 199], np.uint8)
    counts = confusion(labels, predicted, [str(index) for index in range(200)])
    assert counts[counts["count"] > 0].to_numpy().tolist() == [["199", "198", 1], ["199", "199", 1]]


def test_most_confused_lists_mistakes_by_count_and_ties_in_class_order() -> None:
    # Each pair of six classes once, right ones too, and (4, 2) once more.
    labels, predicted = (np.append(indices, last) for indices, last in zip(np.mgrid[:6, :6], (4, 2), strict=True))
    rows = most_confused(labels, predicted, "abcdef", most=9).to_numpy().tolist()
    assert rows == [
        ["e", "c", 2],
        *(["a", other, 1] for other in "bcdef"),
        *(["b", other, 1] for other in "acd"),
    ]


def test_most_confused_is_empty_without_mistakes() -> None:
    assert most_confused(LABELS, LABELS, CLASSES).empty


def test_reliability_puts_an_edge_into_the_bin_above_it_and_certainty_into_a_bin_of_its_own() -> None:
    probabilities = np.array([[0.5, 0.5], [0.75, 0.25], [0.875, 0.125], [1.0, 0.0]])
    table = reliability(np.array([0, 1, 0, 0]), probabilities, bins=4)
    assert table.to_dict("list") == {
        "low": [0.0, 0.25, 0.5, 0.75, 1.0],
        "high": [0.25, 0.5, 0.75, 1.0, 1.0],
        "count": [0, 0, 1, 2, 1],
        "confidence": [0.0, 0.0, 0.5, 0.8125, 1.0],
        "accuracy": [0.0, 0.0, 1.0, 0.5, 1.0],
    }


def test_reliability_takes_its_edges_in_single_precision() -> None:
    # 0.7 and 0.9 are below themselves in float32; each must still open its own bin.
    confidence = np.arange(5, 11).astype(np.float32) / np.float32(10)
    table = reliability(np.zeros(6, int), np.stack([confidence, 1 - confidence], axis=1), bins=10)
    assert table["count"].tolist() == [0] * 5 + [1] * 6


def test_with_all_probabilities_equal_the_top_k_are_the_first_k_classes() -> None:
    result = score(np.arange(5), np.full((5, 5), 0.2), k=3)
    assert (result["accuracy"], result["top_3_accuracy"]) == (1 / 5, 3 / 5)


# Published values and reference libraries


@pytest.mark.parametrize(
    ("correct", "samples", "interval"),
    [
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_wilson_gives_the_intervals_that_newcombe_published(
    correct: int, samples: int, interval: tuple[float, float]
) -> None:
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3
    assert wilson(correct, samples) == pytest.approx(interval, abs=5e-5)


@unhurried
@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_agrees_with_scipy(proportion: tuple[int, int]) -> None:
    correct, samples = proportion
    expected = binomtest(correct, samples).proportion_ci(method="wilson")
    assert wilson(correct, samples) == pytest.approx((expected.low, expected.high), rel=1e-12, abs=1e-15)


@unhurried
@given(cases())
def test_the_metrics_agree_with_scikit_learn(case: Case) -> None:
    labels, probabilities = case
    predicted, known = probabilities.argmax(axis=1), list(range(probabilities.shape[1]))
    result = score(labels, probabilities)
    with warnings.catch_warnings(action="ignore"):  # it warns where a class is absent
        precision, recall, f1, _ = sklearn_metrics.precision_recall_fscore_support(
            labels, predicted, labels=known, average="macro", zero_division=0
        )
        of_sklearn = {
            "accuracy": sklearn_metrics.accuracy_score(labels, predicted),
            "precision_macro": precision,
            "recall_macro": recall,
            "f1_macro": f1,
            "kappa": sklearn_metrics.cohen_kappa_score(labels, predicted, labels=known, replace_undefined_by=0.0),
            "matthews": sklearn_metrics.matthews_corrcoef(labels, predicted),
            "brier": sklearn_metrics.brier_score_loss(labels, probabilities, labels=known, scale_by_half=False),
        }
    assert {name: result[name] for name in of_sklearn} == pytest.approx(of_sklearn, rel=1e-6, abs=1e-12)


@unhurried
@given(cases())
def test_the_roc_auc_of_each_class_agrees_with_scikit_learn(case: Case) -> None:
    labels, probabilities = case
    areas = per_class(labels, probabilities, names(probabilities))["roc_auc"]
    for index, area in enumerate(areas):
        if 0 < (labels == index).sum() < len(labels):
            expected = sklearn_metrics.roc_auc_score(labels == index, probabilities[:, index])
            assert area == pytest.approx(expected, rel=1e-12)


@unhurried
@given(untied_cases(), st.integers(1, 4))
@pytest.mark.filterwarnings("ignore:'k' .* greater than or equal to 'n_classes'")
@pytest.mark.filterwarnings("ignore:The number of unique classes:UserWarning")
def test_the_top_k_accuracy_agrees_with_scikit_learn(case: Case, k: int) -> None:
    labels, probabilities = case
    classes = probabilities.shape[1]
    if classes == 2:  # scikit-learn wants the one column of the positive class then
        expected = 1.0 if k > 1 else sklearn_metrics.accuracy_score(labels, probabilities.argmax(axis=1))
    else:
        expected = sklearn_metrics.top_k_accuracy_score(labels, probabilities, k=k, labels=range(classes))
    assert score(labels, probabilities, k)[f"top_{k}_accuracy"] == pytest.approx(expected, rel=1e-12)


@unhurried
@given(cases())
def test_the_calibration_error_agrees_with_the_formula_of_torchmetrics(case: Case) -> None:
    labels, probabilities = case
    expected = by_published_formula(labels, probabilities)
    assert score(labels, probabilities)["calibration_error"] == pytest.approx(expected, abs=1e-12)


def test_the_calibration_error_is_that_of_the_example_in_the_manual_of_torchmetrics() -> None:
    labels = np.array([0, 1, 2, 0])
    probabilities = np.array([[0.25, 0.2, 0.55], [0.55, 0.05, 0.4], [0.1, 0.3, 0.6], [0.9, 0.05, 0.05]])
    bins = reliability(labels, probabilities, bins=3)
    gaps = bins["count"] * (bins["accuracy"] - bins["confidence"]).abs()
    assert gaps.sum() / 4 == pytest.approx(0.2)


@pytest.mark.usefixtures("started")
def test_the_loss_agrees_with_keras_saturated_or_not() -> None:
    import keras  # here: it takes seconds, and no other test needs it

    generator = np.random.default_rng(0)
    labels = generator.integers(0, 10, 500)
    logits = generator.normal(size=(500, 10)) * np.repeat([1, 5, 30, 200, 1000], 100)[:, None]
    probabilities = softmax(logits.astype(np.float32))
    of_keras = keras.losses.categorical_crossentropy(np.eye(10, dtype=np.float32)[labels], probabilities)
    assert score(labels, probabilities)["loss"] == pytest.approx(np.mean(of_keras), rel=1e-6)


# What must change nothing, and what must hold of any predictions


@unhurried
@given(cases(), st.randoms())
def test_the_order_of_the_samples_changes_no_bit(case: Case, random: Any) -> None:
    labels, probabilities = case
    order = random.sample(range(len(labels)), len(labels))
    shuffled, classes = (labels[order], probabilities[order]), names(probabilities)
    assert score(*shuffled) == score(*case)
    assert reliability(*shuffled).equals(reliability(*case))
    assert per_class(*shuffled, classes).equals(per_class(*case, classes))


def test_the_order_of_many_samples_changes_no_bit() -> None:
    generator = np.random.default_rng(0)
    labels, probabilities = generator.integers(0, 10, 2000), generator.dirichlet(np.full(10, 0.2), 2000)
    assert score(labels[::-1], probabilities[::-1]) == score(labels, probabilities)
    assert reliability(labels[::-1], probabilities[::-1]).equals(reliability(labels, probabilities))


@unhurried
@given(untied_cases(), st.randoms())
def test_the_order_of_the_classes_changes_no_metric(case: Case, random: Any) -> None:
    labels, probabilities = case
    order = random.sample(range(probabilities.shape[1]), probabilities.shape[1])
    renumbered = np.argsort(order)[labels], probabilities[:, order]
    assert score(*renumbered) == pytest.approx(score(labels, probabilities), rel=1e-12, abs=1e-15)
    expected = per_class(labels, probabilities, names(probabilities)).iloc[order].reset_index(drop=True)
    assert per_class(*renumbered, [names(probabilities)[index] for index in order]).equals(expected)


@unhurried
@given(cases(), st.randoms())
def test_with_ties_the_order_of_the_classes_still_changes_no_metric_of_probabilities(
    case: Case, random: Any
) -> None:
    labels, probabilities = case
    order = random.sample(range(probabilities.shape[1]), probabilities.shape[1])
    before, after = score(labels, probabilities), score(np.argsort(order)[labels], probabilities[:, order])
    for metric in ("loss", "brier", "roc_auc_macro"):
        assert after[metric] == pytest.approx(before[metric], rel=1e-12)


@unhurried
@given(cases())
def test_every_metric_is_a_finite_float_within_its_range(case: Case) -> None:
    result = score(*case)
    assert {type(value) for value in result.values()} == {float}
    ranges = {"loss": (0, 16.2), "brier": (0, 2), "kappa": (-1, 1), "matthews": (-1, 1)}
    for name, value in result.items():
        low, high = ranges.get(name, (0, 1))
        assert low - 1e-12 <= value <= high + 1e-12, name


@unhurried
@given(cases())
def test_the_interval_holds_the_accuracy_and_top_1_is_the_accuracy(case: Case) -> None:
    result = score(*case, k=1)
    assert result["accuracy_low"] <= result["accuracy"] <= result["accuracy_high"]
    assert result["top_1_accuracy"] == result["accuracy"]


@unhurried
@given(cases())
def test_the_tables_count_each_sample_once(case: Case) -> None:
    labels, probabilities = case
    table = per_class(labels, probabilities, names(probabilities))
    pairs = confusion(labels, probabilities.argmax(axis=1), names(probabilities))
    counted = [
        table["support"].sum(),
        table["predicted"].sum(),
        pairs["count"].sum(),
        reliability(labels, probabilities)["count"].sum(),
    ]
    assert counted == [len(labels)] * 4


@unhurried
@given(cases())
def test_doubling_every_sample_changes_only_the_interval(case: Case) -> None:
    once, twice = score(*case), score(np.tile(case[0], 2), np.tile(case[1], (2, 1)))
    for name in once.keys() - {"accuracy_low", "accuracy_high"}:
        assert twice[name] == pytest.approx(once[name], rel=1e-12, abs=1e-15)


# The edges


@pytest.mark.parametrize("label", [0, 1])
def test_one_sample_is_scored(label: int) -> None:
    result = score(np.array([label]), np.array([[0.75, 0.25]]))
    right = label == 0
    assert result["accuracy"] == right
    assert result["loss"] == pytest.approx(-math.log(0.75 if right else 0.25))
    assert result["calibration_error"] == pytest.approx(abs(right - 0.75))
    assert (result["roc_auc_macro"], result["kappa"], result["matthews"]) == (0, 0, 0)


def test_logits_far_out_saturate_and_cost_what_the_clip_allows() -> None:
    probabilities = softmax(np.array([[1e30, 0, -1e30], [1e30, 0, -1e30]], np.float32))
    result = score(np.array([0, 1]), probabilities)
    assert result["loss"] == pytest.approx(-math.log(1e-7) / 2, rel=1e-6)
    assert (result["brier"], result["calibration_error"]) == (1, 0.5)


def test_the_loss_is_of_probabilities_made_to_add_up_to_1() -> None:
    result = score(np.array([0]), np.array([[0.75, 0.255]]))
    assert result["loss"] == pytest.approx(-math.log(0.75 / 1.005))


def test_many_samples_do_not_overflow_the_matthews_coefficient() -> None:
    labels = np.tile([0, 1], 100_000)
    assert score(labels, np.eye(2)[labels])["matthews"] == 1.0


def test_a_class_without_samples_is_left_out_of_the_mean_roc_auc_and_noted() -> None:
    labels, probabilities = np.array([0, 1]), np.array([[0.8, 0.1, 0.1], [0.1, 0.2, 0.7]])
    assert score(labels, probabilities)["roc_auc_macro"] == 1.0
    assert per_class(labels, probabilities, CLASSES)["roc_auc"].tolist() == [1.0, 1.0, 0.0]
    assert notes(labels, probabilities.argmax(axis=1), CLASSES) == [
        "'dog': never predicted: precision and F1 are reported as 0",
        "'eel': without a sample in this split: recall, F1 and ROC AUC are reported as 0, and roc_auc_macro "
        "leaves them out",
    ]


def test_a_split_of_one_class_is_noted() -> None:
    lines = notes(np.array([1, 1]), np.array([1, 0]), ["cat", "dog"])
    assert [line for line in lines if "every sample" in line] == [
        "'dog': the label of every sample: ROC AUC, Cohen's kappa and Matthews coefficient have nothing to "
        "compare it with and are reported as 0"
    ]


def test_a_thousand_classes_are_noted_in_one_line() -> None:
    (line,) = notes(np.arange(1000), np.zeros(1000, int), [str(number) for number in range(1000)])
    assert line.startswith("'1', '2', '3', '4', '5', '6', '7', '8', '9', '10' and 989 more: never predicted")


def test_nothing_is_noted_when_every_class_occurs_and_is_predicted() -> None:
    assert notes(np.array([0, 1, 2]), np.array([1, 2, 0]), CLASSES) == []


# What is refused


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_row_that_is_not_finite_is_named(value: float) -> None:
    probabilities = np.full((5, 2), 0.5)
    probabilities[[2, 4], 1] = value
    with pytest.raises(StageError, match=r"^sample 2: .* not probabilities \(the first of 2 such samples\)"):
        score(np.zeros(5, int), probabilities)


def test_both_infinities_in_a_row_are_refused_without_a_warning() -> None:
    with pytest.raises(StageError, match="sample 0"):
        score(np.array([0]), np.array([[np.inf, -np.inf]]))


@pytest.mark.parametrize("row", [[3.0, 4.0], [-0.5, 1.5], [0.0, 0.0]])
def test_outputs_that_are_not_a_softmax_are_refused(row: list[float]) -> None:
    with pytest.raises(StageError, match=r"sample 1: .* end the network in softmax"):
        per_class(np.array([0, 0]), np.array([[1.0, 0.0], row]), ["cat", "dog"])


def test_a_softmax_in_half_precision_is_scored() -> None:
    probabilities = softmax(np.random.default_rng(0).normal(size=(500, 10)).astype(np.float32))
    labels = probabilities.argmax(axis=1)
    single, half = score(labels, probabilities), score(labels, probabilities.astype(np.float16))
    assert half["loss"] == pytest.approx(single["loss"], rel=1e-3)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_beyond_the_classes_is_named(label: int) -> None:
    with pytest.raises(StageError, match=rf"sample 1: label {label} is not among the classes 0 to 2"):
        score(np.array([0, label]), np.full((2, 3), 1 / 3))


def test_a_prediction_beyond_the_classes_is_named() -> None:
    with pytest.raises(StageError, match="sample 0: prediction 3 is not among the classes 0 to 2"):
        confusion(np.array([0]), np.array([3]), CLASSES)


@pytest.mark.parametrize(
    ("labels", "probabilities"),
    [
        (np.zeros(0, int), np.zeros((0, 3))),
        (np.zeros(2, int), np.full((3, 2), 0.5)),
        (np.zeros((2, 2), int), np.full((2, 2), 0.5)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(labels: NDArray[Any], probabilities: NDArray[Any]) -> None:
    with pytest.raises(StageError, match="cannot be scored"):
        score(labels, probabilities)


def test_importing_the_module_loads_neither_tensorflow_nor_scikit_learn() -> None:
    slow = ("tensorflow", "keras", "sklearn", "scipy")
    code = f"import sys, stages.evaluation.scoring; print({{*{slow}}} & set(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "set()\n"


def test_balanced_accuracy_is_scikit_learn_s_and_leaves_out_classes_without_samples() -> None:
    labels, predicted = np.array([0, 0, 0, 2, 2]), np.array([0, 0, 2, 2, 0])
    expected = sklearn_metrics.balanced_accuracy_score(labels, predicted)
    assert balanced_accuracy(labels, predicted, 4) == pytest.approx(expected, abs=1e-15)
