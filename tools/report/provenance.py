"""Tables of what the run used: splits, params, machine and hashes."""

from collections.abc import Iterator, Mapping
from typing import Any

from tools.report.markup import Markup, element, join, table
from tools.report.results import Results

# In this order they fill three columns evenly.
SECTIONS = ("dataset", "preprocess", "model", "runtime", "train", "evaluate")


def splits(run: Results) -> Markup:
    """Return the number of images of each class in each split."""
    found = {name: run.statistics.splits[name] for name in ("train", "validation", "test")}
    rows = [
        [name, *(f"{split.class_counts[number]:,}" for split in found.values())]
        for number, name in enumerate(run.classes)
    ]
    rows.append(["all", *(f"{split.images:,}" for split in found.values())])
    rows.append(["of these, as published", *(f"{split.official:,}" for split in found.values())])
    return table("Images of each class", ["", *found], rows, "-nnn")


def changed(run: Results) -> Markup:
    """Return a warning if params.yaml has changed since the run."""
    if not run.changed:
        return Markup("")
    keys = ", ".join(run.changed)
    return element("p", f"params.yaml has changed since: {keys}. To run with it: dvc repro", class_="note")


def params(run: Results) -> Markup:
    """Return the params of the run, one table per section."""
    return join(
        element("div", table(section, ["key", "value"], _flat(run.chosen[section])), class_="card")
        for section in SECTIONS
    )


def machine(run: Results) -> Markup:
    """Return duration, machine and versions from logs/, with a note for each missing file."""
    logs = {"train": run.train_log, "evaluate": run.evaluate_log}
    parts = [
        element("p", f"logs/{name}.json is not there: it stays on the machine that ran.", class_="note")
        for name, log in logs.items()
        if log is None
    ]
    present = {name: dict(_flat(_timed(log))) for name, log in logs.items() if log is not None}
    if present:
        keys = dict.fromkeys(key for log in present.values() for key in log)
        rows = [[key, *(log.get(key, "") for log in present.values())] for key in keys]
        parts.append(table("Duration, machine, versions", ["", *present], rows))
    return join(parts)


def hashes(run: Results) -> Markup:
    """Return the hashes of the contents, and of the files that DVC tracks."""
    splits = run.statistics.splits.items()
    rows = [
        ["the dataset", "", "SHA-256", run.statistics.dataset.sha256],
        ["the model", "", "SHA-256", run.evaluation["model_sha256"]],
        *([f"the arrays of {name}", "", "SHA-256", split.sha256] for name, split in splits),
        *([out["path"], f"{out['size']:,}", "MD5", out["md5"]] for out in run.outputs),
    ]
    return table("Hashes", ["of", "bytes", "", ""], rows, "-n-c")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for number, item in enumerate(value):
                yield f"{prefix}{key}[{number}]", ", ".join(f"{name} {setting}" for name, setting in item.items())
        else:
            yield prefix + key, str(value).lower() if isinstance(value, bool) else str(value)


def _timed(log: Mapping[str, Any]) -> dict[str, Any]:
    minutes, seconds = divmod(log["duration_seconds"], 60)
    words = f"{minutes:.0f} min {seconds:.0f} s" if minutes else f"{seconds:.1f} s"
    return {"duration": words, **{key: value for key, value in log.items() if key != "duration_seconds"}}
