"""The report's charts on the page: each with a title, a sentence that says what it shows, and its numbers."""

from typing import Any

from stages.evaluation import scoring
from tools.report import charts
from tools.report.markup import Markup, element, figure, frame_table, join, percent, table
from tools.report.results import Results

MOST_NOTES = 3  # in view; more of them open on demand


def curves(run: Results) -> Markup:
    """Return accuracy and loss by epoch."""
    highest, lowest = run.history["val_accuracy"].argmax(), run.history["val_loss"].argmin()
    return join(
        [
            _curve(run, "accuracy", "Accuracy by epoch", "share of images", "highest", highest),
            _curve(run, "loss", "Loss by epoch", "cross-entropy (nats)", "lowest", lowest),
        ]
    )


def confusion(run: Results) -> Markup:
    """Return the confusion matrix."""
    worst = scoring.most_confused(run.labels, run.probabilities.argmax(axis=1), run.classes, most=3)
    mistakes = zip(worst["label"], worst["predicted"], worst["count"], strict=True)
    pairs = [f"{label} taken for {predicted} ({count})" for label, predicted, count in mistakes]
    summary = f"Most often: {', '.join(pairs)}." if pairs else "No image is taken for another class."
    counts = run.confusion["count"].to_numpy().reshape(len(run.classes), -1)
    rows = [[name, *map(str, line)] for name, line in zip(run.classes, counts, strict=True)]
    title = "What is taken for what"
    numbers = table("Images of each true class, by prediction", ["", *run.classes], rows, "-" + "n" * len(rows))
    drawing = charts.svg(charts.confusion(run.confusion), f"A matrix of true and predicted classes. {summary}")
    return figure("confusion", title, summary, drawing, numbers)


def per_class(run: Results) -> Markup:
    """Return precision, recall and F1 of each class."""
    ordered = run.per_class.sort_values("f1", ascending=False, kind="stable")
    best, worst = ordered.iloc[0], ordered.iloc[-1]
    summary = f"Best: {best['class']}, F1 {best['f1']:.3f}. Worst: {worst['class']}, F1 {worst['f1']:.3f}."
    shares = dict.fromkeys(["precision", "recall", "f1", "roc_auc"], ".4f")
    numbers = frame_table("Each class", run.per_class, {"class": "", "support": "", "predicted": "", **shares})
    drawing = charts.svg(charts.per_class(run.per_class), f"Bars, a class each. {summary}")
    return figure("per-class", "How well each class is recognised", summary, drawing, numbers)


def reliability(run: Results) -> Markup:
    """Return the reliability diagram."""
    bins = scoring.reliability(run.labels, run.probabilities)
    confidence, accuracy = float(run.probabilities.max(axis=1).mean(dtype=float)), run.evaluation["accuracy"]
    summary = (
        f"Its predictions have a probability of {percent(confidence)} on average, and {percent(accuracy)} of them "
        f"are right: it claims {'more' if confidence > accuracy else 'less'} than it keeps. A point on the dashed "
        "line would keep exactly what it claims."
    )
    formats = {"low": ".3f", "high": ".3f", "count": "", "confidence": ".4f", "accuracy": ".4f"}
    numbers = frame_table("The bins that are not empty", bins[bins["count"] > 0], formats)
    drawing = charts.svg(charts.reliability(bins), f"Accuracy by confidence, over counts of images. {summary}")
    return figure("reliability", "Accuracy by confidence", summary, drawing, numbers)


def notes(run: Results) -> Markup:
    """Return what has to be said of metrics that divide by nothing."""
    lines = scoring.notes(run.labels, run.probabilities.argmax(axis=1), run.classes)
    shown = join(element("p", line, class_="note") for line in lines)
    if len(lines) <= MOST_NOTES:
        return shown
    return element("details", join([element("summary", f"{len(lines)} notes on figures that are 0"), shown]))


def _curve(run: Results, measure: str, title: str, axis: str, best: str, row: Any) -> Markup:
    share = measure == "accuracy"
    write = percent if share else "{:.3f}".format
    saved = int(run.train["epoch"])
    summary = (
        f"{best.capitalize()} on the validation images in epoch {run.history['epoch'][row]}: "
        f"{write(run.history[f'val_{measure}'][row])}. The weights are of epoch {saved}, the upright line: "
        f"{write(run.train[f'val_{measure}'])} there, and {write(run.train[measure])} on the training images."
    )
    drawing = charts.svg(charts.curve(run.history, measure, axis, saved, share), f"Two curves. {summary}")
    numbers = frame_table(title, run.history, {"epoch": "", measure: ".4f", f"val_{measure}": ".4f"})
    return figure(f"curve-{measure}", title, summary, drawing, numbers)
