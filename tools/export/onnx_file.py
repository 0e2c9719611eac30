"""ONNX, for ONNX Runtime and many others: one file, the same bytes on every export."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import tensorflow as tf
import tf2onnx

from tools.export.checks import Run
from tools.export.network import INPUT, OUTPUT, Graph

OPSET = 18  # the newest that tf2onnx 1.17 writes
BATCH = "N"  # the name of the batch axis, which takes any size


def convert(graph: Graph, shape: Sequence[int], signature: str) -> bytes:
    """Return the graph, of images (N, *shape), as an ONNX file with `signature` as its property signature.json."""
    spec = tf.TensorSpec((None, *shape), tf.uint8, INPUT)
    model, _ = tf2onnx.convert.from_function(tf.function(graph), [spec], opset=OPSET)
    model.graph.CopyFrom(_canonical(model.graph))
    onnx.helper.set_model_props(model, {"signature.json": signature})
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def load(path: Path, threads: int) -> Run:
    """Return the file's function from images, uint8 (N, H, W, C), to probabilities, float32 (N, classes)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run([OUTPUT], {INPUT: images})[0]


def _canonical(graph: Any) -> Any:
    """Return `graph` with nodes and constants in the order of use and named by it.

    tf2onnx names them with a counter that goes on from one conversion to the next, and sorts by these names.
    """
    makers = {name: node for node in graph.node for name in node.output}
    ordered: dict[str, Any] = {}  # nodes by their first output, each after those that it reads
    waiting = [OUTPUT]
    while waiting:
        node = makers[waiting[-1]]
        missing = [name for name in node.input if name in makers and makers[name].output[0] not in ordered]
        if missing:
            waiting.append(missing[0])
        else:
            ordered[node.output[0]] = node
            waiting.pop()
    constants = {constant.name: constant for constant in graph.initializer}
    names = {INPUT: INPUT, OUTPUT: OUTPUT, "": ""}  # "" stands for an optional input that is left out
    for number, node in enumerate(ordered.values()):
        node.name = f"{node.op_type}_{number}"
        for index, name in enumerate((*node.input, *node.output)):
            names.setdefault(name, f"{node.name}_{index}")
    for node in ordered.values():
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
    used = [constants[name] for name in names if name in constants]
    for constant in used:
        constant.name = names[constant.name]
    # Left out: the divisors that tf2onnx also lists as inputs, and ONNX Runtime could then not take as constant.
    ends = [value for value in (*graph.input, *graph.output) if value.name in (INPUT, OUTPUT)]
    for value in ends:
        value.type.tensor_type.shape.dim[0].dim_param = BATCH
    return onnx.helper.make_graph(list(ordered.values()), "classifier", ends[:1], ends[1:], used)
