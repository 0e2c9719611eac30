"""Export the trained model: `make export`, or `python -m tools.export [FORMAT …]`, which writes exports/NAME.

Formats: litert and onnx by default; litert-float16, litert-int8 and savedmodel as well. The files take pixels as
they are and return named probabilities; docs/export.md explains them. Each is compared with the trained model on
the whole test split, and nothing is kept unless all agree.
"""

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from stages.common import failure
from stages.common.confidence import read_confidence
from stages.common.exclusive import exclusive
from stages.common.failure import StageError
from stages.common.outputs import require_space
from stages.common.params import load
from stages.common.records import ModelRecord, Source, read_record, read_split
from stages.model import runtime
from stages.model.revisions import fetch_model
from stages.model.runtime import RuntimeParams
from tools.export.formats import DEFAULT, FORMATS


def main(arguments: Sequence[str]) -> None:
    """Parse, load the run, export it, print the table."""
    options = _parse(arguments)
    checkout, formats = options.folder, list(dict.fromkeys(options.formats or DEFAULT))
    missing = [name for name in ("onnx", "onnxruntime", "tf2onnx") if not find_spec(name)]
    if "onnx" in formats and missing:
        raise StageError(f"onnx: {missing[0]} is not installed; run: make setup, or export other formats")
    params = load(checkout / "params.yaml", "runtime", RuntimeParams)
    raw = checkout / "data" / "raw"
    with tempfile.TemporaryDirectory() as private:
        path = checkout / "models" / "model.keras"
        if options.model is not None:
            path = fetch_model(checkout, options.model, Path(private), "--model")
        record = read_record(path.with_suffix(".json"), ModelRecord)
        source = read_record(raw / "source.json", Source)
        if (source.dataset, source.picture_rules) != (record.dataset, record.decoding):
            remedy = "dvc repro" if options.model is None else f"git checkout {options.model}, then dvc repro"
            raise StageError(f"{raw}: not the data that the model was trained on; run: {remedy}")
        test, training = (read_split(raw, name, source) for name in ("test", "train"))
        runtime.start(params, seed=0)
        from stages.model.trained import load_model  # from here on, as these load TensorFlow
        from tools.export.description import commit, files_table
        from tools.export.exporting import Trained, export

        model, record = load_model(path)
        size = path.stat().st_size
        confidence = read_confidence(path, record.sha256)
    trained = Trained(model, size, record, confidence, test, training, commit(checkout, options.model))
    folder = checkout / "exports" / (options.name or record.dataset.name)
    require_space(folder.parent, (len(formats) + 2) * size)
    with exclusive(folder.parent):
        report = export(trained, folder, formats, options.max_drop, params.threads, options.max_difference)
    print(files_table(report, markdown=False))
    print(f"\n{folder}: how to use it is in {folder / 'README.md'}")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.export", description=__doc__.partition("\n")[0])
    parser.add_argument("formats", nargs="*", metavar="FORMAT", help=f"{', '.join(FORMATS)}; {' '.join(DEFAULT)}")
    parser.add_argument("--folder", type=Path, default=Path(), help="the checkout, such as demo; . by default")
    parser.add_argument("--model", metavar="REV", help="export the model of a git revision or a DVC experiment")
    parser.add_argument("--name", help="of the folder in exports/ and of the model; the dataset's by default")
    parser.add_argument("--max-drop", type=float, default=0.01, help="accuracy that lower precision may cost")
    parser.add_argument("--max-difference", type=float, default=1e-5, help="of a probability, of float32 files")
    options = parser.parse_args(arguments)
    for name in options.formats:
        if name not in FORMATS:
            raise StageError(f"{name}: unknown format; use: {', '.join(FORMATS)}")
    if options.name is not None and not re.fullmatch(r"\w[\w.-]*", options.name):
        raise StageError(f"--name {options.name}: use letters, digits, '-', '_' and '.', beginning with a letter")
    for name in ("max_drop", "max_difference"):
        if not 0 <= (value := getattr(options, name)) <= 1:
            raise StageError(f"--{name.replace('_', '-')} {value}: it should be between 0 and 1")
    return options


if __name__ == "__main__":
    sys.exit(failure.run("export", main))
