"""Read the metrics and predictions of a run: of a git revision, a DVC experiment or the workspace."""

import io
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dvc.api
import numpy as np
import pandas as pd
from dvc.exceptions import DvcException, PathMissingError
from numpy.typing import NDArray

from stages.common.failure import StageError
from stages.common.figures import parse_figures
from stages.evaluation import scoring
from stages.evaluation.scoring import Integers

WORKSPACE = "workspace"
EVALUATION = Path("metrics/evaluation.csv")
TRAINING = Path("metrics/train.csv")
PREDICTIONS = Path("data/predictions.csv")
COUNTS = ("test_images", "official_test_images")  # numbers that say nothing about quality


@dataclass(frozen=True)
class Run:
    """Metrics by stage and name, such as `evaluate.loss`; labels (N,), probabilities (N, C)."""

    name: str
    metrics: dict[str, float]
    top_k: int
    dataset_sha256: Any
    classes: list[str]
    labels: Integers
    probabilities: NDArray[np.float32]


def read_run(revision: str) -> Run:
    """Return the run; raises `StageError` if a file is missing or unreadable, or a metric is not finite.

    Also raises it if metrics and predictions belong to different runs: `git checkout` updates the metrics, but
    not the predictions, which DVC tracks.
    """
    evaluation = parse_figures(_read(revision, EVALUATION), f"{revision}: {EVALUATION}")
    training = parse_figures(_read(revision, TRAINING), f"{revision}: {TRAINING}")
    metrics = {
        f"{stage}.{name}": value
        for stage, content in (("evaluate", evaluation), ("train", training))
        for name, value in content.items()
        if _is_figure(name, value)
    }
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise StageError(f"{revision}: {name} is {value}, not a finite number; run: dvc repro")
    top_k = next((int(k[1]) for name in evaluation if (k := re.fullmatch(r"top_(\d+)_accuracy", name))), 1)
    content = _read(revision, PREDICTIONS)
    try:
        # Read as text: a class may be called NA or 007.
        table = pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False)
        outputs = table.filter(regex="^probability_")
        classes = [str(name).removeprefix("probability_") for name in outputs]
        # An unknown label becomes -1, which `score` refuses.
        labels = pd.Index(classes).get_indexer(pd.Index(table["label"]))
        # The file has the shortest text of each float32, so parsing restores the exact values.
        probabilities = outputs.to_numpy().astype(np.float32)
        found = scoring.score(labels, probabilities, top_k)
    except (ValueError, KeyError, StageError) as error:
        raise StageError(f"{revision}: {PREDICTIONS}: cannot be read ({error}); run: dvc repro evaluate") from None
    for name in ("accuracy", "loss"):
        expected = metrics.get(f"evaluate.{name}", math.nan)
        if not math.isclose(found[name], expected, rel_tol=1e-6):
            raise StageError(
                f"{revision}: {PREDICTIONS} gives a {name} of {found[name]:.6f}, but {EVALUATION} has "
                f"{expected:.6f}: the files are from different runs; run: dvc checkout, or dvc repro"
            )
    return Run(revision, metrics, top_k, evaluation.get("dataset_sha256"), classes, labels, probabilities)


def _is_figure(name: str, value: Any) -> bool:
    return name not in COUNTS and isinstance(value, int | float)


def _read(revision: str, path: Path) -> bytes:
    if not revision:  # DVC would read the workspace; in CI, an unset variable
        raise StageError("empty revision; give a commit, an experiment or workspace")
    try:
        if revision == WORKSPACE:
            return path.read_bytes()
        return bytes(dvc.api.read(path.as_posix(), rev=revision, mode="rb"))
    except (FileNotFoundError, PathMissingError):
        raise StageError(
            f"{revision}: {path} not found in the commit, DVC's cache or its remote; check out that revision and "
            "run: dvc pull, or dvc repro"
        ) from None
    except DvcException as error:
        raise StageError(f"{revision}: {path}: {error}; give a commit, an experiment or workspace") from None
