"""Stage 3: train the network on the processed training split.

Run as `python -m stages.train`, with the options of `--help`; `dvc repro` does. Reads train.npz,
validation.npz and statistics.json of data/processed; writes the model, metrics/train.json,
metrics/history.csv and environment/train.json, which tells the machine. TensorBoard's logs and the duration go
to logs/, which nothing tracks.
"""

import argparse
import hashlib
import importlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import failure, runtime
from stages.augmentation import scaled
from stages.checkpoints import Checkpoints
from stages.engine import Trainer, TrainParams
from stages.exclusive import exclusive
from stages.failure import StageError
from stages.model import build_model, check_smaller, load_network
from stages.optimization import notes
from stages.outputs import require_space, write_json, write_table
from stages.params import Section, load
from stages.records import Statistics, read_record, read_split
from stages.runtime import RuntimeParams

if TYPE_CHECKING:
    import keras

SCHEMA_VERSION = 1


# What is loaded only after `runtime.start`, as it loads TensorFlow.
LATER = (
    "archive",
    "cluster",
    "console",
    "fused_adam",
    "fused_batch_norm",
    "inference",
    "lookahead",
    "step",
    "weight_gradient",
)


def main(arguments: Sequence[str]) -> None:
    """Parse, load, join the other processes if there are any, train, save."""
    options = _parse(arguments)
    params = load(options.params, "train", TrainParams)
    model_params = load_network(options.params)
    runtime_params = load(options.params, "runtime", RuntimeParams)
    statistics = read_record(options.processed / "statistics.json", Statistics)
    training = read_split(options.processed, "train", statistics)
    validation = read_split(options.processed, "validation", statistics)

    began = time.time()
    runtime.start(runtime_params, params.seed)
    for name in LATER:
        importlib.import_module(f"stages.{name}")
    from stages.archive import save_model
    from stages.cluster import joined

    own = [_named_callback(name) for name in params.callbacks]
    digests = run_digests([params, model_params, runtime_params], statistics, code_files(params.callbacks))
    with joined(runtime_params) as cluster, exclusive(options.model.parent) if cluster.chief else nullcontext():
        cluster.agree(digests)
        shape, classes = training.images.shape[1:], training.labels.shape[1]
        model = build_model(model_params, shape, classes, training.images)
        for scale in params.scales:
            check_smaller(model_params, shape, (*scaled(scale, *shape[:2]), shape[2]))
        callbacks = own
        if cluster.chief:
            for note in notes(params, params.epochs):
                print(f"train: {note}", file=sys.stderr)
            # The model, and two checkpoints of at most five times as much (the weights, the best ones, the slow
            # ones, Adam's two moments), each written aside before it is moved.
            require_space(options.model.parent, 17 * 4 * model.count_params())
            callbacks = [*own, *_displays(params, len(training.images), options.logs)]
        trainer = Trainer(model, params, training, validation, callbacks, cluster)
        history, saved = trainer.run(Checkpoints(options.checkpoints, run_key(digests, cluster.replicas)))

        if cluster.chief:
            save_model(model, options.model)
            digest = hashlib.sha256(options.model.read_bytes()).hexdigest()
            _save_metrics(options, model, digest, statistics, history, saved)
            log, seconds = options.logs / "train.json", time.time() - began
            runtime.write_environment(
                options.environment, log, runtime_params, digest, seconds, replicas=cluster.replicas
            )


def run_digests(choices: Sequence[Section], statistics: Statistics, code: Mapping[str, Path]) -> dict[str, str]:
    """Return the SHA-256, in hex, of each of the things that determine a run, by the name that people know."""
    files = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in code.items()}
    contents = {
        "params": [choice.model_dump() for choice in choices],
        "data": statistics.model_dump(),
        "code": files,
        "library versions": runtime.versions(),
    }
    return {name: _sha256(content) for name, content in contents.items()}


def run_key(digests: Mapping[str, str], replicas: int) -> str:
    """Return the SHA-256, in hex, by which a run knows its checkpoints: of `digests` and the number of devices."""
    return _sha256([digests, replicas])


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def code_files(callbacks: Sequence[str]) -> dict[str, Path]:
    """Return the files of the modules loaded from stages/, and of those that hold the `callbacks`, by module."""
    own = {name.rpartition(".")[0] for name in callbacks}
    loaded = {
        name: Path(str(module.__file__))
        for name, module in sorted(sys.modules.items())
        if (name in own or name.partition(".")[0] == "stages") and getattr(module, "__file__", None)
    }
    return {**loaded, "stages.train": Path(__file__)}  # this module, which Python knows as __main__ when it is run


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stages.train", description=__doc__.partition("\n")[0])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--processed", type=Path, default=Path("data/processed"), help="folder of the splits")
    parser.add_argument("--model", type=Path, default=Path("models/model.keras"))
    parser.add_argument("--metrics", type=Path, default=Path("metrics/train.json"))
    parser.add_argument("--history", type=Path, default=Path("metrics/history.csv"))
    parser.add_argument("--environment", type=Path, default=Path("environment/train.json"))
    parser.add_argument("--logs", type=Path, default=Path("logs"))
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"))
    return parser.parse_args(arguments)


def _displays(params: TrainParams, images: int, logs: Path) -> "list[keras.callbacks.Callback]":
    import keras

    from stages.console import Console

    board = keras.callbacks.TensorBoard(logs / "tensorboard" / time.strftime("%Y%m%d-%H%M%S"))
    return [board, Console(images, params.batch_size, params.epochs)]


def _named_callback(name: str) -> "keras.callbacks.Callback":
    import keras

    module, _, attribute = name.rpartition(".")
    try:
        callback = getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise StageError(
            f"train.callbacks: {name!r} cannot be made: {error}; name a class without arguments: module.Class"
        ) from None
    if not isinstance(callback, keras.callbacks.Callback):
        raise StageError(f"train.callbacks: {name!r} is no Keras callback; name a class: module.Class")
    return callback


def _save_metrics(
    options: argparse.Namespace,
    model: "keras.Model",
    digest: str,
    statistics: Statistics,
    history: Sequence[dict[str, float]],
    saved: int,
) -> None:
    import pandas as pd

    table = pd.DataFrame(history)
    table.insert(0, "epoch", range(1, len(history) + 1))
    write_table(options.history, table)
    write_json(
        options.metrics,
        {
            "schema_version": SCHEMA_VERSION,
            "dataset": statistics.dataset.name,
            "epoch": saved + 1,
            **history[saved],
            "parameters": model.count_params(),
            "model_sha256": digest,
        },
    )


if __name__ == "__main__":
    sys.exit(failure.run("train", main))
