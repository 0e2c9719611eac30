"""Peak memory and CPU time of the search for duplicates as the number of training images grows.

Run as `python -m benchmarks.duplicates`, on Linux. The images, in a temporary folder, are 32 x 32: four squares of
random colors. Each search, of 1,024 test images, is a separate process. The last line printed is JSON.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.process import measured
from stages.common import failure, splits
from stages.common.outputs import require_space
from stages.evaluation.duplicates import find_leaks

TESTS, PART = 1024, 1000  # images; PART is written at a time
BYTES = 32 * 32 * 3 + 1 + 480  # of an image, its label and its descriptor


def main(arguments: Sequence[str]) -> None:
    """Measure one search in this process, or write the images and measure each in a process of its own."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.duplicates", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--images", type=int, nargs="+", default=[200_000, 1_000_000])
    parser.add_argument("--folder", type=Path, help="for the images; the system's temporary folder if not given")
    parser.add_argument("--only", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.only:
        print(json.dumps(search(options.only)))
        return
    with tempfile.TemporaryDirectory(prefix="duplicates-", dir=options.folder) as name:
        folder = Path(name)
        require_space(folder, max(options.images) * BYTES)
        write(folder / "test.npz", TESTS, seed=0)
        results = []
        for count in options.images:
            write(folder / "train.npz", count, seed=1)
            result = {"images": count, **measured("benchmarks.duplicates", "--only", name)}
            print(f"{count:,} images: {result['peak_mb']:.0f} MB, {result['cpu_seconds']:.0f} s of CPU time")
            results.append(result)
    print(json.dumps(results))


def write(path: Path, count: int, seed: int) -> None:
    """Write a split of `count` random images."""
    images = splits.ChunkedArray((count, 32, 32, 3), np.dtype(np.uint8), patterns(count, seed))
    splits.write(path, images, np.zeros(count, np.uint8))


def patterns(count: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    """Yield uint8 (n, 32, 32, 3): four squares of random colors, so every image resembles many others."""
    random = np.random.default_rng(seed)
    for start in range(0, count, PART):
        colors = random.integers(0, 256, (min(PART, count - start), 2, 2, 3), np.uint8)
        yield colors.repeat(16, axis=1).repeat(16, axis=2)


def search(folder: Path) -> dict[str, Any]:
    """Find the leaks of the splits in `folder`."""
    test, train = (splits.read(folder / f"{name}.npz") for name in ("test", "train"))
    began = time.process_time()
    find_leaks(test, train, near=True, scratch=folder)
    (peak,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    seconds = time.process_time() - began
    return {"peak_mb": round(int(peak.split()[1]) * 1024 / 1e6), "cpu_seconds": round(seconds, 1)}


if __name__ == "__main__":
    sys.exit(failure.run("duplicates", main))
