"""The figures of a run, with confidence intervals, compared with those of the last commit."""

import re
from dataclasses import dataclass
from typing import Any

import pandas as pd

from stages.evaluation.scoring import wilson
from tools.compare.gate import lower_is_better
from tools.report import charts
from tools.report.markup import SPACE, Markup, element, figure, frame_table, join, percent, table
from tools.report.results import Results

# In the order of the page. Keys of metrics/train.csv have the prefix `train.`, as some are in both tables.
NAMES = {
    "accuracy": "Test accuracy",
    "balanced_accuracy": "Balanced test accuracy",
    "official_accuracy": "Official test accuracy",
    "top": "Top-{} accuracy",
    "loss": "Test loss, nats",
    "brier": "Brier score",
    "calibration_error": "Calibration error",
    "temperature": "Temperature fitted on validation",
    "uncalibrated.loss": "Loss of the network's own probabilities, nats",
    "uncalibrated.calibration_error": "Calibration error of the network's own probabilities",
    "calibrated.loss": "Loss with the temperature, nats",
    "calibrated.calibration_error": "Calibration error with the temperature",
    "abstain.threshold": "Threshold of an answer",
    "abstain.coverage": "Images that get an answer",
    "abstain.accuracy": "Accuracy of the answers",
    "test_duplicates": "Test images that repeat a training image",
    "test_duplicates_identical": "Test images identical to a training image",
    "accuracy_on_duplicates": "Accuracy on repeated images",
    "accuracy_without_duplicates": "Accuracy without repeated images",
    "precision_macro": "Precision, mean of classes",
    "recall_macro": "Recall, mean of classes",
    "f1_macro": "F1, mean of classes",
    "roc_auc_macro": "ROC AUC, mean of classes",
    "kappa": "Cohen's kappa",
    "matthews": "Matthews coefficient",
    "train.val_accuracy": "Validation accuracy",
    "train.val_loss": "Validation loss, nats",
    "train.accuracy": "Training accuracy",
    "train.loss": "Training loss, nats",
    "train.parameters": "Parameters",
    "train.epoch": "Epoch of the weights",
}
NOT_FIGURES = re.compile(r".*(_low|_high|test_images)")
TOP = re.compile(r"top_(\d+)_accuracy")
VIEWS = re.compile(r"views_(\d)\.(.*)")  # a figure of test-time augmentation
NEITHER_IS = (
    "temperature",
    "abstain.threshold",
    "test_duplicates",
    "test_duplicates_identical",
    "train.parameters",
    "train.epoch",
)


@dataclass(frozen=True)
class Figure:
    """A figure: its key in `NAMES`, its name, its value, and its 95 % interval if it has one."""

    key: str
    name: str
    value: float
    interval: tuple[float, float] | None


def figures(train: dict[str, Any], evaluation: dict[str, Any], validation_images: int) -> dict[str, Figure]:
    """Return all numbers of both files by key, in the order of `NAMES`, others last.

    Intervals come from the file (keys with _low and _high); for other accuracies, they are Wilson's.
    """
    values = evaluation | {f"train.{name}": value for name, value in train.items()}
    # Commits made by older code do not have all keys.
    tested, official = evaluation.get("test_images"), evaluation.get("official_test_images")
    if official == tested:
        values.pop("official_accuracy", None)  # the test accuracy again
    images = {"official_accuracy": official, "train.val_accuracy": validation_images}
    found = []
    for key, value in values.items():
        if not isinstance(value, int | float) or NOT_FIGURES.fullmatch(key):
            continue
        count = tested if TOP.fullmatch(key) else images.get(key)
        interval = None
        if f"{key}_low" in values:
            interval = (values[f"{key}_low"], values[f"{key}_high"])
        elif count:
            interval = wilson(round(value * count), count)
        found.append(Figure(key, _words(key), value, interval))
    order = list(NAMES)
    found.sort(key=lambda figure: _place(order, figure.key))
    return {figure.key: figure for figure in found}


def of_run(run: Results) -> dict[str, Figure]:
    """Return the figures of the run."""
    return figures(run.train, run.evaluation, run.statistics.splits["validation"].images)


def of_last_commit(run: Results) -> dict[str, Figure]:
    """Return the figures of the last commit, or nothing if it has none or they are of other data."""
    if run.committed is None or not _same_data(run):
        return {}
    return figures(*run.committed, validation_images=0)  # not recorded, so no interval


def tiles(run: Results) -> Markup:
    """Return the main figures, shown large at the top."""
    found, before = of_run(run), of_last_commit(run)
    keys = [
        "accuracy",
        "official_accuracy",
        *filter(TOP.fullmatch, found),
        "train.val_accuracy",
        "f1_macro",
        "loss",
        "calibration_error",
    ]
    return join(_tile(found[key], before.get(key)) for key in keys if key in found)


def comparison(run: Results) -> str:
    """Return a sentence that says what the figures are compared with."""
    if run.commit is None:
        return "There is no commit to compare with."
    if run.committed is None:
        return f"The last commit, {run.commit}, has no metrics to compare with."
    if not _same_data(run):
        edition = run.committed[1].get("dataset_edition", "unnamed")
        return f"The last commit, {run.commit}, has metrics of other data: {edition}."
    same = run.committed == (run.train, run.evaluation)
    return f"The last commit is {run.commit}{'; it has the same figures' if same else ''}."


def intervals(run: Results) -> Markup:
    """Return a chart of the figures with an interval, of this run and of the last commit."""
    found, before = of_run(run), of_last_commit(run)
    rows = []
    for key, shown in found.items():
        for when, one in (("this run", shown), ("last commit", before.get(key))):
            if shown.interval is not None and one is not None:
                low, high = one.interval or (one.value, one.value)
                rows.append({"figure": one.name, "run": when, "value": one.value, "low": low, "high": high})
    frame = pd.DataFrame(rows)
    summary = (
        f"On images like the {len(run.labels):,} test images, the accuracy is between "
        f"{_range(found['accuracy'], 'and')}, with 95{SPACE}% confidence."
    )
    formats = {"figure": "", "run": "", "value": ".4f", "low": ".4f", "high": ".4f"}
    title = "Accuracies with 95 % intervals"
    drawing = charts.svg(charts.intervals(frame), f"A point and its interval for each figure. {summary}")
    return figure("intervals", title, summary, drawing, frame_table(title, frame, formats))


def every(run: Results) -> Markup:
    """Return the table of all figures."""
    before = of_last_commit(run)
    rows = []
    for key, shown in of_run(run).items():
        earlier = before.get(key)
        spread = "" if shown.interval is None else "{:.4f} to {:.4f}".format(*shown.interval)
        old, change = ("", "") if earlier is None else (_number(earlier.value), _change(shown, earlier))
        rows.append([shown.name, _number(shown.value), spread, old, change])
    headers = ["", "this run", "95 % interval", *(["last commit", "change"] if before else [])]
    return table("All figures", headers, [row[: len(headers)] for row in rows], "-nnnn"[: len(headers)])


def _words(key: str) -> str:
    if views := VIEWS.fullmatch(key):
        return f"{_words(views[2])}, mean of {views[1]} views"
    if top := TOP.fullmatch(key):
        return NAMES["top"].format(top[1])
    return NAMES.get(key, key.replace("_", " "))


def _place(order: list[str], key: str) -> int:
    key = "top" if TOP.fullmatch(key) else key
    return order.index(key) if key in order else len(order)


def _same_data(run: Results) -> bool:
    return run.committed is not None and run.committed[1].get("dataset_sha256") == run.evaluation["dataset_sha256"]


def _tile(shown: Figure, before: Figure | None) -> Markup:
    parts = [
        element("span", shown.name, class_="name"),
        element("strong", _large(shown)),
        element("span", _range(shown) if shown.interval else "", class_="aside"),
        element("span", f"last commit {_large(before)}" if before else "", class_="aside"),
    ]
    return element("li", join(parts))


def _large(shown: Figure) -> str:
    return percent(shown.value) if "accuracy" in shown.key else f"{shown.value:.3f}"


def _range(shown: Figure, word: str = "to") -> str:
    low, high = shown.interval or (shown.value, shown.value)
    return f"{100 * low:.1f} {word} {100 * high:.1f}{SPACE}%"


def _number(value: float) -> str:
    return _signed(f"{value:.4f}" if isinstance(value, float) else f"{value:,}")


def _change(shown: Figure, before: Figure) -> str:
    difference = shown.value - before.value
    if not difference:
        return "none"
    if shown.key in NEITHER_IS:
        return _signed(f"{difference:+.4f}" if isinstance(difference, float) else f"{difference:+,}")
    better = (difference < 0) == lower_is_better(shown.key)
    return _signed(f"{difference:+.4f}, {'better' if better else 'worse'}")


def _signed(number: str) -> str:
    return number.replace("-", "\N{MINUS SIGN}")
