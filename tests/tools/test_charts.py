"""tools/report/charts.py: the charts, and the numbers in them."""

import re

import numpy as np
import pandas as pd
import pytest

from stages.evaluation import scoring
from tools.report import charts
from tools.report.charts import Spec

HISTORY = pd.DataFrame(
    {
        "epoch": [1, 2, 3],
        "loss": [2.0, 1.0, 0.5],
        "accuracy": [0.3, 0.6, 0.8],
        "val_loss": [1.5, 1.1, 1.2],
        "val_accuracy": [0.4, 0.6, 0.55],
    }
)


def group(drawn: str, kind: str) -> list[str]:
    """Return the contents of the mark groups of a kind, without those of axes and legends."""
    return re.findall(rf'<g class="mark-{kind} role-mark[^>]*>(.*?)</g>', drawn)


def counts(classes: int) -> pd.DataFrame:
    """A confusion table with different counts, including 0."""
    names = [f"class {number}" for number in range(classes)]
    return pd.DataFrame(
        {
            "label": [name for name in names for _ in names],
            "predicted": names * classes,
            "count": range(classes**2),
        }
    )


def words(drawn: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", drawn)


def test_a_chart_fills_the_width_and_has_a_label() -> None:
    drawn = charts.svg({"data": {"values": [{"a": 1}]}, "mark": "point"}, 'from "1" to <2>')
    head = drawn.partition(">")[0]
    assert 'role="img" aria-label="from &quot;1&quot; to &lt;2&gt;" viewBox="0 0 ' in head
    assert " width=" not in head
    assert " height=" not in head


def test_a_name_with_markup_is_text() -> None:
    table = counts(2).replace("class 0", "<script>alert(1)</script>")
    assert "<script" not in charts.svg(charts.confusion(table), "")


@pytest.mark.parametrize(
    "spec",
    [
        charts.curve(HISTORY, "loss", "nats", saved=3, share=False),
        charts.confusion(counts(3)),
        charts.per_class(pd.DataFrame({"class": ["a"], "f1": [0.5], "precision": [0.4], "recall": [0.6]})),
        charts.reliability(scoring.reliability(np.array([0, 1]), np.array([[0.7, 0.3], [1.0, 0.0]]))),
        charts.intervals(pd.DataFrame([{"figure": "a", "run": "b", "value": 0.5, "low": 0.4, "high": 0.6}])),
    ],
)
def test_colors_are_variables_of_the_page(spec: Spec) -> None:
    drawn = charts.svg(spec, "")
    colours = set(re.findall(r'(?:fill|stroke)="([^"]+)"', drawn)) - {"none", "transparent"}
    assert {colour for colour in colours if not colour.startswith("var(--")} <= {"currentColor"}
    assert all('fill="currentColor"' in text or "var(--on-" in text for text in re.findall("<text[^>]*>", drawn))


def test_a_curve_has_a_mark_per_epoch_and_its_series_differ_in_more_than_color() -> None:
    drawn = charts.svg(charts.curve(HISTORY, "accuracy", "share", saved=2, share=True), "")
    lines, marks = "".join(group(drawn, "line")), "".join(group(drawn, "symbol"))
    assert marks.count("<path") == 6
    assert len(set(re.findall(r' d="([^"]+)"', marks))) == 2
    assert lines.count('stroke-dasharray="5,4"') == 1
    assert {"validation", "training"} <= set(words(drawn))


def test_the_vertical_line_is_at_the_epoch_whose_weights_were_saved() -> None:
    def place(saved: int) -> float:
        drawn = charts.svg(charts.curve(HISTORY, "loss", "nats", saved, share=False), "")
        return float(re.findall(r"translate\(([\d.]+)", group(drawn, "rule")[0])[0])

    assert place(1) < place(2) < place(3)


@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 20, 200])
def test_epoch_labels_are_unique(epochs: int) -> None:
    table = pd.concat([HISTORY] * 67, ignore_index=True).head(epochs).assign(epoch=range(1, epochs + 1))
    drawn = charts.svg(charts.curve(table, "loss", "nats", epochs, share=False), "")
    named = re.findall(r"role-axis-label(.*?)</g>", drawn)
    epoch_labels = words(named[0])
    assert epoch_labels
    assert len(set(epoch_labels)) == len(epoch_labels)


def test_small_fractions_have_decimals_on_the_axis() -> None:
    table = HISTORY.assign(accuracy=[0.01, 0.015, 0.02], val_accuracy=[0.01, 0.012, 0.018])
    labels = words(charts.svg(charts.curve(table, "accuracy", "share", 3, share=True), ""))
    assert "1.2%" in labels
    assert len([label for label in labels if label.endswith("%")]) == len({x for x in labels if x.endswith("%")})


def test_the_curves_of_a_long_run_have_no_marks() -> None:
    long = pd.concat([HISTORY] * 20, ignore_index=True).assign(epoch=range(1, 61))
    drawn = charts.svg(charts.curve(long, "loss", "nats", saved=60, share=False), "")
    assert group(drawn, "line")
    assert not group(drawn, "symbol")


def test_the_confusion_matrix_has_every_cell_and_every_count_above_0() -> None:
    drawn = charts.svg(charts.confusion(counts(3)), "")
    assert group(drawn, "rect")[0].count("<path") == 9
    assert words("".join(group(drawn, "text"))) == [str(count) for count in range(1, 9)]


def test_the_shade_of_a_cell_is_its_fraction_of_the_true_class() -> None:
    table = counts(2).assign(count=[995, 5, 60, 940])
    cells = group(charts.svg(charts.confusion(table), ""), "rect")[0]
    assert re.findall(r'fill="var\(--shade-(\d)\)"', cells) == ["5", "0", "2", "5"]


def test_the_row_of_a_class_without_images_is_palest() -> None:
    table = counts(2).assign(count=[0, 0, 1, 1])
    cells = group(charts.svg(charts.confusion(table), ""), "rect")[0]
    assert re.findall(r'fill="var\(--shade-(\d)\)"', cells) == ["0", "0", "4", "4"]


def test_the_matrix_of_many_classes_has_no_numbers() -> None:
    drawn = charts.svg(charts.confusion(counts(charts.MOST_NUMBERED + 1)), "")
    assert group(drawn, "rect")[0].count("<path") == (charts.MOST_NUMBERED + 1) ** 2
    assert not group(drawn, "text")


def test_classes_are_sorted_by_f1_with_its_value() -> None:
    table = pd.DataFrame(
        {"class": ["a", "b", "c"], "f1": [0.5, 0.9, 0.7], "precision": [0.4, 0.8, 0.6], "recall": [0.6, 0.9, 0.8]}
    )
    drawn = charts.svg(charts.per_class(table), "")
    assert [word for word in words(drawn) if word in ("a", "b", "c")] == ["b", "c", "a"]
    assert words("".join(group(drawn, "text"))) == ["0.90", "0.70", "0.50"]
    assert len(set(re.findall(r' d="([^"]+)"', "".join(group(drawn, "symbol"))))) == 2


def test_the_reliability_diagram_has_a_point_for_each_nonempty_bin() -> None:
    probabilities = np.array([[0.55, 0.45], [0.9, 0.1], [0.91, 0.09], [1.0, 0.0]])
    bins = scoring.reliability(np.array([0, 0, 1, 0]), probabilities)
    drawn = charts.svg(charts.reliability(bins), "")
    assert group(drawn, "symbol")[0].count("<path") == (bins["count"] > 0).sum() == 3


def test_a_confidence_of_1_is_in_the_last_bar() -> None:
    bins = scoring.reliability(np.array([0, 0]), np.array([[0.97, 0.03], [1.0, 0.0]]))
    bars = charts.reliability(bins)["vconcat"][1]["data"]["values"]
    assert len(bars) == 15
    assert bars[-1]["count"] == 2
    assert bins["count"].tolist()[-2:] == [1, 1]


@pytest.mark.parametrize("runs", [["this run"], ["this run", "last commit"]])
def test_each_run_has_an_interval_and_a_point(runs: list[str]) -> None:
    rows = [{"figure": "accuracy", "run": run, "value": 0.5, "low": 0.4, "high": 0.6} for run in runs]
    drawn = charts.svg(charts.intervals(pd.DataFrame(rows)), "")
    assert group(drawn, "rule")[0].count("<line") == len(runs)
    marks = group(drawn, "symbol")[0]
    assert len(set(re.findall(r' d="([^"]+)"', marks))) == marks.count("<path") == len(runs)
