"""Stage 3: train the network on the processed training split.

Run as `python -m stages.train`, with the options of `--help`; `dvc repro` does. Reads train.npz, validation.npz
and statistics.json from data/processed. Writes models/model.keras and its record model.json, metrics/train.csv and
train.json, metrics/history.csv, and environment/train.json, the record of the machine. TensorBoard logs and the
duration go to logs/, which nothing tracks.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from stages.common import failure
from stages.common.exclusive import exclusive
from stages.common.final_fit import check_final_fit
from stages.common.outputs import require_space
from stages.common.params import load
from stages.common.records import Statistics, read_record, read_split
from stages.model import networks, runtime
from stages.model.pretrained import PretrainedParams, check_scaling, fetch_weights, weights_origin
from stages.model.runtime import RuntimeParams
from stages.training import balance
from stages.training.augmentation import check_color_jitter, check_image_size
from stages.training.optimization import notes
from stages.training.params import TrainParams
from stages.training.start import load_earlier, take_weights


def main(arguments: Sequence[str]) -> None:
    """Parse, load, join the other processes if there are any, train, save."""
    options = _parse(arguments)
    params = load(options.params, "train", TrainParams)
    model_params = networks.load_network(options.params)
    runtime_params = load(options.params, "runtime", RuntimeParams)
    statistics = read_record(options.processed / "statistics.json", Statistics)
    training = read_split(options.processed, "train", statistics)
    validation = read_split(options.processed, "validation", statistics)
    if not len(validation.images):
        check_final_fit(options.params)
    check_scaling(model_params, statistics.scaling)
    check_color_jitter(params, statistics.scaling)
    counts = statistics.splits["train"].class_counts
    by_class = balance.class_weights(params, statistics.classes, counts)
    weights = None if params.start_from else fetch_weights(model_params)

    began = time.monotonic()
    runtime.start(runtime_params, params.seed)
    from stages.model.archive import save_model  # from here on, as these load TensorFlow
    from stages.training import transfer
    from stages.training.callbacks import displays, named_callback
    from stages.training.checkpoints import Checkpoints
    from stages.training.cluster import joined
    from stages.training.identity import code_files, run_digests, run_key
    from stages.training.loop import Trainer
    from stages.training.results import model_record, write_results

    callbacks = [named_callback(name) for name in params.callbacks]
    digests = run_digests([params, model_params, runtime_params], statistics, code_files(params.callbacks))
    with joined(runtime_params) as cluster, exclusive(options.model.parent) if cluster.chief else nullcontext():
        cluster.agree(digests)
        shape, classes = training.images.shape[1:], training.labels.shape[1]
        model = networks.build_model(model_params, shape, classes, training.images, weights)
        check_image_size(params, model_params, shape)
        earlier, origin, first = load_earlier(params), weights_origin(model_params), 0
        if earlier:
            origin = take_weights(model, earlier, statistics, params.continue_)
            first = origin.epochs
        if cluster.chief:
            # The model, and two checkpoints of at most five times as much (the weights, the best ones, the slow
            # ones, Adam's two moments), each written aside before it is moved.
            require_space(options.model.parent, 17 * 4 * model.count_params())
            sentences = [*balance.remarks(params, statistics.classes, counts), *notes(params, params.epochs)]
            sentences += networks.remarks(model_params, model)
            if not len(validation.images):
                sentences.append("no validation images: the figures are of the training images only")
            for note in sentences:
                print(f"train: {note}", file=sys.stderr)
            epochs = first + params.epochs + getattr(model_params, "fine_tune_epochs", 0)
            callbacks += displays(params.batch_size, len(training.images), epochs, options.logs)
        checkpoints = Checkpoints(options.checkpoints, run_key(digests, cluster.replicas))
        run, loss_weights = (params, training, validation, callbacks, cluster), balance.as_vector(by_class)
        if isinstance(model_params, PretrainedParams):
            machine = [digests["code"], digests["library versions"], runtime_params.model_dump()]
            history, saved = transfer.train(model, model_params, *run, checkpoints, machine, first, loss_weights)
            state = b""
        else:
            trainer = Trainer(model, *run, first=first, class_weights=loss_weights)
            if earlier and params.continue_ and earlier.state:
                trainer.go_on_from(earlier.state)
            history, saved = trainer.run(checkpoints)
            state = trainer.state() if params.keep_state else b""

        if cluster.chief:
            save_model(model, options.model, state)
            record = model_record(options.model, model.count_params(), first + saved, statistics, origin, by_class)
            write_results(options.model, options.history, options.metrics, record, history, first, saved)
            files, seconds = (options.environment, options.logs / "train.json"), time.monotonic() - began
            runtime.write_environment(*files, runtime_params, record.sha256, seconds, cluster.replicas)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stages.train", description=__doc__.partition("\n")[0])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--processed", type=Path, default=Path("data/processed"), help="folder of the splits")
    parser.add_argument("--model", type=Path, default=Path("models/model.keras"))
    parser.add_argument("--metrics", type=Path, default=Path("metrics/train.csv"))
    parser.add_argument("--history", type=Path, default=Path("metrics/history.csv"))
    parser.add_argument("--environment", type=Path, default=Path("environment/train.json"))
    parser.add_argument("--logs", type=Path, default=Path("logs"))
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(failure.run("train", main))
