"""Reads the last run's outputs, checks that they belong together, and reads the last commit's metrics."""

import hashlib
import json
import subprocess
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.common import params
from stages.common.failure import StageError
from stages.common.figures import flat, parse_figures
from stages.common.records import Source, Statistics, read_record, read_split
from stages.common.splits import Split
from tools.report import experiments
from tools.report.experiments import Experiment

T = TypeVar("T")

# The keys that the report needs in each file of metrics/. Class names such as 7 or NA stay text.
FIGURES = {
    "train": ("accuracy", "loss", "epoch", "parameters", "model_sha256"),
    "evaluation": (
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "loss",
        "calibration_error",
        "f1_macro",
        "model_sha256",
    ),
}
COLUMNS: dict[str, dict[str, type]] = {
    "history": {"epoch": int, "loss": float, "accuracy": float, "val_loss": float, "val_accuracy": float},
    "per_class": {
        "class": str,
        "support": int,
        "predicted": int,
        "precision": float,
        "recall": float,
        "f1": float,
        "roc_auc": float,
    },
    "confusion": {"label": str, "predicted": str, "count": int},
}
VALIDATED = ("val_accuracy", "val_loss")  # not in train.csv and history.csv after a final fit


@dataclass(frozen=True, eq=False)
class Results:
    """One run.

    history, per_class, confusion: the tables of metrics/. labels: int64 (N,), an index into `classes`;
    probabilities: float32 (N, classes); test, training: raw splits, uint8. filters: the first convolution's
    weights, float32 (height, width, channels, filters), or None without one. train_log, evaluate_log: None
    where logs/ was removed. commit: the last one's hash and subject, if there is one; committed: its
    metrics/train.csv and evaluation.csv, if it has both. chosen: the params that the run used; changed:
    dotted keys whose value in params.yaml is another by now. outputs: path, md5 and size of each. experiments: the
    last commit's, and before them itself. robustness: accuracy by corruption and severity, if tools.robustness
    measured this model; labels_audit: counts of suspicious labels, if tools.audit made them with it.
    """

    train: dict[str, Any]
    evaluation: dict[str, Any]
    history: pd.DataFrame
    per_class: pd.DataFrame
    confusion: pd.DataFrame
    statistics: Statistics
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    test: Split
    training: Split
    filters: NDArray[np.float32] | None
    train_log: dict[str, Any] | None
    evaluate_log: dict[str, Any] | None
    commit: str | None
    committed: tuple[dict[str, Any], dict[str, Any]] | None
    chosen: dict[str, Any]
    changed: list[str]
    outputs: list[dict[str, Any]]
    experiments: list[Experiment]
    robustness: dict[str, list[float]] | None
    labels_audit: dict[str, Any] | None

    @property
    def classes(self) -> list[str]:
        """The names, in the order of the labels."""
        return self.statistics.classes


def read(folder: Path) -> Results:
    """Read the run of the checkout at `folder`; raises `StageError` if a file is missing or of another run."""
    metrics, raw, model = folder / "metrics", folder / "data" / "raw", folder / "models" / "model.keras"
    train, evaluation = (_read(metrics / f"{name}.csv", _figures) for name in FIGURES)
    history, per_class, confusion = (_read(metrics / f"{name}.csv", _table) for name in COLUMNS)
    statistics = read_record(folder / "data" / "processed" / "statistics.json", Statistics)
    source = read_record(raw / "source.json", Source)
    test, training = (read_split(raw, name, source) for name in ("test", "train"))
    labels, probabilities = _predictions(folder / "data" / "predictions.csv", statistics.classes)
    archive = _read(model, Path.read_bytes)
    _one_run(folder, train, evaluation, hashlib.sha256(archive).hexdigest(), test, labels, probabilities)
    _read(folder / "dvc.lock", Path.read_bytes)  # first, for a message that names the right fix
    stages = params.read(folder / "dvc.lock")["stages"].values()
    chosen = {
        section: choices
        for stage in stages
        for section, choices in stage.get("params", {}).get("params.yaml", {}).items()
    }
    return Results(
        train=train,
        evaluation=evaluation,
        history=history,
        per_class=per_class,
        confusion=confusion,
        statistics=statistics,
        labels=labels,
        probabilities=probabilities,
        test=test,
        training=training,
        filters=first_filters(archive),
        train_log=_log(folder / "logs" / "train.json"),
        evaluate_log=_log(folder / "logs" / "evaluate.json"),
        commit=_git(folder, "log", "-1", "--format=%h (%s)"),
        committed=_committed(folder),
        chosen=chosen,
        changed=differing(chosen, params.read(folder / "params.yaml")),
        outputs=[out for stage in stages for out in stage["outs"]],
        experiments=experiments.read(folder),
        robustness=_robustness(folder / "robustness" / "accuracy.json", train["model_sha256"]),
        labels_audit=_labels_audit(folder / "audit" / "labels.json", train["model_sha256"]),
    )


def first_filters(archive: bytes) -> NDArray[np.float32] | None:
    """Return the weights of the first convolution in a .keras file, without importing TensorFlow."""
    import h5py  # slow to import, so only after the checks above

    with zipfile.ZipFile(BytesIO(archive)) as members, members.open("model.weights.h5") as file:
        # Keras numbers the layers of a class in the order of the network: conv2d, conv2d_1 and so on.
        content = h5py.File(BytesIO(file.read()))
        # The second place is in the backbone of a pretrained network.
        weights = content.get("layers/conv2d/vars/0") or content.get("layers/functional/layers/conv2d/vars/0")
        return None if weights is None else weights[()]


def differing(used: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the dotted keys whose values differ, sorted."""
    ours, theirs = flat(used), flat(now)
    return sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))


def _read(path: Path, reader: Callable[[Path], T]) -> T:
    try:
        return reader(path)
    except FileNotFoundError:
        raise StageError(f"{path}: no such file; run: dvc repro") from None
    except ValueError as error:  # truncated, or with git's conflict markers
        raise StageError(f"{path}: not what a stage writes ({str(error).strip()}); run: dvc repro") from None


def _json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_bytes())
    if not isinstance(content, dict):
        raise ValueError("an object is expected")
    return content


def _figures(path: Path) -> dict[str, Any]:
    figures = parse_figures(path.read_bytes(), str(path))
    if missing := [name for name in FIGURES[path.stem] if name not in figures]:
        raise ValueError(f"{missing[0]} is missing")
    return figures


def _table(path: Path) -> pd.DataFrame:
    columns = COLUMNS[path.stem]
    table = pd.read_csv(path, dtype=columns, usecols=columns.__contains__, na_filter=False)
    if missing := [name for name in columns if name not in table and name not in VALIDATED]:
        raise ValueError(f"{missing[0]} is missing")
    if table.empty:
        raise ValueError("no row in it")
    return table


def _predictions(path: Path, classes: list[str]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    columns = [f"probability_{name}" for name in classes]
    types: dict[str, Any] = {"label": str, "prediction": str, **dict.fromkeys(columns, np.float32)}
    table = _read(path, lambda path: pd.read_csv(path, dtype=types, na_filter=False))
    numbers = {name: number for number, name in enumerate(classes)}
    try:
        labels = np.array([numbers[name] for name in table["label"]], dtype=np.int64)
        return labels, table[columns].to_numpy(dtype=np.float32)
    except KeyError as error:
        raise StageError(f"{path}: no class or column {error} in it; run: dvc repro") from None


def _one_run(
    folder: Path,
    train: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    model_sha256: str,
    test: Split,
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float32],
) -> None:
    """Raise `StageError` unless figures, model, predictions and pictures belong together."""
    for name, figures in (("train", train), ("evaluation", evaluation)):
        if figures["model_sha256"] != model_sha256:
            raise StageError(
                f"{folder / 'metrics' / name}.csv describes model {figures['model_sha256'][:12]}, but "
                f"models/model.keras is {model_sha256[:12]}; run: dvc repro"
            )
    accuracy = float((probabilities.argmax(axis=1) == labels).mean())
    if not np.array_equal(labels, test.labels) or accuracy != evaluation["accuracy"]:
        raise StageError(
            f"{folder / 'data' / 'predictions.csv'}: {len(labels):,} rows with accuracy {accuracy:.4f} are not "
            f"those of metrics/evaluation.csv and data/raw/test.npz; run: dvc repro"
        )


def _robustness(path: Path, model_sha256: str) -> dict[str, list[float]] | None:
    content = _log(path)
    measured = content is not None and content["run"]["identity"].startswith(model_sha256)
    return content["accuracy"] if content and measured else None


def _labels_audit(path: Path, model_sha256: str) -> dict[str, Any] | None:
    content = _log(path)
    return content if content and content.get("model_sha256") == model_sha256 else None


def _log(path: Path) -> dict[str, Any] | None:
    return _read(path, _json) if path.exists() else None


def _committed(folder: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    train, evaluation = (_committed_figures(folder, f"metrics/{name}.csv") for name in FIGURES)
    return None if train is None or evaluation is None else (train, evaluation)


def _committed_figures(folder: Path, name: str) -> dict[str, Any] | None:
    content = _git(folder, "show", f"HEAD:./{name}")
    return None if content is None else parse_figures(content.encode(), f"{name} of the last commit")


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints; None where there is no git, no commit or no such file in it."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, encoding="utf-8", check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
