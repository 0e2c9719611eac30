"""Counts what the server does, and writes it in Prometheus's text format."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence

import psutil

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Histogram:
    """Counts values up to each of its bounds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """Start with no values."""
        self._bounds, self._counts, self._total = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def lines(self, name: str) -> Iterator[str]:
        """Yield the lines of the histogram."""
        count = 0
        for bound, each in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            count += each
            yield f'{name}_bucket{{le="{bound}"}} {count}'
        yield f"{name}_sum {self._total}"
        yield f"{name}_count {count}"


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        """Start at zero."""
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._pictures: Counter[str] = Counter()
        self._seconds, self._batches = Histogram(SECONDS), Histogram(SIZES)

    def request(self, method: str, path: str, status: int, seconds: float) -> None:
        """Count an answered request; path: that of the route, so that clients cannot invent more."""
        self._requests[method, path, status] += 1
        self._seconds.add(seconds)

    def batch(self, predicted: int, unreadable: int) -> None:
        """Count the pictures of a worker's batch."""
        self._pictures["predicted"] += predicted
        self._pictures["unreadable"] += unreadable
        if predicted:
            self._batches.add(predicted)

    def text(self, waiting: int) -> str:
        """Return the counters as Prometheus reads them; waiting: pictures that are not answered yet."""
        return "\n".join(self._lines(waiting)) + "\n"

    def _lines(self, waiting: int) -> Iterator[str]:
        yield from _head("http_requests_total", "counter", "Answered requests.")
        for (method, path, status), count in sorted(self._requests.items()):
            yield f'http_requests_total{{method="{method}",path="{path}",status="{status}"}} {count}'
        yield from _head("http_request_duration_seconds", "histogram", "From a request's head to its answer.")
        yield from self._seconds.lines("http_request_duration_seconds")
        yield from _head("classifier_pictures_total", "counter", "Pictures by what became of them.")
        for result in ("predicted", "unreadable"):
            yield f'classifier_pictures_total{{result="{result}"}} {self._pictures[result]}'
        yield from _head("classifier_batch_size", "histogram", "Images that the network got at once.")
        yield from self._batches.lines("classifier_batch_size")
        yield from _head("classifier_waiting_pictures", "gauge", "Pictures that are not answered yet.")
        yield f"classifier_waiting_pictures {waiting}"
        yield from _head("process_resident_memory_bytes", "gauge", "Memory of the server and its workers.")
        server = psutil.Process()
        memory = sum(each.memory_info().rss for each in (server, *server.children()))
        yield f"process_resident_memory_bytes {memory}"


def _head(name: str, kind: str, words: str) -> Iterator[str]:
    yield f"# HELP {name} {words}"
    yield f"# TYPE {name} {kind}"
