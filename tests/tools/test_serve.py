"""tools/serve: a real server on loopback, its API, its limits, and requests that mean no good."""

import base64
import contextlib
import csv
import io
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from PIL import Image

from stages.common.splits import read
from tests.project import ROOT, Project
from tests.tools.serving import Server, answer, bomb, connect, grey, mean, png, serving
from tools.serve import protocol
from tools.serve.limits import Limits

SMALL = ["--max-bytes", "100000", "--max-files", "8", "--max-pixels", "1000000"]


@pytest.fixture(scope="module")
def server(first_run: Project) -> Iterator[Server]:
    """The server of the small model of digits."""
    started = Server(first_run.folder, *SMALL)
    yield started
    assert started.stop() == 0


def require_problem(response: httpx.Response, status: int, words: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body.keys() == {"type", "title", "status", "detail"}
    assert body["status"] == status
    assert re.search(words, body["detail"]), body["detail"]


# Predictions.


def test_test_images_get_the_probabilities_that_evaluate_wrote(server: Server, first_run: Project) -> None:
    images = read(first_run.folder / "data/raw/test.npz").images
    with (first_run.folder / "data/predictions.csv").open(encoding="utf-8") as file:
        expected = [
            {
                name.removeprefix("probability_"): float(row[name])
                for name in row
                if name.startswith("probability_")
            }
            for row in csv.DictReader(file)
        ][:32]

    def predict(number: int) -> dict[str, float]:
        made = httpx.post(f"{server.url}/predict", content=png(np.array(images[number, :, :, 0])))
        probabilities: dict[str, float] = made.json()["predictions"][0]["probabilities"]
        return probabilities

    with ThreadPoolExecutor(16) as pool:  # so that they are predicted in batches
        assert list(pool.map(predict, range(32))) == expected


def test_a_form_gets_a_prediction_or_a_reason_for_each_file(server: Server) -> None:
    files = [
        ("picture", ("../../a.png", grey(9))),
        ("picture", ("words.png", b"no picture")),
        ("x", ("ä", grey(250))),
    ]
    first, second, third = httpx.post(f"{server.url}/predict", files=files).json()["predictions"]
    assert first["name"] == "../../a.png"
    assert first["probabilities"][first["class"]] == first["probability"]
    assert second == {"name": "words.png", "error": second["error"]}
    assert "not a picture" in second["error"]
    assert third["name"] == "ä"


def test_the_pixels_that_the_network_sees_are_sent_on_request() -> None:
    pixels = np.arange(0, 160, 10, dtype=np.uint8).reshape(4, 4)
    with serving() as url:
        (prediction,) = httpx.post(f"{url}/predict?pixels=true", content=png(pixels)).json()["predictions"]
    content = prediction["pixels"].removeprefix("data:image/png;base64,")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))), pixels)


def test_requests_that_wait_are_predicted_as_one_batch() -> None:
    sizes: list[int] = []
    release = threading.Event()

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        sizes.append(len(images))
        release.wait(30)
        return mean(images)

    def predict(level: int) -> float:
        response = httpx.post(f"{url}/predict", content=grey(level), timeout=60)
        return float(response.json()["predictions"][0]["probabilities"]["light"])

    with serving(run) as url, ThreadPoolExecutor(8) as pool:
        predicted = [pool.submit(predict, level) for level in range(0, 200, 25)]
        while "classifier_waiting_pictures 8" not in httpx.get(f"{url}/metrics").text:
            time.sleep(0.01)
        time.sleep(0.2)  # until all are read
        release.set()
        values = [each.result() for each in predicted]
    assert values == pytest.approx([level / 255 for level in range(0, 200, 25)], abs=1e-6)
    assert len(sizes) == 2  # what came first, and then all the others
    assert sum(sizes) == 8


def test_a_network_that_fails_answers_500_and_the_next_request_is_answered(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        if images.max() == 13:
            raise MemoryError
        return mean(images)

    with serving(run) as url:
        require_problem(httpx.post(f"{url}/predict", content=grey(13)), 500, "the server failed")
        assert httpx.post(f"{url}/predict", content=grey(14)).status_code == 200
    assert "MemoryError" in capfd.readouterr().err


# The Open Inference Protocol.


def test_the_open_inference_protocol_gives_the_same_probabilities(server: Server, first_run: Project) -> None:
    images = read(first_run.folder / "data/raw/test.npz").images[:3]
    model = f"{server.url}/v2/models/digits"
    described = httpx.get(model).json()
    assert described["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 8, 8, 1]}]
    assert httpx.get(f"{server.url}/v2/health/live").status_code == 200
    assert httpx.get(f"{server.url}/v2/health/ready").status_code == 200
    assert httpx.get(f"{model}/versions/{described['versions'][0]}/ready").status_code == 200
    tensor = {"name": "images", "datatype": "UINT8", "shape": [3, 8, 8, 1], "data": images.ravel().tolist()}
    flat = httpx.post(f"{model}/infer", json={"id": "7", "inputs": [tensor]}).json()
    nested = httpx.post(f"{model}/infer", json={"inputs": [{**tensor, "data": images.tolist()}]}).json()
    assert flat["id"] == "7"
    assert flat["outputs"] == nested["outputs"]
    assert flat["outputs"][0]["shape"] == [3, 10]
    files = [("picture", (str(number), png(np.array(image[:, :, 0])))) for number, image in enumerate(images)]
    pictures = httpx.post(f"{server.url}/predict", files=files).json()["predictions"]
    expected = [value for each in pictures for value in each["probabilities"].values()]
    assert flat["outputs"][0]["data"] == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": [0] * 15}, r"expected the elements of the shape \[1, 4, 4, 1\]"),
        ({"data": [0] * 15 + [256]}, "whole numbers from 0 to 255"),
        ({"data": [0] * 15 + [0.5]}, "whole numbers"),
        ({"data": [0] * 15 + ["0"]}, "whole numbers"),
        ({"data": [[0], [0, 0]]}, "differ in length"),
        ({"data": []}, "elements of the shape"),
        ({"data": 0}, "inputs.0.data: Input should be a valid"),
        ({"shape": [10**9, 4, 4, 1]}, "N from 1 to"),
        ({"shape": [0, 4, 4, 1]}, "N from 1 to"),
        ({"shape": []}, "expected \\[N, 4, 4, 1\\]"),
        ({"datatype": "FP32"}, "expected the tensor images of UINT8"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused_with_the_reason(changes: dict[str, object], words: str) -> None:
    tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 4, 4, 1], "data": [0] * 16, **changes}
    with serving() as url:
        require_problem(httpx.post(f"{url}/v2/models/dots/infer", json={"inputs": [tensor]}), 400, words)


# What is refused, and how.


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "words"),
    [
        ("POST", "/predict", b"", 400, "no body"),
        ("POST", "/predict", b"GIF89a", 422, "the file is (damaged|not a picture)"),
        ("POST", "/predict", grey(7)[:40], 422, "the file is"),
        ("POST", "/predict", b"x" * 100_001, 413, "more than 100,000 bytes"),
        ("POST", "/predict?pixels=perhaps", grey(7), 400, "query.pixels"),
        ("GET", "/predict", None, 405, "Method Not Allowed"),
        ("GET", "/etc/passwd", None, 404, "Not Found"),
        ("GET", "/..%2f..%2fetc/passwd", None, 404, "Not Found"),
        ("GET", "/v2/models/other", None, 404, "no such model; this server has digits"),
        ("POST", "/v2/models/digits/infer", b"[" * 50_000, 400, "Invalid JSON"),
        ("POST", "/v2/models/digits/infer", b"\xff\xfe", 400, "Invalid JSON"),
    ],
)
def test_what_is_wrong_with_a_request_is_named(
    server: Server, method: str, path: str, content: bytes | None, status: int, words: str
) -> None:
    require_problem(httpx.request(method, server.url + path, content=content), status, words)


def test_forms_without_files_and_with_too_many_are_refused(server: Server) -> None:
    form = {"content-type": "multipart/form-data; boundary=x"}
    url = f"{server.url}/predict"
    require_problem(httpx.post(url, files=[("p", (str(n), grey(n))) for n in range(9)]), 400, "Too many files")
    require_problem(httpx.post(url, content=b"--x--\r\n", headers=form), 400, "no files")
    require_problem(httpx.post(url, content=b"rubbish", headers=form), 400, "nvalid|no files")
    require_problem(
        httpx.post(url, content=b"x", headers={"content-type": "multipart/form-data"}), 400, "boundary"
    )


def test_a_body_of_unknown_length_is_cut_at_the_limit(server: Server) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(200):
            yield b"x" * 1000

    require_problem(httpx.post(f"{server.url}/predict", content=parts()), 413, "more than 100,000 bytes")


def test_a_picture_with_too_many_pixels_is_refused_before_it_is_decoded(server: Server) -> None:
    content = bomb(8000)
    assert len(content) < 100_000
    before = server.memory()
    require_problem(httpx.post(f"{server.url}/predict", content=content), 422, "more than 1,000,000 pixels")
    assert server.memory() - before < 30_000_000


def test_a_server_that_is_full_says_when_to_come_back() -> None:
    release = threading.Event()

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        release.wait(30)
        return mean(images)

    with serving(run, Limits(waiting=2, seconds=30)) as url, ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(httpx.post, f"{url}/predict", content=grey(1), timeout=60) for _ in range(2)]
        while "classifier_waiting_pictures 2" not in httpx.get(f"{url}/metrics").text:
            time.sleep(0.01)
        refused = httpx.post(f"{url}/predict", content=grey(2))
        require_problem(refused, 503, "2 pictures are waiting already")
        assert refused.headers["retry-after"] == "1"
        require_problem(httpx.get(f"{url}/v2/health/ready"), 503, "waiting already")
        assert httpx.get(f"{url}/v2/health/live").status_code == 200
        release.set()
        assert [each.result().status_code for each in waiting] == [200, 200]
        assert httpx.post(f"{url}/predict", content=grey(2)).status_code == 200


def test_uploads_that_take_too_much_memory_together_are_refused() -> None:
    with serving(limits=Limits(held=50_000, seconds=5)) as url:
        with connect(url) as other:
            other.sendall(
                b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 40001\r\n\r\n" + b"x" * 40_000
            )
            time.sleep(0.3)
            require_problem(httpx.post(f"{url}/predict", content=b"x" * 20_000), 503, "too many bytes")
        for _ in range(100):  # until the server notices that the other has gone
            if httpx.post(f"{url}/predict", content=b"x" * 20_000).status_code == 422:
                return
            time.sleep(0.05)
    raise AssertionError("the bytes of a request that was broken off count for ever")


def test_slow_clients_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.3)
    with serving(limits=Limits(seconds=0.5)) as url:
        with connect(url) as silent, connect(url) as head, connect(url) as body:
            head.sendall(b"POST /predict HTTP/1.1\r\nHost: 127.0")
            body.sendall(b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\nx")
            assert answer(silent) == b""
            assert answer(head) == b""
            cut = answer(body)
        assert cut.startswith(b"HTTP/1.1 408 ")
        assert b"did not arrive within 0.5 seconds" in cut
        assert httpx.post(f"{url}/predict", content=grey(2)).status_code == 200


def test_heads_trailers_and_extensions_of_chunks_have_an_end() -> None:
    chunked = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    starts = (b"GET /", b"GET / HTTP/1.1\r\nX: ", chunked + b"0\r\nX: ", chunked + b"1;x=")
    with serving() as url, contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connect(url)) for _ in starts]
        for connection, start in zip(connections, starts, strict=True):
            connection.sendall(start)
        time.sleep(0.3)  # so that the rest is read by itself
        for connection in connections:
            connection.sendall(b"x" * 17_000)
            assert b"the head of the request has more than 16,384 bytes" in answer(connection)


def test_trailers_are_not_headers_of_the_request() -> None:
    content = grey(7)
    head = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"%x\r\n%b\r\n" % (len(content), content)
    with serving() as url, connect(url) as connection:
        connection.sendall(head + chunk + b"0\r\nContent-Type: multipart/form-data\r\n\r\n")
        assert answer(connection).startswith(b"HTTP/1.1 200 OK")


def test_requests_that_are_sent_before_an_answer_are_answered_in_order_up_to_a_limit() -> None:
    one = b"GET /v2/health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    last = one.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    with serving() as url:
        with connect(url) as connection:
            connection.sendall(one * 9 + last)
            assert answer(connection).count(b"HTTP/1.1 200 OK") == 10
        with connect(url) as connection:
            connection.sendall(one * 1000)
            assert answer(connection) == b""
        assert httpx.get(f"{url}/v2/health/live").status_code == 200


def test_there_is_an_end_to_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "CONNECTIONS", 3)
    with serving() as url, contextlib.ExitStack() as stack:
        opened = [stack.enter_context(connect(url)) for _ in range(3)]
        with connect(url) as one_more:
            assert answer(one_more) == b""
        opened.pop().close()
        time.sleep(0.2)
        assert httpx.get(f"{url}/v2/health/live").status_code == 200


def test_every_answer_has_the_security_headers(server: Server) -> None:
    for response in (httpx.get(server.url), httpx.get(f"{server.url}/no"), httpx.post(f"{server.url}/predict")):
        assert response.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "server" not in response.headers
        assert "access-control-allow-origin" not in response.headers


def test_other_names_for_this_machine_are_not_answered(server: Server) -> None:
    for host in ("attacker.example", f"attacker.example:{server.port}", ""):
        require_problem(httpx.get(server.url, headers={"host": host}), 421, "the name in Host")
    with connect(server.url) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: other\r\nConnection: close\r\n\r\n")
        assert answer(connection).startswith(b"HTTP/1.1 400 ")
    for host in ("localhost", f"127.0.0.1:{server.port}", "[::1]:80"):
        assert httpx.get(server.url, headers={"host": host}).status_code == 200


def test_pages_of_other_sites_may_call_the_server_only_where_it_was_told_so() -> None:
    site = "https://example.org"
    with serving(cors=site) as url:
        allowed = httpx.post(f"{url}/predict", content=grey(2), headers={"origin": site})
        other = httpx.post(f"{url}/predict", content=grey(2), headers={"origin": "https://example.com"})
    assert allowed.headers["access-control-allow-origin"] == site
    assert "access-control-allow-origin" not in other.headers


# Metrics and description.


def test_metrics_count_what_was_done() -> None:
    with serving() as url:
        httpx.post(f"{url}/predict", files=[("p", ("a", grey(1))), ("p", ("b", b"x"))])
        for number in range(3):
            httpx.request("PROPFIND", f"{url}/{number}")
        text = httpx.get(f"{url}/metrics").text
    assert 'http_requests_total{method="POST",path="/predict",status="200"} 1' in text
    assert 'http_requests_total{method="other",path="other",status="404"} 3' in text
    assert 'classifier_pictures_total{result="predicted"} 1' in text
    assert 'classifier_pictures_total{result="unreadable"} 1' in text
    assert 'classifier_batch_size_bucket{le="1"} 1' in text
    line = r"(# (HELP|TYPE) \w+ .+|\w+(\{\w+=\"[^\"]*\"(,\w+=\"[^\"]*\")*\})? [\d.e+-]+)"
    assert [each for each in text.splitlines() if not re.fullmatch(line, each)] == []


def test_the_openapi_description_names_every_route(server: Server) -> None:
    description = httpx.get(f"{server.url}/openapi.json").json()
    assert description["openapi"].startswith("3.")
    assert {"/predict", "/metrics", "/v2/health/ready", "/v2/models/{name}/infer"} <= description["paths"].keys()
    references = re.findall(r'"\$ref": ?"#/components/schemas/(\w+)"', json.dumps(description))
    assert set(references) <= description["components"]["schemas"].keys()
    answers = description["paths"]["/predict"]["post"]["responses"]
    assert answers["503"]["content"].keys() == {"application/problem+json"}
    operations = [each for path in description["paths"].values() for each in path.values()]
    assert all("default" in each["responses"] for each in operations)
    model = description["paths"]["/v2/models/{name}"]["get"]
    assert [each["name"] for each in model["parameters"]] == ["name"]
    assert model["responses"].keys() == {"200", "404", "default"}
    assert "text/plain" in description["paths"]["/metrics"]["get"]["responses"]["200"]["content"]


# The processes.


def test_a_worker_that_ends_is_replaced(first_run: Project) -> None:
    server = Server(first_run.folder)
    before = server.workers()
    for number, worker in enumerate(before):
        worker.send_signal((signal.SIGKILL, signal.SIGSEGV)[number % 2])
    psutil.wait_procs(before, 30)
    for _ in before:
        assert httpx.post(f"{server.url}/predict", content=grey(9), timeout=60).status_code == 200
    after = server.workers()
    assert server.stop() == 0
    assert re.search(r"serve: a worker ended \(signal (9|11)\); another has started\n", server.errors)
    assert len(after) == len(before)
    assert not any(each.is_running() for each in after)


def test_workers_end_with_a_server_that_is_killed(first_run: Project) -> None:
    server = Server(first_run.folder)
    workers = server.workers()
    server.process.kill()
    server.process.communicate(timeout=60)
    assert workers
    assert psutil.wait_procs(workers, 30)[1] == []


@pytest.mark.parametrize("to_all", [False, True], ids=["server", "all processes"])
def test_a_signal_lets_a_running_request_end(first_run: Project, to_all: bool) -> None:
    server, content = Server(first_run.folder), grey(3)
    with connect(server.url) as connection:
        head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(content)}\r\n\r\n"
        connection.sendall(head.encode() + content[:10])
        time.sleep(0.3)
        for process in (server.process, *(server.workers() if to_all else ())):
            process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        with pytest.raises(ConnectionError):
            connect(server.url)
        connection.sendall(content[10:])
        assert answer(connection).startswith(b"HTTP/1.1 200 OK")
    _, errors = server.process.communicate(timeout=60)
    assert server.process.returncode == 0
    assert errors == ""


def test_a_signal_while_workers_start_ends_them(first_run: Project) -> None:
    command = [sys.executable, "-m", "tools.serve", "--folder", str(first_run.folder), "--port", "0"]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (workers := psutil.Process(server.pid).children()):
        time.sleep(0.01)
    server.send_signal(signal.SIGTERM)
    assert server.communicate(timeout=60) == ("", "")
    assert server.returncode == 0
    assert psutil.wait_procs(workers, 30)[1] == []


def test_a_model_that_is_replaced_or_cut_while_it_serves_changes_no_answer(
    first_run: Project, tmp_path: Path
) -> None:
    project = first_run.copy(tmp_path / "project")
    server = Server(project.folder)
    before = httpx.post(f"{server.url}/predict", content=grey(9)).json()
    path = project.folder / "models" / "model.keras"
    content = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(content[: len(content) // 2])
    assert httpx.post(f"{server.url}/predict", content=grey(9)).json() == before
    assert server.stop() == 0
    command = [sys.executable, "-m", "tools.serve", "--folder", str(project.folder), "--port", "0"]
    started = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert started.returncode == 1
    assert re.fullmatch(rf"serve: {path}: not the model that the stage train wrote .*\n", started.stderr)


def test_before_the_first_run_the_model_of_the_demo_is_served(
    first_run: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "demo").symlink_to(first_run.folder)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    server = Server(None, cwd=tmp_path)
    assert httpx.get(f"{server.url}/v2/models/digits/ready").status_code == 200
    assert server.stop() == 0


@pytest.mark.slow
def test_the_model_of_another_revision_is_served(first_run: Project, tmp_path: Path) -> None:
    project = first_run.copy(tmp_path / "project")
    with (project.folder / "models/model.json").open("rb") as file:
        version = json.load(file)["sha256"]
    (project.folder / "models/model.keras").unlink()
    server = Server(project.folder, "--model", "HEAD")
    assert httpx.get(f"{server.url}/v2/models/digits").json()["versions"] == [version[:12]]
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "nowhere"], "--model nowhere: .*unknown Git revision"),
        (["--folder", "nowhere"], "nowhere/models/model.json: no such file; run: make demo, or dvc repro"),
        (["--port", "70000"], "127.0.0.1:70000: cannot listen there"),
        (["--host", "192.0.2.1"], "192.0.2.1:8000: cannot listen there .* try another --port or --host"),
        (["--max-files", "0"], "--max-files 0: it should be 1 or more"),
    ],
)
def test_a_server_that_cannot_start_says_why_in_one_line(arguments: list[str], words: str) -> None:
    command = [sys.executable, "-m", "tools.serve", *arguments]
    started = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert started.returncode == 1
    assert re.fullmatch(rf"serve: {words}.*\n", started.stderr), started.stderr
