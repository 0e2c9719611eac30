"""What train records of a finished run: the table of its epochs, its figures, and the record of its model."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from stages.common.figures import write_figures
from stages.common.outputs import write_json, write_table
from stages.common.records import ModelRecord, Origin, Statistics

METRICS = ("val_accuracy", "val_loss")  # the figures that DVC shows, none after a final fit


def write_results(
    model: Path,
    history: Path,
    metrics: Path,
    record: ModelRecord,
    epochs: Sequence[dict[str, float]],
    first: int,
    saved: int,
) -> None:
    """Write the record beside the model, the table of epochs to `history`, and the figures to `metrics`.

    epochs: the figures of each, after `first` epochs of an earlier run; saved: the one whose weights the model
    has, counted from 0.
    """
    write_json(model.with_suffix(".json"), record.model_dump(exclude_none=True))
    write_table(history, history_table(epochs, first))
    write_figures(metrics, training_figures(record, epochs[saved]), METRICS)


def history_table(history: Sequence[dict[str, float]], first: int = 0) -> pd.DataFrame:
    """Return a row for each epoch, counted from 1 in the column epoch, after `first` epochs of an earlier run."""
    table = pd.DataFrame(history)
    table.insert(0, "epoch", range(first + 1, first + len(history) + 1))
    return table


def model_record(
    path: Path,
    parameters: int,
    saved: int,
    statistics: Statistics,
    origin: Origin | None,
    class_weights: dict[str, float] | None = None,
) -> ModelRecord:
    """Return the record of the model at `path`, which has the weights of epoch `saved`, counted from 0."""
    return ModelRecord(
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        dataset=statistics.dataset,
        classes=statistics.classes,
        decoding=statistics.picture_rules,
        scaling=statistics.scaling,
        mean=statistics.mean,
        std=statistics.std,
        epoch=saved + 1,
        parameters=parameters,
        origin=origin,
        class_weights=class_weights,
    )


def training_figures(model: ModelRecord, row: dict[str, float]) -> dict[str, Any]:
    """Return the figures of metrics/train.csv; `row`: those of the epoch whose weights were saved."""
    return {
        **row,
        "epoch": model.epoch,
        "parameters": model.parameters,
        "dataset": model.dataset.name,
        "model_sha256": model.sha256,
    }
