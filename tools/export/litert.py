"""LiteRT, formerly TensorFlow Lite: one file for phones and small machines, the same bytes on every export."""

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.lite.tools import flatbuffer_utils

from tools.export.checks import Run
from tools.export.network import INPUT, OUTPUT, Graph
from tools.export.saved_model import pixels_archive


def convert(
    form: str, graph: Graph, shape: Sequence[int], calibration: NDArray[np.uint8], signature: str
) -> bytes:
    """Return the graph, of images (N, *shape), as a LiteRT file with `signature` as its metadata signature.json.

    form: litert, litert-float16 or litert-int8. calibration: uint8 (N, *shape), training images from which int8
    takes the range of each activation.
    """
    with tempfile.TemporaryDirectory() as folder:
        # Of pixels only: the converter takes a second signature along, and fails on its operators.
        pixels_archive(graph, shape).write_out(folder, verbose=False)
        return _with_metadata(_convert(folder, form, calibration), "signature.json", signature.encode())


def load(path: Path, threads: int) -> Run:
    """Return the file's function from images, uint8 (N, H, W, C), to probabilities, float32 (N, classes)."""
    with warnings.catch_warnings(action="ignore"):  # it asks for ai-edge-litert, the same code in another package
        interpreter = tf.lite.Interpreter(str(path), num_threads=threads)
    interpreter.allocate_tensors()  # prints a line, which the caller holds back
    run = interpreter.get_signature_runner()
    return lambda images: run(**{INPUT: images})[OUTPUT]


def _convert(saved_model: str, form: str, calibration: NDArray[np.uint8]) -> bytes:
    converter = tf.lite.TFLiteConverter.from_saved_model(saved_model)
    if form != "litert":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if form == "litert-float16":
        converter.target_spec.supported_types = [tf.float16]
    if form == "litert-int8":

        def images() -> Iterator[dict[str, NDArray[np.uint8]]]:
            for image in calibration:
                yield {INPUT: image[np.newaxis]}

        converter.representative_dataset = images
    with warnings.catch_warnings(action="ignore"):  # of its own interpreter, with which int8 is calibrated
        return bytes(converter.convert())


def _with_metadata(content: bytes, name: str, value: bytes) -> bytes:
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    entry, buffer = schema.MetadataT(), schema.BufferT()
    buffer.data = np.frombuffer(value, np.uint8)
    entry.name, entry.buffer = name, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata.append(entry)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))
