"""Predict the classes of pictures: `python -m tools.predict PATH …`.

A PATH is a file, a folder, a glob, or - for a picture on standard input. Prints a line for each picture with
its most probable classes, or CSV, or JSON, and whether the probability is above the threshold that the stage
evaluate chose. Pictures that cannot be read are listed on standard error, and the
exit code is 1. --sheet FILE.html also shows the pictures, with their classes, on a page that opens offline.

When exports/ has an ONNX file of the same model, it answers, because it starts without TensorFlow; its
probabilities are within 1e-5 of the model's. With --exact the model itself answers.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from stages.common import failure
from stages.common.failure import StageError
from stages.common.params import load
from stages.model.revisions import fetch_model
from tools.predict.models import find_model
from tools.predict.printing import CsvPrinter, JsonPrinter, Printer
from tools.predict.sheet import open_sheet
from tools.predict.sources import batches, find, label_indices

LISTED = 20  # of the pictures that cannot be read


def main(arguments: Sequence[str]) -> None:
    """Parse, find the pictures, predict and print them batch by batch."""
    options = _parse(arguments)
    paths = find(options.paths)
    with tempfile.TemporaryDirectory() as folder:
        path = options.folder / "models" / "model.keras"
        if options.model is not None:
            path = fetch_model(options.folder, options.model, Path(folder), "--model")
        model, record, confidence = find_model(options.folder, path, options.exact)
        run = model.open()
    labels = label_indices(paths, record.classes) if options.labelled else {}
    rows: list[NDArray[np.float32]] = []
    truth: list[int] = []
    unreadable = 0
    with ExitStack() as stack:
        printers = [options.printer(record.classes, options.top, confidence)]
        if options.sheet is not None:
            shown = (record.classes, options.top, confidence, record.decoding)
            printers.append(stack.enter_context(open_sheet(options.sheet, *shown)))
        progress = stack.enter_context(tqdm(total=len(paths), unit=" pictures", disable=None, leave=False))
        for read, images, problems in batches(paths, record.decoding):
            probabilities = run(images) if read else np.empty((0, len(record.classes)), np.float32)
            with progress.external_write_mode():  # on a terminal, clear the bar before printing lines
                for printer in printers:
                    printer.batch(read, images, probabilities, problems)
                for name, problem in problems[: max(0, LISTED - unreadable)]:
                    print(f"predict: {name} {problem}", file=sys.stderr)
            unreadable += len(problems)
            if labels:
                rows.extend(probabilities)
                truth.extend(labels[name] for name in read)
            progress.update(len(read) + len(problems))
    if rows:
        _print_scores(options.folder, np.array(truth), np.stack(rows))
    if unreadable:
        listed = (
            "listed above" if unreadable <= LISTED else f"the first {LISTED} are listed above, --json lists all"
        )
        raise StageError(f"{unreadable:,} of {len(paths):,} pictures cannot be read ({listed})")


def _print_scores(folder: Path, labels: NDArray[np.int64], probabilities: NDArray[np.float32]) -> None:
    from stages.evaluation.results import EvaluateParams  # only now, as they load pandas
    from stages.evaluation.scoring import score

    top_k = load(folder / "params.yaml", "evaluate", EvaluateParams).top_k
    for name, value in score(labels, probabilities, min(top_k, probabilities.shape[1])).items():
        print(f"{name:20} {value:.4f}", file=sys.stderr)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.predict", description=__doc__.partition("\n")[0])
    parser.add_argument("paths", nargs="+", metavar="PATH", help="file, folder, glob, or - for standard input")
    formats = parser.add_mutually_exclusive_group()
    for option, printer, words in (("--csv", CsvPrinter, "CSV"), ("--json", JsonPrinter, "a JSON object a line")):
        words = f"print {words}, with the probability of each class"
        formats.add_argument(option, dest="printer", action="store_const", const=printer, help=words)
    parser.add_argument(
        "--sheet", type=Path, metavar="FILE.html", help="write an offline page of the pictures too"
    )
    parser.add_argument("--top", type=int, default=3, metavar="K", help="classes on each line (3)")
    parser.add_argument("--labelled", action="store_true", help="score pictures in FOLDER/CLASS/PICTURE as well")
    parser.add_argument("--model", metavar="REV", help="use the model of a git revision or a DVC experiment")
    parser.add_argument("--exact", action="store_true", help="do not use the model's export")
    parser.add_argument("--folder", type=Path, default=Path(), help="the checkout, such as demo; . by default")
    parser.set_defaults(printer=Printer)
    options = parser.parse_args(arguments)
    if options.top < 1:
        raise StageError(f"--top {options.top}: it should be 1 or more")
    if options.sheet is not None and options.sheet.suffix != ".html":  # such as a picture, after a shell's *
        raise StageError(f"--sheet {options.sheet}: it should be a file that ends in .html")
    return options


if __name__ == "__main__":
    sys.exit(failure.run("predict", main))
