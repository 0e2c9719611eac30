"""Peak memory of each stage on JPEG pictures of 224 x 224 pixels in a .zip or .tar, by the number of pictures.

Run as `python -m benchmarks.memory 5000 100000`, on Linux. 100,000 pictures need 32 GB of disk, freed at the end.
Each stage runs once with `preprocess.storage: uint8` and a small network. The peak is that of the process, with
the pages of files that it has mapped; "private" and "of files" are its parts when it was largest, among samples
taken every 20 ms. The last rows are TensorFlow alone, imported, and Keras with one batch of that network.
"""

import argparse
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from stages.common import failure
from stages.common.failure import StageError
from tools.demo import choose

ROOT = Path(__file__).parent.parent
PIXELS, CLASSES = 224, 5
CHOICES = {
    "dataset.name": "folder",
    "dataset.folder.pixels": PIXELS,
    "preprocess.storage": "uint8",
    "model.blocks": [{"filters": 4, "layers": 1, "pool": 4, "dropout": 0}],
    "model.head": "average",
    "model.dense": [16],
    "train.epochs": 1,
}
STAGES = ("download", "preprocess", "train", "evaluate")
IMPORTED = "import keras, tensorflow"
ONE_BATCH = """
import keras, numpy, tensorflow
model = keras.saving.load_model("models/model.keras")
model.compile("adam", "categorical_crossentropy")
model.train_on_batch(numpy.zeros((32, *model.input_shape[1:])), numpy.zeros((32, *model.output_shape[1:])))
"""


def main(arguments: Sequence[str]) -> None:
    """Parse, make the pictures, run the stages, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__.partition("\n")[0])
    parser.add_argument("pictures", type=int, nargs="+")
    parser.add_argument("--archive", choices=("zip", "tar"), default="zip")
    parser.add_argument("--last", choices=STAGES, default=STAGES[-1], help="the stage to stop after")
    parser.add_argument("--folder", type=Path, help="where the files go; the temporary folder if not given")
    options = parser.parse_args(arguments)
    if not Path("/proc/self/status").exists():
        raise StageError("this system does not report what is measured here; run it on Linux")
    print("| pictures | process | peak MB | private MB | of files MB | CPU s | s |\n|---|---|---|---|---|---|---|")
    for pictures in options.pictures:
        with tempfile.TemporaryDirectory(prefix="memory-", dir=options.folder) as name:
            folder = Path(name)
            make(folder / f"pictures.{options.archive}", pictures)
            (folder / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
            choose(folder / "params.yaml", {**CHOICES, "dataset.folder.path": f"pictures.{options.archive}"})
            for stage in STAGES[: STAGES.index(options.last) + 1]:
                print(f"| {pictures:,} | {stage} | {row(['-m', f'stages.{stage}'], folder)} |", flush=True)
            if pictures == options.pictures[-1] and (folder / "models/model.keras").exists():
                print(f"| none | TensorFlow, imported | {row(['-c', IMPORTED], folder)} |", flush=True)
                print(f"| 32 | Keras, one batch | {row(['-c', ONE_BATCH], folder)} |", flush=True)


def make(path: Path, pictures: int) -> None:
    """Write an archive of different pictures, a folder for each class: blurred noise, the same on every call."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") if path.suffix == ".zip" else tarfile.open(path, "w") as archive:
        for number in range(pictures):
            small = Image.fromarray(rng.integers(0, 256, (14, 14, 3), np.uint8))
            content = io.BytesIO()
            small.resize((PIXELS, PIXELS), Image.Resampling.BILINEAR).save(content, "JPEG")
            name = f"class{number % CLASSES}/{number}.jpg"
            if isinstance(archive, zipfile.ZipFile):
                archive.writestr(name, content.getvalue())
            else:
                member = tarfile.TarInfo(name)
                member.size = content.tell()
                archive.addfile(member, io.BytesIO(content.getvalue()))


def row(arguments: list[str], folder: Path) -> str:
    """Run Python in `folder` and return the columns of the table from the peak on."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    began, largest = time.monotonic(), (0, 0)
    with tempfile.TemporaryFile("w+") as words:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=folder, env=environment, stdout=words, stderr=words
        )
        status = Path(f"/proc/{process.pid}/status")
        while True:
            ended, code, used = os.wait4(process.pid, os.WNOHANG)
            if ended:
                break
            largest = max(largest, _resident(status.read_text()), key=sum)
            time.sleep(0.02)
        process.returncode = os.waitstatus_to_exitcode(code)
        if process.returncode:
            words.seek(0)
            raise StageError(f"{' '.join(arguments[:2])} failed: {(words.read().splitlines() or ['killed'])[-1]}")
    private, mapped = (size / 1000 for size in largest)
    seconds, cpu = time.monotonic() - began, used.ru_utime + used.ru_stime
    return f"{used.ru_maxrss / 1000:,.0f} | {private:,.0f} | {mapped:,.0f} | {cpu:,.0f} | {seconds:,.0f}"


def _resident(status: str) -> tuple[int, int]:
    """The private and the mapped memory, in kB, in the status of a process: none once it has ended."""
    fields = dict(line.split(":", 1) for line in status.splitlines())
    if "RssAnon" not in fields:
        return 0, 0
    private, mapped = (int(fields[name].split()[0]) for name in ("RssAnon", "RssFile"))
    return private, mapped


if __name__ == "__main__":
    sys.exit(failure.run("memory", main))
