"""Serve the trained model over HTTP: `make serve`, or `python -m tools.serve`; then open http://127.0.0.1:8000.

A page for people, POST /predict, the Open Inference Protocol and metrics; docs/serving.md explains them. The
probabilities are those of tools.predict: an ONNX export of the model answers when there is one, and with --exact
the model itself.

Without --folder, it serves models/ of this checkout or, before the first `dvc repro`, that of `make demo`.
"""

import argparse
import asyncio
import contextlib
import gc
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from stages.common import failure
from stages.common.failure import StageError
from stages.model.revisions import fetch_model
from tools.predict.models import find_model
from tools.serve.limits import Limits

LOOPBACK = frozenset({"127.0.0.1", "[::1]", "localhost"})


def main(arguments: Sequence[str]) -> None:
    """Parse, load the model, listen, serve until a signal comes."""
    options = _parse(arguments)
    missing = [name for name in ("fastapi", "uvicorn", "httptools", "python_multipart") if not find_spec(name)]
    if missing:
        raise StageError(f"{missing[0]} is not installed; run: make setup")
    from tools.serve.app import create_app  # only now: its packages may be missing
    from tools.serve.processes import running
    from tools.serve.protocol import server

    folder = options.folder or Path()
    if not options.folder and not options.model and not _model(folder).exists() and _model(Path("demo")).exists():
        folder = Path("demo")
    signal.signal(signal.SIGTERM, _exit)
    with _listen(options.host, options.port) as listener, tempfile.TemporaryDirectory() as private:
        # A private copy: no other process can change it before a worker loads it.
        if options.model is not None:
            path = fetch_model(folder, options.model, Path(private), "--model")
        else:
            path = _copy(_model(folder), Path(private))
        model, record, confidence = find_model(folder, path, options.exact)
        host, port = listener.getsockname()[:2]
        hosts = LOOPBACK if host in ("127.0.0.1", "::1") else None
        limits = Limits(options.max_bytes, options.max_pixels, options.max_files, options.max_waiting)
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        ready = f"{address}: model {record.sha256[:12]} of {folder}, {record.dataset.name}; Ctrl-C stops"
        gc.freeze()  # what is there now stays, so the collector need not look at it again

        async def serve() -> None:
            loop, starting = asyncio.get_running_loop(), asyncio.current_task()
            assert starting
            loop.add_signal_handler(signal.SIGTERM, starting.cancel)
            async with running(model, record.decoding, limits.pixels) as workers:
                loop.remove_signal_handler(signal.SIGTERM)
                signal.signal(signal.SIGTERM, _exit)  # uvicorn raises it again when all is answered
                app = create_app(workers, record, confidence, limits, hosts, options.cors)
                print(ready, flush=True)
                await server(app, limits.seconds).serve(sockets=[listener])

        try:
            asyncio.run(serve())
        except asyncio.CancelledError:  # by a signal, before it was ready
            sys.exit(0)
        except StageError as error:
            if options.model is not None:
                raise
            raise StageError(str(error).replace(str(path), str(_model(folder)))) from None


def _exit(*_: object) -> None:
    sys.exit(0)


def _model(folder: Path) -> Path:
    return folder / "models" / "model.keras"


def _copy(model: Path, folder: Path) -> Path:
    for path in (model.with_suffix(".json"), model):
        if not path.exists():
            raise StageError(f"{path}: no such file; run: make demo, or dvc repro")
        shutil.copy(path, folder)
    with contextlib.suppress(FileNotFoundError):  # without evaluate there is none
        shutil.copy(model.with_name("confidence.json"), folder)
    return folder / model.name


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StageError(f"{host}:{port}: cannot listen there ({reason}); try another --port or --host") from None


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.serve", description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="the checkout, such as demo")
    parser.add_argument("--model", metavar="REV", help="serve the model of a git revision or a DVC experiment")
    parser.add_argument("--exact", action="store_true", help="do not use the model's export")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="8000; 0 for any free one")
    cors = "a site whose pages may call this server, such as https://example.org; may be repeated"
    parser.add_argument("--cors", action="append", default=[], metavar="ORIGIN", help=cors)
    for option, default, words in (
        ("--max-bytes", Limits.bytes, "bytes of a request"),
        ("--max-pixels", Limits.pixels, "pixels of a picture"),
        ("--max-files", Limits.files, "pictures of a request"),
        ("--max-waiting", Limits.waiting, "pictures that are uploaded, decoded or predicted at one time"),
    ):
        parser.add_argument(option, type=int, default=default, metavar="N", help=f"{words} ({default:,})")
    options = parser.parse_args(arguments)
    for option in ("max_bytes", "max_pixels", "max_files", "max_waiting"):
        if getattr(options, option) < 1:
            raise StageError(f"--{option.replace('_', '-')} {getattr(options, option)}: it should be 1 or more")
    return options


if __name__ == "__main__":
    sys.exit(failure.run("serve", main))
