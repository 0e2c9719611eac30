"""The tensors of the Open Inference Protocol, which KServe and Triton speak, as JSON."""

import math
from http import HTTPStatus
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from stages.common.records import ModelRecord
from tools.serve.problems import Problem

INPUT, OUTPUT = "images", "probabilities"  # as in the exported files


class Tensor(BaseModel):
    """A tensor: its elements in row-major order, flat or nested."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any]


class InferRequest(BaseModel):
    """The body of a request to infer."""

    id: str | None = None
    inputs: list[Tensor] = Field(min_length=1, max_length=1)


class InferResponse(BaseModel):
    """The answer to it."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[Tensor]


def describe(name: str, record: ModelRecord) -> dict[str, Any]:
    """Return the metadata of the model; "version" is the start of the SHA-256 of models/model.keras."""
    return {
        "name": name,
        "versions": [version(record)],
        "platform": "keras",
        "inputs": [{"name": INPUT, "datatype": "UINT8", "shape": [-1, *record.shape]}],
        "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, len(record.classes)]}],
        "parameters": {"classes": record.classes},
    }


def version(record: ModelRecord) -> str:
    """Return the version of the model."""
    return record.sha256[:12]


def parse(content: bytes, shape: tuple[int, int, int], most: int) -> tuple[str | None, NDArray[np.uint8]]:
    """Return the request's id and its images, uint8 (N, *shape), 0 < N ≤ most; raises `Problem`."""
    try:
        request = InferRequest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise _unfit(f"{where}: {first['msg']}") from None
    tensor = request.inputs[0]
    if tensor.name != INPUT or tensor.datatype != "UINT8":
        raise _unfit(f"inputs.0: expected the tensor {INPUT} of UINT8")
    if tensor.shape[1:] != list(shape) or not 0 < tensor.shape[0] <= most:
        raise _unfit(f"inputs.0.shape: expected [N, {', '.join(map(str, shape))}] with N from 1 to {most}")
    try:
        values = np.array(tensor.data)
    except ValueError:
        raise _unfit("inputs.0.data: the lists differ in length") from None
    if values.shape not in (tuple(tensor.shape), (math.prod(tensor.shape),)):
        raise _unfit(f"inputs.0.data: expected the elements of the shape {tensor.shape}")
    if values.dtype.kind != "i" or values.min() < 0 or values.max() > 255:
        raise _unfit("inputs.0.data: expected whole numbers from 0 to 255")
    return request.id, values.astype(np.uint8).reshape(tensor.shape)


def response(
    name: str, record: ModelRecord, id_: str | None, probabilities: NDArray[np.float32]
) -> dict[str, Any]:
    """Return the answer with the probabilities, float32 (N, classes)."""
    output = {
        "name": OUTPUT,
        "datatype": "FP32",
        "shape": list(probabilities.shape),
        "data": [float(str(value)) for value in probabilities.ravel()],  # the shortest decimals of these float32
    }
    answer = {"model_name": name, "model_version": version(record), "outputs": [output]}
    return answer if id_ is None else {**answer, "id": id_}


def _unfit(detail: str) -> Problem:
    return Problem(HTTPStatus.BAD_REQUEST, detail)
