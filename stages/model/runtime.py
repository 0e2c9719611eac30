"""The settings that make a run repeatable: threads, instruction set, precision and seed. Also quiets TensorFlow.

A stage calls `start` once, before anything imports TensorFlow and before any weights exist.
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

from stages.common.failure import StageError
from stages.common.outputs import write_json
from stages.common.params import Section

# The settings of oneDNN; the instruction set is set from the params.
ONEDNN = {"ONEDNN_DEFAULT_FPMATH_MODE": "STRICT", "ONEDNN_MAX_CPU_ISA": "ALL", "TF_ENABLE_ONEDNN_OPTS": "1"}
# The flags in /proc/cpuinfo that oneDNN and Eigen choose their kernels by.
FLAGS = {"avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16"}


class RuntimeParams(Section):
    """`runtime` of params.yaml."""

    # The number of threads changes how sums are split, and so the bytes: a param, not the number of cores.
    threads: int = Field(ge=1, le=256)
    cpu_isa: Literal["native", "avx2"]
    precision: Literal["float32", "bfloat16", "float16"]
    emulate: bool  # allow a precision that the machine does not support natively, at a fraction of the speed
    # One device; several devices of this machine; all machines of a cluster. They divide each training batch.
    strategy: Literal["single", "mirrored", "multi_worker"]
    devices: int = Field(ge=1, le=64)  # of mirrored


def start(params: RuntimeParams, seed: int) -> None:
    """Load TensorFlow with the settings in `params`, and seed every random generator with `seed`.

    Raises `StageError` when this machine would have to emulate the precision and `params.emulate` is false.
    """
    if params.precision == "bfloat16" and not params.emulate and not has_bfloat16():
        raise StageError(
            "runtime.precision: bfloat16 needs a CPU with AMX or AVX512-BF16. This CPU would emulate it at a "
            "fraction of the speed: use float32, or set runtime.emulate: true"
        )
    # TensorFlow and oneDNN read these when they load. They are always set, so that the user's environment does not
    # change the bytes.
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ |= ONEDNN | {"ONEDNN_MAX_CPU_ISA": {"native": "ALL", "avx2": "AVX2"}[params.cpu_isa]}
    with standard_error_kept():
        import keras
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(params.threads)
        tf.config.threading.set_inter_op_parallelism_threads(params.threads)
        tf.config.experimental.enable_op_determinism()
        # ~/.keras/keras.json may have other defaults.
        keras.config.set_floatx("float32")
        keras.config.set_image_data_format("channels_last")
        policy = params.precision if params.precision == "float32" else f"mixed_{params.precision}"
        keras.config.set_dtype_policy(policy)
        keras.utils.set_random_seed(seed)
        devices = tf.config.list_physical_devices("GPU")
        for device in devices:  # by default TensorFlow takes all of a GPU's memory: one run at a time
            tf.config.experimental.set_memory_growth(device, True)
    if params.precision == "float16" and not params.emulate and not devices:
        raise StageError(
            "runtime.precision: float16 needs a GPU, but TensorFlow finds none: use float32, or set "
            "runtime.emulate: true"
        )


def write_environment(
    record: Path, log: Path, params: RuntimeParams, model_sha256: str, seconds: float, replicas: int = 1
) -> None:
    """Write the environment of a run (machine, system, versions, settings), which may explain different bytes.

    record: a file for git. It is not a DVC output, because such an output would turn off the run cache; DVC does
    not restore it with the results, so it holds the SHA-256 of its model. log: the same with the duration in
    seconds, untracked. replicas: the number of devices that divided each batch.
    """
    from tensorflow.python.framework.config import is_op_determinism_enabled  # the public API can only enable it

    environment = {
        "cpu": _cpu(),
        "cpu_flags": " ".join(sorted(_cpu_flags() & FLAGS)),
        "cores": os.cpu_count(),
        "determinism": is_op_determinism_enabled(),
        "onednn": {name: os.environ.get(name, "") for name in sorted(ONEDNN)},
        "libc": " ".join(platform.libc_ver()),
        "model_sha256": model_sha256,
        "python": platform.python_version(),
        "replicas": replicas,
        "runtime": params.model_dump(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions(),
    }
    write_json(record, environment)
    write_json(log, {**environment, "duration_seconds": round(seconds, 1)})


def versions() -> dict[str, str]:
    """Return the versions of the libraries that compute."""
    return {name: version(name) for name in ("tensorflow", "keras", "numpy")}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def has_bfloat16() -> bool:
    """Return whether the CPU supports bfloat16 natively; False where /proc/cpuinfo does not exist."""
    return has_amx() or "avx512_bf16" in _cpu_flags()


def has_amx() -> bool:
    """Return whether the CPU has matrix units for bfloat16; False where /proc/cpuinfo does not exist."""
    return "amx_bf16" in _cpu_flags()


def _cpu_flags() -> set[str]:
    try:
        return set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return set()


@contextmanager
def standard_error_kept() -> Iterator[None]:
    """Capture what C++ code writes to file descriptor 2, and show it only if the block fails.

    TensorFlow logs a dozen lines before it reads TF_CPP_MIN_LOG_LEVEL, so no setting can silence them.
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
