"""Make the folder of an export: convert, compare each file with the trained model, and only then keep it."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from stages.common.confidence import Confidence
from stages.common.failure import StageError
from stages.common.outputs import write_json
from stages.common.records import ModelRecord
from stages.common.scaling import ByChannel, scale
from stages.common.splits import Split
from stages.model import runtime
from stages.model.inference import Predictor
from tools.export import description, litert, onnx_file, saved_model
from tools.export.checks import TOLERANCE, Checker, Run
from tools.export.formats import FORMATS
from tools.export.network import float32_twin, from_pixels

SCHEMA_VERSION = 1
CALIBRATION = 500  # training images from which int8 takes the ranges of activations
TRAINED, TWIN = "models/model.keras", "models/model.keras in float32"


@dataclass(frozen=True, eq=False)
class Trained:
    """A model that the pipeline trained, its file's size in bytes, its records, its raw splits, and the commit."""

    model: keras.Model
    size: int
    record: ModelRecord
    confidence: Confidence
    test: Split
    training: Split
    commit: str | None


def export(
    trained: Trained,
    folder: Path,
    formats: Sequence[str],
    max_drop: float,
    threads: int,
    max_difference: float = TOLERANCE,
) -> dict[str, Any]:
    """Write `folder` and return the content of its export.json; when a check fails, raise and keep nothing."""
    record, temperature = trained.record, trained.confidence.temperature
    network = float32_twin(trained.model)
    lowered = any(layer.compute_dtype != "float32" for layer in trained.model.layers)
    checker = Checker(trained.test.images, trained.test.labels, max_drop, max_difference)
    as_trained, in_float32 = (
        _scaling(Predictor(model, temperature), record.by_channel) for model in (trained.model, network)
    )
    before, expected = checker.predict(as_trained), checker.predict(in_float32)
    of_file = {"bytes": trained.size, "sha256": record.sha256}
    files = {TRAINED: {**of_file, **asdict(checker.check(TRAINED, as_trained, before, exact=True))}}
    twin = checker.check(TWIN, in_float32, before, exact=not lowered)
    if lowered:
        files[TWIN] = {**of_file, **asdict(twin)}

    graph = from_pixels(network, record.by_channel, temperature)
    with _replacing_folder(folder) as partial:
        write_json(partial / "signature.json", description.signature(record, trained.confidence, trained.commit))
        (partial / "labels.txt").write_text("".join(f"{name}\n" for name in record.classes), encoding="utf-8")
        text = (partial / "signature.json").read_text(encoding="utf-8")
        for name in tqdm(formats, "export", disable=None, leave=False):
            form, path = FORMATS[name], partial / FORMATS[name].file
            with runtime.standard_error_kept():  # the converters' notes, which no setting silences
                if name == "savedmodel":
                    assets = [partial / "signature.json", partial / "labels.txt"]
                    saved_model.write(path, graph, record.decoding, assets)
                    run = saved_model.load(path)
                elif name == "onnx":
                    path.write_bytes(onnx_file.convert(graph, record.shape, text))
                    run = onnx_file.load(path, threads)
                else:
                    images = _calibration_images(trained.training)
                    path.write_bytes(litert.convert(name, graph, record.shape, images, text))
                    run = litert.load(path, threads)
            result = checker.check(form.file, run, expected if form.exact else before, form.exact)
            files[form.file] = {**_size_and_hash(path), **asdict(result)}
        report = {
            "schema_version": SCHEMA_VERSION,
            "model_sha256": record.sha256,
            "temperature": temperature,
            "test_images": len(trained.test.labels),
            "threads": threads,
            "versions": runtime.versions(),
            "files": files,
        }
        write_json(partial / "export.json", report)
        readme = description.readme(folder.name, formats, report, record)
        (partial / "README.md").write_text(readme, encoding="utf-8")
    return report


def _scaling(predictor: Predictor, by_channel: ByChannel | None) -> Run:
    """Return the predictor as a function of uint8 pixels, scaled as the stage preprocess does."""
    return lambda images: predictor(next(scale([images], by_channel)))


def _calibration_images(training: Split) -> NDArray[np.uint8]:
    count = len(training.images)
    drawn = np.random.default_rng(0).choice(count, min(CALIBRATION, count), replace=False)
    return training.images[np.sort(drawn)]


def _size_and_hash(path: Path) -> dict[str, Any]:
    if path.is_dir():
        return {"bytes": sum(file.stat().st_size for file in path.rglob("*") if file.is_file())}
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": sha256(content).hexdigest()}


@contextmanager
def _replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder` that takes its place when the block ends well."""
    if folder.exists() and not (folder / "export.json").exists():
        raise StageError(f"{folder}: exists and is not an export, as it has no export.json; choose another --name")
    partial, old = (folder.with_name(f"{folder.name}.{suffix}.partial") for suffix in ("new", "old"))
    for left in (partial, old):  # by a killed run
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
    finally:
        for left in (partial, old):
            shutil.rmtree(left, ignore_errors=True)
