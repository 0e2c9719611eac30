"""What makes a run repeatable: threads, instruction set, precision, seed; and a quiet TensorFlow.

A stage's main calls `start` once, before anything imports TensorFlow and before any weights exist.
"""

import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from pydantic import Field

from stages.failure import StageError
from stages.outputs import write_json
from stages.params import Section


class RuntimeParams(Section):
    """`runtime` of params.yaml."""

    # Another number of threads splits sums elsewhere and gives other bytes: a choice, not the machine's cores.
    threads: int = Field(ge=1, le=256)
    cpu_isa: Literal["native", "avx2"]
    precision: Literal["float32", "bfloat16"]


def start(params: RuntimeParams, seed: int) -> None:
    """Load TensorFlow with `params` in force and seed every generator from `seed`.

    Raises `StageError` when the precision is one that this CPU would have to emulate.
    """
    if params.precision == "bfloat16" and not _has_bfloat16():
        raise StageError(
            "runtime.precision: bfloat16 needs a CPU with AMX or AVX512-BF16, and this one would emulate it at "
            "a fraction of the speed; use float32"
        )
    # Read by TensorFlow and oneDNN when they load. Set to known values, so that nothing in a person's
    # environment changes the bytes.
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ["ONEDNN_MAX_CPU_ISA"] = {"native": "ALL", "avx2": "AVX2"}[params.cpu_isa]
    with _standard_error_kept():
        import keras
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(params.threads)
        tf.config.threading.set_inter_op_parallelism_threads(params.threads)
        tf.config.experimental.enable_op_determinism()
        # ~/.keras/keras.json may say otherwise.
        keras.config.set_floatx("float32")
        keras.config.set_image_data_format("channels_last")
        keras.config.set_dtype_policy({"float32": "float32", "bfloat16": "mixed_bfloat16"}[params.precision])
        keras.utils.set_random_seed(seed)
        tf.config.list_logical_devices()


def write_log(path: Path, params: RuntimeParams, seconds: float) -> None:
    """Write what differs from machine to machine, and so has no place in metrics/: versions, CPU, duration."""
    versions = {name: version(name) for name in ("tensorflow", "keras", "numpy")}
    write_json(
        path,
        {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "duration_seconds": round(seconds, 1),
            "platform": platform.platform(),
            "python": platform.python_version(),
            "runtime": params.model_dump(),
            **versions,
        },
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def _has_bfloat16() -> bool:
    """Whether the CPU computes in bfloat16; where /proc/cpuinfo does not tell, that it does not."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


@contextmanager
def _standard_error_kept() -> Iterator[None]:
    """Hold back what C++ writes to file descriptor 2, and show it only when the block fails.

    TensorFlow logs a dozen lines before it reads TF_CPP_MIN_LOG_LEVEL, so no setting silences them.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as kept:
        original = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            kept.seek(0)
            os.write(original, kept.read())
            raise
        finally:
            os.dup2(original, 2)
            os.close(original)
