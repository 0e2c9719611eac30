"""The charts of the report, each with a title, a one-sentence summary and a table of its numbers."""

from stages.evaluation import scoring
from tools.report import charts
from tools.report.markup import Markup, element, figure, frame_table, join, percent, table
from tools.report.results import Results

MOST_BARS = 50  # classes with a bar, where there are more than `scoring.MOST_PAIRED`


def curves(run: Results) -> Markup:
    """Return accuracy and loss by epoch."""
    return join(
        [
            _curve(run, "accuracy", "Accuracy by epoch", "accuracy", "highest"),
            _curve(run, "loss", "Loss by epoch", "cross-entropy (nats)", "lowest"),
        ]
    )


def curves_note(run: Results) -> str:
    """Return how to read the curves."""
    if "val_loss" not in run.history:
        return (
            "A final fit on all training images (preprocess.validation_fraction: 0), so there are no validation "
            "figures. Training figures are averages over the epoch, with dropout."
        )
    return (
        "Training figures are averages over the epoch, with dropout, so they can be worse than the validation "
        "figures."
    )


def confusion(run: Results) -> Markup:
    """Return the confusion matrix, or the most frequent mistakes where it would be too large."""
    worst = scoring.most_confused(run.labels, run.probabilities.argmax(axis=1), run.classes, most=MOST_BARS)
    mistakes = zip(worst["label"], worst["predicted"], worst["count"], strict=True)
    pairs = [f"{label} predicted as {predicted} ({count})" for label, predicted, count in mistakes][:3]
    summary = f"Most often: {', '.join(pairs)}." if pairs else "No image is misclassified."
    if len(run.classes) > scoring.MOST_PAIRED:
        numbers = frame_table("Images by true class and prediction", worst, dict.fromkeys(worst.columns, ""))
        return figure("confusion", "Most frequent mistakes", summary, "", numbers)
    counts = run.confusion["count"].to_numpy().reshape(len(run.classes), -1)
    rows = [[name, *map(str, line)] for name, line in zip(run.classes, counts, strict=True)]
    title = "Confusion matrix"
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
    title, words, shown = "F1 score of each class", "A bar for each class.", ordered
    if len(run.classes) > scoring.MOST_PAIRED:
        title, words = f"F1 score of the {MOST_BARS} worst classes", f"A bar for each of {MOST_BARS} classes."
        shown = ordered.tail(MOST_BARS)
    drawing = charts.svg(charts.per_class(shown), f"{words} {summary}")
    return figure("per-class", title, summary, drawing, numbers)


def reliability(run: Results) -> Markup:
    """Return the reliability diagram."""
    bins = scoring.reliability(run.labels, run.probabilities)
    confidence, accuracy = float(run.probabilities.max(axis=1).mean(dtype=float)), run.evaluation["accuracy"]
    summary = (
        f"The mean probability of the predictions is {percent(confidence)}, the accuracy {percent(accuracy)}: the "
        f"network is {'over' if confidence > accuracy else 'under'}confident. Points on the dashed line are "
        "perfectly calibrated."
    )
    formats = {"low": ".3f", "high": ".3f", "count": "", "confidence": ".4f", "accuracy": ".4f"}
    numbers = frame_table("Non-empty bins", bins[bins["count"] > 0], formats)
    drawing = charts.svg(charts.reliability(bins), f"Accuracy by confidence, above a histogram of it. {summary}")
    return figure("reliability", "Accuracy by confidence", summary, drawing, numbers)


def notes(run: Results) -> Markup:
    """Return notes on metrics that are 0 because they are undefined."""
    lines = scoring.notes(run.labels, run.probabilities.argmax(axis=1), run.classes)
    return join(element("p", line, class_="note") for line in lines)


def _curve(run: Results, measure: str, title: str, axis: str, best: str) -> Markup:
    share = measure == "accuracy"
    write = percent if share else "{:.3f}".format
    saved, validated = int(run.train["epoch"]), f"val_{measure}"
    summary = f"The saved weights are from epoch {saved} (vertical line): "
    formats = {"epoch": "", measure: ".4f"}
    if validated in run.history:
        values = run.history[validated]
        row = values.argmax() if best == "highest" else values.argmin()
        summary = (
            f"{best.capitalize()} on the validation images in epoch {run.history['epoch'][row]}: "
            f"{write(values[row])}. {summary}{write(run.train[validated])}, and "
        )
        formats[validated] = ".4f"
    summary += f"{write(run.train[measure])} on the training images."
    drawing = charts.svg(charts.curve(run.history, measure, axis, saved, share), f"By epoch. {summary}")
    numbers = frame_table(title, run.history, formats)
    return figure(f"curve-{measure}", title, summary, drawing, numbers)
