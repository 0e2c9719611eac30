"""The routes: a page, predictions, the Open Inference Protocol, metrics, and a description of all that."""

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from html import escape
from http import HTTPStatus
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from stages.common.confidence import Confidence
from stages.common.pictures import Unreadable
from stages.common.records import ModelRecord
from tools.serve import open_inference
from tools.serve.gate import Gate
from tools.serve.limits import Limits
from tools.serve.metrics import Metrics
from tools.serve.problems import MEDIA_TYPE, Problem, ProblemDetails
from tools.serve.queue import Queue, Worker
from tools.serve.worker import Predicted

ERRORS = {
    400: "The request cannot be understood.",
    404: "There is no such model.",
    408: "The request did not arrive in time.",
    413: "The request is too large.",
    422: "None of the pictures can be read.",
    503: "The server has too much to do. Retry-After says when to try again.",
}
BINARY = {"schema": {"type": "string", "format": "binary"}}
PICTURES = {
    "required": True,
    "description": "One picture as it is, or several as the files of a form.",
    "content": {
        "image/*": BINARY,
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"picture": {"type": "array", "items": BINARY["schema"]}},
            }
        },
    },
}
PIXELS = {"name": "pixels", "in": "query", "schema": {"type": "boolean", "default": False}}
TENSOR = {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}


class Prediction(BaseModel):
    """A picture's prediction, or, in `error`, why the picture cannot be read."""

    name: str | None = Field(default=None, description="The file's name in the form.")
    class_: str | None = Field(default=None, alias="class")
    probability: float | None = None
    certain: bool | None = Field(default=None, description="false: below the threshold; none of the classes.")
    probabilities: dict[str, float] | None = None
    pixels: str | None = Field(default=None, description="What the network sees: a PNG as a data: address.")
    error: str | None = None


class Predictions(BaseModel):
    """The predictions of a request's pictures, in order. model: the start of the SHA-256 of models/model.keras."""

    model: str
    predictions: list[Prediction]


def create_app(
    workers: Sequence[Worker],
    record: ModelRecord,
    confidence: Confidence,
    limits: Limits,
    hosts: frozenset[str] | None,
    origins: Sequence[str] = (),
) -> ASGIApp:
    """Return the application that has `workers` decode and predict.

    confidence: which predictions are certain. hosts: the names in the Host header that are answered, None for all.
    origins: sites whose pages may call it.
    """
    metrics = Metrics()
    queue = Queue(workers, record.decoding, limits, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        working = asyncio.create_task(queue.work())
        yield
        working.cancel()

    app = FastAPI(
        title=f"Image classifier: {record.dataset.name}",
        version=open_inference.version(record),
        description=f"Classes: {', '.join(record.classes)}.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own pages load scripts from another host
        redoc_url=None,
        exception_handlers={
            Problem: _problem,
            HTTPException: _http_error,
            RequestValidationError: _invalid,
            Exception: _failure,
        },
    )
    _add_pages(app, record)
    served: ASGIApp = _add_predict(app, record, confidence, queue, limits)
    _add_open_inference(app, record, queue, limits)

    @app.get(
        "/metrics",
        tags=["server"],
        summary="Counters for Prometheus",
        response_class=PlainTextResponse,
        responses=_errors(),
    )
    async def show_metrics() -> Response:
        return Response(metrics.text(queue.admitted), media_type="text/plain; version=0.0.4; charset=utf-8")

    if origins:
        served = CORSMiddleware(served, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"])
    return Gate(served, limits, hosts, metrics)


def _add_pages(app: FastAPI, record: ModelRecord) -> None:
    height, width, channels = record.shape
    values = {
        "dataset": escape(record.dataset.name),
        "size": f"{width} x {height} {'grey' if channels == 1 else 'color'} pixels",
        "version": open_inference.version(record),
        "draw": "" if record.dataset.name == "digits" else "hidden",
    }
    for path, name, media_type in (
        ("/", "page.html", "text/html"),
        ("/page.js", "page.js", "text/javascript"),
        ("/docs", "api.html", "text/html"),
        ("/api.js", "api.js", "text/javascript"),
        ("/page.css", "page.css", "text/css"),
    ):
        content = Path(__file__).with_name(name).read_text(encoding="utf-8")
        if media_type == "text/html":
            content = Template(content).substitute(values)
        app.add_api_route(path, _page(content, media_type), include_in_schema=False)


def _page(content: str, media_type: str) -> Callable[[], Awaitable[Response]]:
    async def page() -> Response:
        return Response(content, media_type=media_type)

    return page


def _add_predict(
    app: FastAPI, record: ModelRecord, confidence: Confidence, queue: Queue, limits: Limits
) -> ASGIApp:
    version = open_inference.version(record)

    @app.post(
        "/predict",
        tags=["predictions"],
        summary="The probability of each class for each picture",
        responses={200: {"model": Predictions}, **_errors(400, 408, 413, 422, 503)},
        openapi_extra={"requestBody": PICTURES, "parameters": [PIXELS]},
    )
    async def predict(request: Request) -> Response:
        pixels = _boolean(request, "pixels")
        with queue.admit(1):
            files = await _read(request, limits)
            with queue.admit(len(files) - 1):
                results = await queue.predict([content for _, content in files])
        predictions: list[dict[str, Any]] = []
        for (name, _), result in zip(files, results, strict=True):
            prediction: dict[str, Any] = {} if name is None else {"name": name}
            if isinstance(result, Unreadable):
                prediction["error"] = str(result)
            else:
                prediction |= _prediction(result.probabilities[0], record.classes, confidence)
                if pixels:
                    prediction["pixels"] = _data_uri(result.images[0])
            predictions.append(prediction)
        if all(isinstance(result, Unreadable) for result in results):
            reasons = "; ".join(f"{each.get('name', 'the file')} {each['error']}" for each in predictions[:3])
            raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, reasons)
        return _json({"model": version, "predictions": predictions})

    return _Direct(app, predict)


class _Direct:
    """Answers POST /predict, 30 µs sooner than FastAPI would, whose route is for the description."""

    def __init__(self, app: FastAPI, predict: Callable[[Request], Awaitable[Response]]) -> None:
        self._app, self._predict = app, predict
        (self._route,) = (each for each in app.routes if getattr(each, "endpoint", None) is predict)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (scope["method"], scope["path"]) != ("POST", "/predict"):
            await self._app(scope, receive, send)
            return
        scope["route"] = self._route  # which the gate counts
        request = Request(scope, receive)
        try:
            response = await self._predict(request)
        except Problem as problem:
            response = await _problem(request, problem)
        except Exception as error:
            response = await _failure(request, error)
            await response(scope, receive, send)
            raise  # for the log
        await response(scope, receive, send)


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the answers, for the description, with these statuses and with any other that is an error."""
    words: dict[int | str, str] = {status: ERRORS[status] for status in statuses} | {"default": "Another error."}
    content = {MEDIA_TYPE: {"schema": ProblemDetails.model_json_schema()}}
    return {status: {"description": each, "content": content} for status, each in words.items()}


def _boolean(request: Request, name: str) -> bool:
    value = request.query_params.get(name, "false")
    if value not in ("true", "false"):
        raise Problem(HTTPStatus.BAD_REQUEST, f"query.{name}: expected true or false")
    return value == "true"


async def _read(request: Request, limits: Limits) -> list[tuple[str | None, bytes]]:
    """Return the pictures of a request, with their names in a form; raises `Problem` when there are none."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        content = await request.body()
        if not content:
            raise Problem(HTTPStatus.BAD_REQUEST, "the request has no body; send a picture")
        return [(None, content)]
    try:
        async with request.form(max_files=limits.files, max_fields=limits.files) as form:
            files = [each for _, each in form.multi_items() if isinstance(each, UploadFile)]
            contents = [(each.filename, await each.read()) for each in files]
    except MultiPartException as error:
        raise Problem(HTTPStatus.BAD_REQUEST, error.message) from None
    if not contents:
        raise Problem(HTTPStatus.BAD_REQUEST, "the form has no files; send pictures")
    return contents


def _add_open_inference(app: FastAPI, record: ModelRecord, queue: Queue, limits: Limits) -> None:
    model, version = record.dataset.name, open_inference.version(record)
    tags: dict[str, Any] = {"tags": ["Open Inference Protocol"]}

    async def require(request: Request, name: str) -> None:
        if (name, request.path_params.get("number", version)) != (model, version):
            raise Problem(HTTPStatus.NOT_FOUND, f"no such model; this server has {model}, version {version}")

    of_model: dict[str, Any] = {**tags, "dependencies": [Depends(require)]}
    hidden: dict[str, Any] = {"include_in_schema": False, "dependencies": [Depends(require)]}

    @app.get("/v2", summary="The server", responses=_errors(), **tags)
    async def server() -> dict[str, Any]:
        return {"name": "tools.serve", "version": app.version, "extensions": []}

    @app.get("/v2/health/live", summary="200 while the server runs", responses=_errors(), **tags)
    async def live() -> dict[str, Any]:
        return {"live": True}

    @app.get(
        "/v2/health/ready",
        summary="200 while the server takes pictures, else 503",
        responses=_errors(503),
        **tags,
    )
    async def ready() -> dict[str, Any]:
        with queue.admit(1):
            return {"ready": True}

    @app.get(
        "/v2/models/{name}",
        summary="The model: its versions, inputs, outputs and classes",
        responses=_errors(404),
        **of_model,
    )
    @app.get("/v2/models/{name}/versions/{number}", **hidden)
    async def describe() -> dict[str, Any]:
        return open_inference.describe(model, record)

    @app.get(
        "/v2/models/{name}/ready",
        summary="200 while the model takes pictures, else 503",
        responses=_errors(404, 503),
        **of_model,
    )
    @app.get("/v2/models/{name}/versions/{number}/ready", **hidden)
    async def model_ready() -> dict[str, Any]:
        with queue.admit(1):
            return {"name": model, "ready": True}

    @app.post(
        "/v2/models/{name}/infer",
        summary="The probabilities of pixels of the network's size",
        responses={200: {"model": open_inference.InferResponse}, **_errors(400, 404, 408, 413, 503)},
        openapi_extra={"requestBody": TENSOR},
        **of_model,
    )
    @app.post("/v2/models/{name}/versions/{number}/infer", **hidden)
    async def infer(request: Request) -> Response:
        with queue.admit(1):
            content = await request.body()
            id_, images = await asyncio.to_thread(open_inference.parse, content, record.shape, limits.waiting)
            with queue.admit(len(images) - 1):
                (result,) = await queue.predict([images])
        assert isinstance(result, Predicted)
        return _json(open_inference.response(model, record, id_, result.probabilities))


def _prediction(row: NDArray[np.float32], classes: Sequence[str], confidence: Confidence) -> dict[str, Any]:
    values = [float(str(value)) for value in row]  # the shortest decimals that are these float32
    best = int(row.argmax())
    return {
        "class": classes[best],
        "probability": values[best],
        "certain": bool(confidence.certain(row[np.newaxis])[0]),
        "probabilities": dict(zip(classes, values, strict=True)),
    }


def _data_uri(pixels: NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _json(content: Any) -> Response:
    return Response(json.dumps(content, ensure_ascii=False, allow_nan=False), media_type="application/json")


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return error.response()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return Problem(HTTPStatus(error.status_code), error.detail, error.headers).response()


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return Problem(HTTPStatus.BAD_REQUEST, f"{'.'.join(map(str, first['loc']))}: {first['msg']}").response()


async def _failure(request: Request, error: Exception) -> Response:
    return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "the server failed; its log has the reason").response()
