import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from stages.common import splits
from stages.common.scaling import channel_statistics
from tests.project import ROOT

LINUX = pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="Linux counts there what a process reads")


def read_of_disk() -> int:
    (line,) = (line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("read_bytes"))
    return int(line.split()[1])


@LINUX
def test_of_a_cold_file_little_more_is_read_than_the_images_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    images = np.ones((2_000, 32, 32, 3), np.float32)  # 25 MB
    splits.write(path, images, np.ones((2_000, 1), np.float32))
    split = splits.read(path)
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    split.labels.sum()  # they are beside each other, and few: the system may read around them
    before = read_of_disk()
    split.take(np.arange(0, 1_000, 50))  # 614 kB apart
    read = read_of_disk() - before
    if read == 0:
        pytest.skip("this folder is in memory, not on a disk")
    assert read < 2 * 20 * 12_288


def test_sums_of_very_many_small_images_are_exact(tmp_path: Path) -> None:
    count = 200_000
    splits.write(tmp_path / "a.npz", np.full((count, 1, 1, 1), 255, np.uint8), np.zeros(count, np.uint8))
    assert channel_statistics(splits.read(tmp_path / "a.npz"), np.arange(count)) == ([1.0], [0.0])


def benchmark(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "benchmarks.large_data", "--folder", str(folder), *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@LINUX
def test_the_benchmark_says_in_one_line_that_the_disk_is_too_small(tmp_path: Path) -> None:
    process = benchmark(tmp_path, "--written", "1e9")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "not enough disk space" in errors and errors.count("\n") == 1
    assert not list(tmp_path.iterdir())


@LINUX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_benchmark_that_is_stopped_leaves_no_file(number: int, tmp_path: Path) -> None:
    process = benchmark(tmp_path, "--sparse", "--written", "4")
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*/written-4.npz.partial")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not list(tmp_path.iterdir())
