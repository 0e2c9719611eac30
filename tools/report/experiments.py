"""A table of the last commit's experiments from `dvc exp show`: the params they changed, and their figures."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.common.failure import StageError
from stages.common.figures import flat
from tools.report.markup import Markup, element, join, table

# Validation comes first, because it decides which experiment is best.
CHOSEN_BY = "validation accuracy"
FIGURES = {
    CHOSEN_BY: ("metrics/train.json", "val_accuracy"),
    "validation loss": ("metrics/train.json", "val_loss"),
    "test accuracy": ("metrics/evaluation.json", "accuracy"),
}


@dataclass(frozen=True)
class Experiment:
    """A row. state: done, failed, running or queued. params: by dotted key; figures: by name, if done."""

    name: str
    state: str
    params: dict[str, Any]
    figures: dict[str, float]


def read(folder: Path) -> list[Experiment]:
    """Return the last commit and its experiments, or nothing without any; raises `StageError` if DVC fails."""
    if not _has_some(folder):
        return []
    command = [sys.executable, "-m", "dvc", "exp", "show", "--json"]
    shown = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", check=False)
    if shown.returncode:
        reason = (shown.stderr.strip() or "no reason given").splitlines()[-1]
        raise StageError(f"{folder}: the experiments cannot be read ({reason}); see what says: dvc exp show")
    _, commit, *_ = json.loads(shown.stdout)  # the first is the workspace
    if not commit["experiments"]:
        return []
    found = [_experiment("the last commit", "done", commit["data"])]
    for row in commit["experiments"]:
        newest = row["revs"][0]
        # DVC records a state for queued experiments only; the others are listed because they are done.
        state = (row["executor"] or {}).get("state", "success").replace("success", "done")
        found.append(_experiment(row["name"] or newest["rev"][:7], state, newest["data"]))
    return found


def section(experiments: Sequence[Experiment]) -> Markup:
    """Return the section, sorted by validation accuracy; empty without experiments."""
    if not experiments:
        return Markup("")
    keys = changed(experiments)
    rows = [
        [
            one.name,
            one.state,
            *(_text(one.params[key]) if key in one.params else "" for key in keys),
            *(f"{one.figures[name]:.4f}" if name in one.figures else "" for name in FIGURES),
        ]
        for one in sorted(experiments, key=lambda one: one.figures.get(CHOSEN_BY, -1), reverse=True)
    ]
    kinds = "--" + "n" * (len(keys) + len(FIGURES))
    parts = [
        element("h2", "Experiments"),
        element("p", "Sorted by validation accuracy, with the params in which they differ."),
        element(
            "div",
            table("Experiments of the last commit", ["", "state", *keys, *FIGURES], rows, kinds),
            class_="card stack",
        ),
    ]
    return element("section", join(parts), id="experiments")


def link(experiments: Sequence[Experiment]) -> Markup:
    """Return the section's entry in the navigation."""
    return element("li", element("a", "Experiments", href="#experiments")) if experiments else Markup("")


def changed(experiments: Sequence[Experiment]) -> list[str]:
    """Return the dotted keys whose values differ between experiments, in the order of params.yaml."""
    keys = dict.fromkeys(key for one in experiments for key in one.params)
    return [
        key for key in keys if any(one.params.get(key) != experiments[0].params.get(key) for one in experiments)
    ]


def _experiment(name: str, state: str, data: Mapping[str, Any]) -> Experiment:
    figures = {}
    # For experiments that are not done, DVC lists the figures of the commit.
    for key, (path, metric) in FIGURES.items() if state == "done" else ():
        value = data["metrics"].get(path, {}).get("data", {}).get(metric)
        if value is not None:
            figures[key] = float(value)
    params = data["params"].get("params.yaml", {}).get("data", {})
    return Experiment(name, state, flat(params), figures)


def _has_some(folder: Path) -> bool:
    """Ask git, because DVC takes two seconds; only at the top level, because demo/ is inside another checkout."""
    asked = []
    for command in ("rev-parse --show-prefix", "for-each-ref --count=1 refs/exps"):
        try:
            done = subprocess.run(["git", *command.split()], cwd=folder, capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return False
        asked.append(done.stdout.strip())
    return not asked[0] and bool(asked[1])


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
