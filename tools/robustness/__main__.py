"""Measure the trained model on pictures unlike its data: `python -m tools.robustness [FOLDER …]`.

The accuracy on the test images under 13 corruptions at five severities, and how well the model's confidence tells
digits, noise, and the pictures of each FOLDER from its own data. Prints both tables, and writes robustness.csv,
others.csv and robustness.svg to robustness/. docs/trust.md explains the figures. A stopped run goes on where it
was.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from stages.common import failure
from stages.common.confidence import read_confidence
from stages.common.exclusive import exclusive
from stages.common.failure import StageError
from stages.common.params import load
from stages.common.records import ModelRecord, Source, read_record, read_split
from stages.model import runtime
from stages.model.runtime import RuntimeParams
from tools.predict import sources


def main(arguments: Sequence[str]) -> None:
    """Parse, load the model and its test split, measure, write, print."""
    options = _parse(arguments)
    path, raw = options.folder / "models" / "model.keras", options.folder / "data" / "raw"
    record = read_record(path.with_suffix(".json"), ModelRecord)
    source = read_record(raw / "source.json", Source)
    if source.dataset != record.dataset:
        raise StageError(f"{raw}: not the dataset that the model was trained on; run: dvc repro")
    if len(record.classes) < 2:
        raise StageError(f"{path}: knows only the class {record.classes[0]}; robustness needs two or more")
    paths = {name: sources.find([name]) for name in options.others}
    test = read_split(raw, "test", source)
    runtime.start(load(options.folder / "params.yaml", "runtime", RuntimeParams), seed=0)
    from stages.model.trained import load_model  # from here on, as these load TensorFlow
    from tools.robustness import measuring, results

    model, record = load_model(path)
    confidence = read_confidence(path, record.sha256)
    logits = measuring.logits_of(model, record)
    out, rules, problems = options.folder / "robustness", record.decoding, list[str]()
    with exclusive(out):
        identity = f"{record.sha256} {source.splits['test'].sha256}"
        accuracy = measuring.corrupted_accuracy(logits, test, out / "accuracy.json", identity, options.seed)
        own = measuring.scores(logits, measuring.own_batches(test), confidence.temperature)
        others = {"noise": measuring.noise(rules, options.seed)}
        if record.dataset.name != "digits":
            others["digits"] = measuring.digit_pictures(rules)
        others |= {name: measuring.given_pictures(files, rules, problems) for name, files in paths.items()}
        found = {name: measuring.scores(logits, each, confidence.temperature) for name, each in others.items()}
        areas = {name: (len(each), *measuring.auroc(own, each)) for name, each in found.items()}
        results.write(out, accuracy, areas)
    print(results.text(accuracy, areas))
    print(f"\nTables and plot: {out}/")
    if problems:
        raise StageError(f"{len(problems):,} pictures cannot be read, for instance {problems[0]}")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.robustness", description=__doc__.partition("\n")[0])
    parser.add_argument("others", nargs="*", metavar="FOLDER", help="of pictures that are none of the classes")
    parser.add_argument("--folder", type=Path, default=Path(), help="the checkout, such as demo; . by default")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (0)")
    options = parser.parse_args(arguments)
    if options.seed < 0:
        raise StageError(f"--seed {options.seed}: it should be 0 or more")
    for name in options.others:
        if not Path(name).is_dir():
            raise StageError(f"{name}: no such folder")
    return options


if __name__ == "__main__":
    sys.exit(failure.run("robustness", main))
