"""The server compared with bare batch inference and with the usual server: one `model.predict` per request.

Run as `python -m benchmarks.serving` where `dvc repro` and `make export` have run. 64 clients on this machine send
pictures to each server in turn for some seconds, and share its cores: each the next one after its answer, and then
at random times, at 0.7 of the rate that it reached. The bare loop decodes files and predicts. Pictures: the
test images as PNGs, 1 and then 16 per request, and as JPEGs of 640 x 480 pixels.

Prints images per second, and the CPU time per image of the server and of the clients, which depends less on what
else runs on the machine. The last line is JSON: images per second over the bare loop's, CPU time over its,
and the 99th percentile of the latency, in both cases, over the median latency of a single client.
"""

import argparse
import contextlib
import io
import json
import math
import os
import random
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
from PIL import Image

from stages.common.failure import StageError
from stages.common.splits import read

ROOT = Path(__file__).parent.parent
CLIENTS = 64
LOAD = 0.7  # of the rate that a server reaches
PICTURES = 512
BOUNDARY = "serving-benchmark"

# What a tutorial does; only the decoding is ours, so that it gets the same pixels.
USUAL = """
import io, sys
from pathlib import Path
import keras, numpy as np, uvicorn
from fastapi import FastAPI, Request
from stages.common.pictures import decode
from stages.common.records import ModelRecord, read_record

folder = Path(sys.argv[1])
record = read_record(folder / "models/model.json", ModelRecord)
model = keras.saving.load_model(folder / "models/model.keras", compile=False)
app = FastAPI()

@app.post("/predict")
async def predict(request: Request):
    if request.headers["content-type"].startswith("multipart/"):
        contents = [await file.read() for _, file in (await request.form()).multi_items()]
    else:
        contents = [await request.body()]
    images = np.stack([decode(io.BytesIO(each), record.decoding) for each in contents]).astype("float32") / 255
    if record.scaling == "standardize":
        images = (images - np.float32(record.mean)) / np.float32(record.std)
    rows = model.predict(images, verbose=0)
    return [dict(zip(record.classes, row.tolist())) for row in rows]

uvicorn.run(app, port=int(sys.argv[2]), log_level="error", access_log=False)
"""

BARE = """
import sys, time
from pathlib import Path
from tools.predict.models import find_model
from tools.predict.sources import batches, find

folder, seconds = Path(sys.argv[1]), float(sys.argv[3])
model, record, _ = find_model(folder, folder / "models/model.keras", sys.argv[4] == "exact")
run = model.open()
paths = find([sys.argv[2]])
for warm in (True, False):
    count, used, began = 0, time.process_time(), time.perf_counter()
    while time.perf_counter() - began < (seconds / 4 if warm else seconds):
        for read, images, _ in batches(paths * 4, record.decoding):
            count += len(run(images))
print(count / (time.perf_counter() - began), 1e6 * (time.process_time() - used) / count)
"""


class Load(NamedTuple):
    """What clients measured, in seconds: the latency of each request, the whole time, and their own CPU time."""

    latencies: list[float]
    seconds: float
    cpu: float


def main() -> None:
    """Make the pictures, measure in turns, print a table and the ratios."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path(), help="the checkout")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5, help="of one measurement")
    parser.add_argument("--exact", action="store_true", help="without the model's export")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        kinds = pictures(options.folder, Path(name))
        results: dict[str, dict[str, list[float]]] = {}
        for _ in range(options.rounds):
            for kind, (folder, each) in kinds.items():
                bodies = requests(folder, each)
                rates = results.setdefault(kind, {})
                command = [sys.executable, "-c", BARE, str(options.folder), str(folder), str(options.seconds)]
                bare = subprocess.run(
                    [*command, "exact" if options.exact else "export"], cwd=ROOT, check=True, capture_output=True
                )
                rate, cpu = map(float, bare.stdout.split())
                rates.setdefault("bare", []).append(rate)
                rates.setdefault("bare cpu", []).append(cpu)
                for server in ("served", "usual"):
                    with running(server, options.folder, options.exact) as (port, process):
                        load(port, bodies, 2, options.seconds / 4)  # warm
                        alone = load(port, bodies, 1, options.seconds / 2)
                        used = _cpu(process)
                        all_ = load(port, bodies, CLIENTS, options.seconds)
                        used = _cpu(process) - used
                        rate = LOAD * len(all_.latencies) / all_.seconds
                        # Servers close a connection that was silent for 5 seconds.
                        paced = load(port, bodies, CLIENTS, min(5, options.seconds), rate)
                    images = len(all_.latencies) * each
                    rates.setdefault(server, []).append(images / all_.seconds)
                    rates.setdefault(f"{server} cpu", []).append(1e6 * used / images)
                    rates.setdefault(f"{server} clients", []).append(1e6 * all_.cpu / images)
                    rates.setdefault(f"{server} paced p99", []).append(_p99(paced))
                    rates.setdefault(f"{server} alone", []).append(statistics.median(alone.latencies))
                    rates.setdefault(f"{server} p50", []).append(statistics.median(all_.latencies))
                    rates.setdefault(f"{server} p99", []).append(_p99(all_))
    report(results, options.rounds)


def report(results: dict[str, dict[str, list[float]]], rounds: int) -> None:
    """Print the medians and their ratios."""
    print(f"medians of {rounds} rounds, {CLIENTS} clients\n")
    names = ("images/s", "of bare", "CPU us", "clients", "alone", "p50", "p99 ms", "/alone", "at 0.7", "/alone")
    print(f"{'':22}{'server':8}{''.join(f'{name:>10}' for name in names)}")
    ratios = {}
    for kind, rates in results.items():
        median = {name: statistics.median(values) for name, values in rates.items()}
        bare = median["bare"]
        print(f"{kind:22}{'bare':8}{bare:10,.0f}{1:10.2f}{median['bare cpu']:10.0f}")
        for server in ("served", "usual"):
            rate, cpu, clients = median[server], median[f"{server} cpu"], median[f"{server} clients"]
            latencies = ("alone", "p50", "p99", "paced p99")
            alone, p50, p99, paced = (1000 * median[f"{server} {name}"] for name in latencies)
            print(
                f"{kind:22}{server:8}{rate:10,.0f}{rate / bare:10.2f}{cpu:10.0f}{clients:10.0f}"
                f"{alone:10.2f}{p50:10.1f}{p99:10.1f}{p99 / alone:10.1f}{paced:10.1f}{paced / alone:10.1f}"
            )
            ratios[f"{kind}, {server}"] = {
                "of_bare": round(rate / bare, 2),
                "cpu_of_bare": round((cpu + clients) / median["bare cpu"], 2),
                "p99_of_alone": round(p99 / alone, 1),
                "paced_p99_of_alone": round(paced / alone, 1),
            }
    print(json.dumps(ratios))


def pictures(checkout: Path, folder: Path) -> dict[str, tuple[Path, int]]:
    """Write the pictures; return, by kind, their folder and how many a request has."""
    test = read(checkout / "data" / "raw" / "test.npz")
    small, large = folder / "small", folder / "large"
    small.mkdir()
    large.mkdir()
    for number in range(min(PICTURES, len(test.images))):
        image = np.array(test.images[number])
        picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
        picture.save(small / f"{number:03}.png")
        if number < 64:
            picture.convert("RGB").resize((640, 480), Image.Resampling.BICUBIC).save(large / f"{number:03}.jpg")
    return {"PNG": (small, 1), "16 PNGs a request": (small, 16), "photograph": (large, 1)}


def requests(folder: Path, each: int) -> list[bytes]:
    """Return requests with `each` of the folder's pictures, as bytes to send."""
    contents = [path.read_bytes() for path in sorted(folder.iterdir())]
    return [_request(contents[start : start + each]) for start in range(0, len(contents) - each + 1, each)]


def _request(contents: Sequence[bytes]) -> bytes:
    kind, body = "application/octet-stream", contents[0]
    if len(contents) > 1:
        kind, form = f"multipart/form-data; boundary={BOUNDARY}", io.BytesIO()
        for number, content in enumerate(contents):
            head = f'Content-Disposition: form-data; name="picture"; filename="{number}"'
            form.write(f"--{BOUNDARY}\r\n{head}\r\n\r\n".encode() + content + b"\r\n")
        form.write(f"--{BOUNDARY}--\r\n".encode())
        body = form.getvalue()
    head = (
        f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@contextlib.contextmanager
def running(server: str, folder: Path, exact: bool) -> Iterator[tuple[int, psutil.Process]]:
    """Run a server in a process of its own; yield its port, and the process."""
    if server == "served":
        command = [sys.executable, "-m", "tools.serve", "--folder", str(folder), "--port", "8471"]
        command += ["--exact"] if exact else []
    else:
        command = [sys.executable, "-c", USUAL, str(folder), "8471"]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        for _ in range(600):
            time.sleep(0.1)
            with contextlib.suppress(OSError), contextlib.closing(_connected(8471)):
                break
            if process.poll() is not None:
                raise StageError(f"the server ended: {process.stderr.read() if process.stderr else ''}")
        else:
            raise StageError("the server did not listen within a minute")
        time.sleep(1)
        yield 8471, psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def _cpu(process: psutil.Process) -> float:
    times = [each.cpu_times() for each in (process, *process.children())]
    return float(sum(each.user + each.system for each in times))


def _connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def load(port: int, bodies: Sequence[bytes], clients: int, seconds: float, rate: float = math.inf) -> Load:
    """Let `clients` send requests, each the next one after its answer, or all together `rate` per second.

    With a rate, the times are random. A request that waits for a free client has begun when it was due.
    """
    latencies: list[float] = []
    times = random.Random(0)
    # epoll waits for whole milliseconds: too coarse for requests that are due at a time.
    with selectors.DefaultSelector() if rate == math.inf else selectors.SelectSelector() as selector:
        free = [Client(_connected(port), bodies, number, clients) for number in range(clients)]
        for client in free:
            selector.register(client.connection, selectors.EVENT_READ, client)
        used, began = time.process_time(), time.perf_counter()
        due = now = began
        while (sending := now - began < seconds) or len(free) < clients:
            while sending and free and due <= now:
                client = free.pop()
                client.send(now if rate == math.inf else due)
                due += times.expovariate(rate)
            wait = max(0, due - time.perf_counter()) if sending and free else None
            for key, _ in selector.select(wait):
                if key.data in free:  # at the end, when a server has closed a connection that was silent
                    selector.unregister(key.fileobj)
                elif key.data.receive():
                    latencies.append(time.perf_counter() - key.data.began)
                    free.append(key.data)
            now = time.perf_counter()
        spent = Load(latencies, now - began, time.process_time() - used)
        for client in free:
            client.connection.close()
    return spent


def _p99(load: Load) -> float:
    return statistics.quantiles(load.latencies, n=100)[98]


class Client:
    """A connection that is kept; plain sockets, as the clients' time is the server's loss."""

    def __init__(self, connection: socket.socket, bodies: Sequence[bytes], first: int, step: int) -> None:
        """Send `bodies` in turn, every `step`-th from `first` on."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection, self.began = connection, 0.0
        self._bodies, self._turn, self._step, self._answer = bodies, first, step, b""

    def send(self, began: float) -> None:
        """Send the next request, whose latency counts from `began`."""
        self.began, self._answer = began, b""
        self.connection.sendall(self._bodies[self._turn % len(self._bodies)])
        self._turn += self._step

    def receive(self) -> bool:
        """Read what has come; return whether the answer is complete."""
        self._answer += (received := self.connection.recv(262_144))
        head, _, content = self._answer.partition(b"\r\n\r\n")
        if not received or not head.startswith(b"HTTP/1.1 200"):
            raise StageError(f"the server answered {self._answer.decode()}")
        return len(content) == int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or -1)


if __name__ == "__main__":
    main()
