"""The report's charts: tables in, Vega-Lite specifications out, and `svg` to draw one without a browser.

Colours are CSS variables of tools/report/report.html, so that one drawing serves light and dark;
and colour never stands alone: series differ in shape and dash too, and values are written out.
"""

import html
import re
from typing import Any

import pandas as pd
import vl_convert

from stages.evaluation.scoring import wilson

Spec = dict[str, Any]

WIDTH = 350  # pixels, about a phone's, so that text keeps a readable size there
SHARES = [0, 0.01, 0.05, 0.1, 0.5, 0.8, 1.01]  # where the confusion matrix changes its shade
SHADES = ["under 1 %", "1 to 5 %", "5 to 10 %", "10 to 50 %", "50 to 80 %", "80 % and more"]
MOST_NUMBERED = 30  # classes whose confusion matrix has room for a number in a cell
MOST_MARKED = 40  # epochs whose curve has room for a mark at each
POINT: Spec = {"type": "point", "filled": True, "opacity": 1}

CONFIG: Spec = {
    "aria": False,  # the whole picture has one text, and its numbers a table beside it
    "background": None,
    "font": "Arial, sans-serif",  # as the page has it: letters of the width that the layout reckons with
    "padding": 6,
    "view": {"stroke": None},
    "axis": {
        "domainColor": "var(--line)",
        "gridColor": "var(--line)",
        "labelColor": "currentColor",
        "labelFontSize": 12,
        "labelLimit": 120,
        "ticks": False,
        "labelPadding": 6,
        "titleColor": "currentColor",
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 8,
    },
    "legend": {
        "orient": "top",
        "title": None,
        "labelColor": "currentColor",
        "labelFontSize": 12,
        "symbolSize": 80,
        "symbolStrokeWidth": 0,
        "columnPadding": 16,
        "titleColor": "currentColor",
        "titleFontSize": 12,
        "titleFontWeight": "normal",
    },
    "text": {"color": "currentColor", "fontSize": 12},
}


def svg(spec: Spec, label: str) -> str:
    """Return the drawing as an SVG element for a page, as wide as its surroundings, that `label` describes."""
    sized = {"autosize": {"type": "fit-x", "contains": "padding"}, **spec, "config": CONFIG}
    drawn: str = vl_convert.vegalite_to_svg(sized)
    width, height = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawn)[0]
    # Wider pictures than a phone scroll in their frame; they would be too small to read when squeezed.
    head = (
        f'<svg role="img" aria-label="{html.escape(label)}" viewBox="0 0 {width} {height}" '
        f'style="min-width:{0.72 * float(width):.0f}px"'
    )
    return re.sub(r"<svg [^>]*", head, drawn, count=1)


def intervals(rows: pd.DataFrame) -> Spec:
    """Figures (columns figure, run, value, low, high) as points with intervals, one mark and line per run."""
    runs = list(dict.fromkeys(rows["run"]))
    look = {"field": "run", "type": "nominal", "sort": None}
    return {
        "data": {"values": rows.to_dict("records")},
        "width": WIDTH,
        "height": {"step": 18 if len(runs) > 1 else 30},
        "encoding": {
            "y": {"field": "figure", "type": "nominal", "sort": None, "title": None, "axis": {"labelLimit": 170}},
            "yOffset": look,
            "color": {
                **look,
                "scale": {"domain": runs, "range": ["var(--validation)", "var(--training)"][: len(runs)]},
            },
        },
        "layer": [
            {
                "mark": {"type": "rule", "strokeWidth": 2},
                "encoding": {
                    "x": {
                        "field": "low",
                        "type": "quantitative",
                        "title": "accuracy",
                        "scale": {"zero": False, "nice": True},
                        "axis": {"format": ".1~%", "tickCount": 5},
                    },
                    "x2": {"field": "high"},
                },
            },
            {
                "mark": {**POINT, "size": 80},
                "encoding": {
                    "x": {"field": "value", "type": "quantitative"},
                    "shape": {**look, "scale": {"domain": runs, "range": ["circle", "diamond"][: len(runs)]}},
                },
            },
        ],
    }


def curve(history: pd.DataFrame, measure: str, title: str, saved: int, share: bool) -> Spec:
    """A measure of the training and the validation images by epoch, with the epoch whose weights were saved."""
    names = {f"val_{measure}": "validation", measure: "training"}
    names = {column: name for column, name in names.items() if column in history}  # a final fit has no validation
    long = history.rename(columns=names).melt("epoch", list(names.values()), var_name="images")
    domain = list(names.values())
    look = {"field": "images", "type": "nominal", "sort": None}
    dashes, shapes = {"validation": [1, 0], "training": [5, 4]}, {"validation": "circle", "training": "square"}
    dash = {**look, "scale": {"domain": domain, "range": [dashes[name] for name in domain]}}
    shape = {**look, "scale": {"domain": domain, "range": [shapes[name] for name in domain]}}
    marks = [{"mark": {**POINT, "size": 40}, "encoding": {"shape": shape}}]
    return {
        "data": {"values": long.to_dict("records")},
        "width": WIDTH,
        "height": 240,
        "encoding": {
            "x": {
                "field": "epoch",
                "type": "quantitative",
                "title": "epoch",
                "scale": {"zero": False, "nice": False},
                "axis": {"format": "d", "tickCount": min(6, max(1, len(history) - 1)), "grid": False},
            },
            "y": {
                "field": "value",
                "type": "quantitative",
                "title": title,
                "scale": {"zero": False},
                "axis": {"format": ".1~%" if share else "~g", "tickCount": 5},
            },
            "color": {**look, "scale": {"domain": domain, "range": [f"var(--{name})" for name in domain]}},
        },
        "layer": [
            {
                "data": {"values": [{"epoch": saved}]},
                "mark": {"type": "rule", "strokeWidth": 1, "color": "currentColor", "opacity": 0.45},
                "encoding": dict.fromkeys(["y", "color"]),
            },
            {"mark": {"type": "line", "strokeWidth": 2}, "encoding": {"strokeDash": dash}},
            *(marks if len(history) <= MOST_MARKED else []),
        ],
    }


def confusion(table: pd.DataFrame) -> Spec:
    """Counts (columns label, predicted, count) in cells shaded by the fraction of the true class."""
    classes = list(dict.fromkeys(table["label"]))
    totals = table.groupby("label")["count"].transform("sum")
    share = table["count"] / totals.where(totals > 0, 1)
    shade = pd.cut(share, SHARES, right=False, labels=SHADES).astype(str)
    cell = 30 if len(classes) <= 12 else 24
    look = {"field": "shade", "type": "nominal", "sort": None}
    numbers: Spec = {
        "transform": [{"filter": "datum.count > 0"}],
        "mark": {"type": "text", "fontSize": 12 if cell == 30 else 9},
        "encoding": {
            "text": {"field": "count", "type": "quantitative"},
            "color": {**look, "legend": None, "scale": _shades("--on")},
        },
    }
    return {
        "data": {"values": table.assign(shade=shade).to_dict("records")},
        "autosize": "pad",
        "width": {"step": cell},
        "height": {"step": cell},
        "resolve": {"scale": {"color": "independent"}},
        "encoding": {
            "x": {
                "field": "predicted",
                "type": "nominal",
                "sort": None,
                "title": "predicted class",
                "axis": {"labelAngle": -45, "labelLimit": 90},
            },
            "y": {
                "field": "label",
                "type": "nominal",
                "sort": None,
                "title": "true class",
                "axis": {"labelLimit": 90},
            },
        },
        "layer": [
            {
                "mark": {"type": "rect", "stroke": "var(--card)", "strokeWidth": 1.5},
                "encoding": {
                    "color": {
                        **look,
                        "scale": _shades("--shade"),
                        "legend": {
                            "orient": "bottom",
                            "title": "fraction of the true class",
                            "titleLimit": 300,
                            "columns": 3,
                            "symbolType": "square",
                            "symbolSize": 200,
                            "symbolStrokeWidth": 1,
                            "symbolStrokeColor": "var(--line)",
                        },
                    }
                },
            },
            *([numbers] if len(classes) <= MOST_NUMBERED else []),
        ],
    }


def per_class(table: pd.DataFrame) -> Spec:
    """F1 of each class as bars, the best first, with precision and recall as marks."""
    ordered = table.sort_values("f1", ascending=False, kind="stable")
    names = ["F1", "precision", "recall"]
    long = ordered.rename(columns={"f1": "F1"}).melt("class", names, var_name="measure")
    look = {"field": "measure", "type": "nominal", "sort": None}
    return {
        "data": {"values": long.to_dict("records")},
        "width": WIDTH,
        "height": {"step": 30},
        "encoding": {
            "y": {"field": "class", "type": "nominal", "sort": None, "title": None},
            "x": {
                "field": "value",
                "type": "quantitative",
                "title": "share, with F1 in figures",
                "scale": {"domain": [0, 1]},
                "axis": {"format": ".0%", "values": [0, 0.25, 0.5, 0.75, 1]},
            },
        },
        "layer": [
            {
                "transform": [{"filter": "datum.measure == 'F1'"}],
                "mark": {"type": "bar", "color": "var(--bar)", "height": {"band": 0.62}},
            },
            {
                "mark": {**POINT, "size": 60},
                "transform": [{"filter": "datum.measure != 'F1'"}],
                "encoding": {
                    "color": {
                        **look,
                        "scale": {"domain": names[1:], "range": ["var(--training)", "var(--validation)"]},
                    },
                    "shape": {**look, "scale": {"domain": names[1:], "range": ["triangle-up", "circle"]}},
                },
            },
            {
                "transform": [{"filter": "datum.measure == 'F1'"}],
                "mark": {"type": "text", "align": "left", "dx": 8},
                "encoding": {"x": {"value": "width"}, "text": {"field": "value", "format": ".2f"}},
            },
        ],
    }


def reliability(table: pd.DataFrame) -> Spec:
    """Accuracy against confidence, with 95 % intervals, over how many predictions are that confident.

    The table is `stages.evaluation.scoring.reliability`'s; empty bins are left out.
    """
    filled = table[table["count"] > 0]
    hits = (filled["accuracy"] * filled["count"]).round().astype(int)
    bounds = [wilson(right, count) for right, count in zip(hits, filled["count"], strict=True)]
    points = filled.assign(bottom=[low for low, _ in bounds], top=[high for _, high in bounds])
    # A confidence of exactly 1 has a separate row; its bar is part of the last bin.
    counts = table.iloc[:-1].copy()
    counts.loc[counts.index[-1], "count"] += table["count"].iloc[-1]
    axis: Spec = {"scale": {"domain": [0, 1]}, "type": "quantitative"}
    ticks: Spec = {"format": ".0%", "values": [0, 0.2, 0.4, 0.6, 0.8, 1]}
    width = WIDTH - 70
    return {
        "autosize": "pad",
        "spacing": 14,
        "vconcat": [
            {
                "width": width,
                "height": 260,
                "data": {"values": points.to_dict("records")},
                "encoding": {
                    "x": {"field": "confidence", **axis, "title": None, "axis": {**ticks, "labels": False}}
                },
                "layer": [
                    {
                        "data": {"values": [{"from": 0, "to": 1}]},
                        "mark": {"type": "rule", "strokeDash": [5, 4], "color": "currentColor", "opacity": 0.6},
                        "encoding": {
                            "x": {"field": "from", **axis},
                            "y": {"field": "from", **axis, "title": "accuracy", "axis": ticks},
                            "x2": {"field": "to"},
                            "y2": {"field": "to"},
                        },
                    },
                    {
                        "mark": {"type": "rule", "strokeWidth": 2, "color": "var(--validation)"},
                        "encoding": {
                            "y": {"field": "bottom", **axis, "title": "accuracy"},
                            "y2": {"field": "top"},
                        },
                    },
                    {
                        "mark": {**POINT, "size": 60, "color": "var(--validation)"},
                        "encoding": {"y": {"field": "accuracy", **axis}},
                    },
                ],
            },
            {
                "width": width,
                "height": 70,
                "data": {"values": counts.to_dict("records")},
                "mark": {"type": "bar", "color": "var(--bar)", "binSpacing": 2},
                "encoding": {
                    "x": {
                        "field": "low",
                        "bin": "binned",
                        "type": "quantitative",
                        "scale": {"domain": [0, 1]},
                        "title": "confidence, the probability of the predicted class",
                        "axis": ticks,
                    },
                    "x2": {"field": "high"},
                    "y": {"field": "count", "type": "quantitative", "title": "images", "axis": {"tickCount": 3}},
                },
            },
        ],
    }


def _shades(variable: str) -> Spec:
    return {"domain": SHADES, "range": [f"var({variable}-{number})" for number in range(len(SHADES))]}
