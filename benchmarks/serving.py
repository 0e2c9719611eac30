"""The server compared with bare batch inference and with the usual server: one `model.predict` per request.

Run as `python -m benchmarks.serving` where `dvc repro` and `make export` have run. 64 clients on this machine send
pictures to each server in turn for some seconds, and share its cores. The bare loop decodes files and predicts.
Pictures: the test images as PNGs, 1 and then 16 per request, and as JPEGs of 640 x 480 pixels. The last line
printed is JSON: images per second over the bare loop's, and the 99th percentile of the latency over the median
latency of a single client.
"""

import argparse
import asyncio
import contextlib
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from stages.common.failure import StageError
from stages.common.splits import read

ROOT = Path(__file__).parent.parent
CLIENTS = 64
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
from tools.predict.models import open_model
from tools.predict.sources import batches, find

folder, seconds = Path(sys.argv[1]), float(sys.argv[3])
run, record, _ = open_model(folder, folder / "models/model.keras", sys.argv[4] == "exact")
paths = find([sys.argv[2]])
for warm in (True, False):
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < (seconds / 4 if warm else seconds):
        for read, images, _ in batches(paths * 4, record.decoding):
            count += len(run(images))
print(count / (time.perf_counter() - began))
"""


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
                rates.setdefault("bare", []).append(float(bare.stdout))
                for server in ("served", "usual"):
                    with running(server, options.folder, options.exact) as port:
                        load(port, bodies, 2, options.seconds / 4)  # warm
                        alone, _ = load(port, bodies, 1, options.seconds / 2)
                        latencies, seconds = load(port, bodies, CLIENTS, options.seconds)
                    rates.setdefault(server, []).append(len(latencies) * each / seconds)
                    rates.setdefault(f"{server} alone", []).append(statistics.median(alone))
                    rates.setdefault(f"{server} p50", []).append(statistics.median(latencies))
                    rates.setdefault(f"{server} p99", []).append(statistics.quantiles(latencies, n=100)[98])
    report(results, options.rounds)


def report(results: dict[str, dict[str, list[float]]], rounds: int) -> None:
    """Print the medians and their ratios."""
    print(f"medians of {rounds} rounds, {CLIENTS} clients\n")
    columns = f"{'images/s':>9}{'of bare':>9}{'alone ms':>10}{'p50 ms':>8}{'p99 ms':>8}{'p99/alone':>11}"
    print(f"{'':22}{'server':8}{columns}")
    ratios = {}
    for kind, rates in results.items():
        median = {name: statistics.median(values) for name, values in rates.items()}
        print(f"{kind:22}{'bare':8}{median['bare']:9,.0f}{1:9.2f}")
        for server in ("served", "usual"):
            alone, p50, p99 = (1000 * median[f"{server} {name}"] for name in ("alone", "p50", "p99"))
            of_bare = median[server] / median["bare"]
            print(
                f"{kind:22}{server:8}{median[server]:9,.0f}{of_bare:9.2f}{alone:10.2f}{p50:8.1f}{p99:8.1f}"
                f"{p99 / alone:11.1f}"
            )
            ratios[f"{kind}, {server}"] = {"of_bare": round(of_bare, 2), "p99_of_alone": round(p99 / alone, 1)}
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
def running(server: str, folder: Path, exact: bool) -> Iterator[int]:
    """Run a server in a process of its own; yield its port."""
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
        time.sleep(1)
        yield 8471
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def _connected(port: int):  # type: ignore[no-untyped-def]
    import socket

    return socket.create_connection(("127.0.0.1", port), timeout=1)


def load(port: int, bodies: Sequence[bytes], clients: int, seconds: float) -> tuple[list[float], float]:
    """Let `clients` send requests, each the next one after its answer; return latencies, and how long it took."""
    latencies: list[float] = []
    began = time.perf_counter()

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        turn = number
        while time.perf_counter() - began < seconds:
            sent = time.perf_counter()
            writer.write(bodies[turn % len(bodies)])
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise StageError(head.decode())
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length))
            latencies.append(time.perf_counter() - sent)
            turn += clients
        writer.close()

    async def all_clients() -> None:
        await asyncio.gather(*(client(number) for number in range(clients)))

    asyncio.run(all_clients())
    return latencies, time.perf_counter() - began


if __name__ == "__main__":
    main()
