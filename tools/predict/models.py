"""Opens the trained model, or the faster ONNX export of it."""

import json
import sys
from collections.abc import Callable
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.common.confidence import Confidence, read_confidence
from stages.common.params import load
from stages.common.records import ModelRecord, read_record
from stages.model import runtime
from stages.model.runtime import RuntimeParams

Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


class Model(NamedTuple):
    """What another process needs, too, to predict: an ONNX file, or else the path of models/model.keras."""

    export: bytes | None
    path: Path
    params: RuntimeParams

    def open(self) -> Run:
        """Return a function from images, uint8 (N, H, W, C), to probabilities, float32 (N, classes).

        Raises `StageError` when models/model.keras is not what its record says.
        """
        if self.export is None:
            runtime.start(self.params, seed=0)
            from stages.model.classifier import Classifier  # only now, as it loads TensorFlow

            return Classifier(self.path).probabilities
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.params.threads
        # By default its threads wait for work in a busy loop, on the cores that decode and answer requests.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(self.export, options, providers=["CPUExecutionProvider"])
        return lambda images: session.run(None, {session.get_inputs()[0].name: images})[0]


def find_model(checkout: Path, path: Path, exact: bool) -> tuple[Model, ModelRecord, Confidence]:
    """Return the model in `path` to open, its record, and when to answer.

    Unless `exact`, an ONNX export of it answers when `checkout` has one, because it starts without TensorFlow;
    tools.export has checked that it is within 1e-5 of the model.
    """
    record = read_record(path.with_suffix(".json"), ModelRecord)
    confidence = read_confidence(path, record.sha256)
    params = load(checkout / "params.yaml", "runtime", RuntimeParams)
    usable = not exact and find_spec("onnxruntime")
    export = _export(checkout / "exports", confidence) if usable else None
    return Model(export, path, params), record, confidence


def _export(exports: Path, confidence: Confidence) -> bytes | None:
    for path in sorted(exports.glob("*/export.json")):
        try:
            report = json.loads(path.read_bytes())
            onnx = path.with_name("model.onnx")
            # The file of a model that was trained in lower precision is close to a float32 copy of it instead.
            exact = "models/model.keras in float32" not in report["files"]
            found = report["files"].get(onnx.name, {})
            recorded = found.get("sha256")
            close = found.get("largest_difference", 1) <= 1e-5  # unless made with a higher --max-difference
            same = report["model_sha256"] == confidence.model_sha256
            same = same and report.get("temperature", 1) == confidence.temperature
            if same and exact and close and recorded:
                content = onnx.read_bytes()
                if sha256(content).hexdigest() == recorded:
                    return content
                print(f"predict: {onnx}: changed since the export, not used; run: make export", file=sys.stderr)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            print(f"predict: {path}: damaged, not used; run: make export", file=sys.stderr)
    return None
