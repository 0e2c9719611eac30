"""The formats of an export. This module imports no TensorFlow, so that --help is quick."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """The file of a format, the section of readme.md that explains it, and whether it computes in float32."""

    file: str
    section: str
    exact: bool


FORMATS = {
    "litert": Format("model.tflite", "LiteRT", exact=True),
    "litert-float16": Format("model-float16.tflite", "LiteRT", exact=False),
    "litert-int8": Format("model-int8.tflite", "LiteRT", exact=False),
    "onnx": Format("model.onnx", "ONNX", exact=True),
    "savedmodel": Format("saved_model/1", "SavedModel", exact=True),  # TensorFlow Serving wants a folder a version
}
DEFAULT = ("litert", "onnx")
