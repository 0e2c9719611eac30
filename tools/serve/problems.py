"""Errors as the client gets them: problem details in JSON, RFC 9457."""

import json
from collections.abc import Mapping
from http import HTTPStatus

from fastapi import Response
from pydantic import BaseModel

MEDIA_TYPE = "application/problem+json"


class ProblemDetails(BaseModel):
    """The body of an error: the status, its title, and what is wrong with this request."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str


class Problem(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: HTTPStatus, detail: str, headers: Mapping[str, str] | None = None) -> None:
        """Prepare the answer; `detail` is a sentence for the client."""
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers

    def response(self) -> Response:
        """Return the answer."""
        return Response(body(self.status, self.detail), self.status, self.headers, MEDIA_TYPE)


def body(status: int, detail: str) -> bytes:
    """Return the JSON of an error."""
    title = HTTPStatus(status).phrase
    return json.dumps({"type": "about:blank", "title": title, "status": status, "detail": detail}).encode()


def busy(detail: str) -> Problem:
    """Return the error of a server that has too much to do; the client should come back in a second."""
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, detail, {"Retry-After": "1"})
