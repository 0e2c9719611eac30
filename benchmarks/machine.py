"""The machine that a benchmark runs on: its CPU, whether that computes in bfloat16, and its GPUs."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

from stages.common.failure import StageError
from stages.model.runtime import FLAGS, has_bfloat16, versions


def describe() -> str:
    """Return the line that a figure needs beside it: CPU, the flags that choose its kernels, cores, versions."""
    lines = _cpuinfo().splitlines()
    names = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    cpu = next(names, platform.processor() or platform.machine())
    flags = " ".join(sorted(_flags())) or "flags unknown"
    return f"{cpu} ({flags}), {platform.machine()}, {os.cpu_count()} cores, {versions()}"


def gpus() -> list[str]:
    """Return the name, memory and driver version of each NVIDIA GPU; none without `nvidia-smi`."""
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()


def require_bfloat16() -> None:
    """Raise `StageError` where bfloat16 would be emulated, and a figure would say nothing."""
    if not has_bfloat16():
        raise StageError("this CPU has neither AMX nor AVX512-BF16 and would emulate bfloat16")


def _flags() -> set[str]:
    return FLAGS.intersection(_cpuinfo().split())


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8") if path.exists() else ""
