"""What one request, and all of them together, may take from the server."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The limits of a server; the command's options set some of them."""

    bytes: int = 32_000_000  # of one request
    pixels: int = 50_000_000  # of one picture: 200 MB while it is decoded
    files: int = 64  # pictures of one request
    waiting: int = 2048  # pictures that are uploaded, decoded or predicted at one time
    held: int = 256_000_000  # bytes of all requests at one time
    seconds: float = 30  # to send a request's body
