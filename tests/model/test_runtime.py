"""stages/model/runtime.py: what is in force once TensorFlow is loaded, and what a person sees of that."""

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.common.failure import StageError
from stages.model import runtime
from stages.model.runtime import RuntimeParams
from tests.project import ROOT

PARAMS = RuntimeParams(
    threads=2, cpu_isa="native", precision="float32", emulate=False, strategy="single", devices=1
)

# Three threads and AVX2, as neither is what this or another machine has anyway.
STARTED = """
import json, os
from pathlib import Path
from stages.model import runtime

params = {"cpu_isa": "avx2", "precision": "float32", "emulate": False, "strategy": "single", "devices": 1}
runtime.start(runtime.RuntimeParams(threads=3, **params), seed=0)
import keras
import tensorflow as tf

images = keras.random.normal((2, 8, 8, 3))
keras.layers.Conv2D(4, 3)(images)
threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
print(json.dumps({
    "variables": {name: os.environ.get(name) for name in (
        "TF_CPP_MIN_LOG_LEVEL", "TF_ENABLE_ONEDNN_OPTS", "KERAS_BACKEND", "ONEDNN_MAX_CPU_ISA",
        "ONEDNN_DEFAULT_FPMATH_MODE",
    )},
    "threads": threads.count("tf_Compute"),
    "backend": keras.config.backend(),
    "layout": keras.config.image_data_format(),
    "float": keras.config.floatx(),
    "policy": keras.config.dtype_policy().name,
}))
"""

CPU_FLAGS = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """A started process of a person whose environment says otherwise throughout."""
    home = tmp_path_factory.mktemp("home")
    (home / "keras.json").write_text(
        '{"backend": "numpy", "floatx": "float64", "image_data_format": "channels_first"}'
    )
    return run(
        STARTED,
        KERAS_HOME=str(home),
        KERAS_BACKEND="numpy",
        ONEDNN_MAX_CPU_ISA="SSE41",
        ONEDNN_DEFAULT_FPMATH_MODE="ANY",
        ONEDNN_VERBOSE="1",  # makes oneDNN say which instructions and how many threads it works with
        TF_CPP_MIN_LOG_LEVEL="0",
        TF_ENABLE_ONEDNN_OPTS="0",
        TF_NUM_INTRAOP_THREADS="1",
    )


@pytest.fixture(scope="module")
def facts(hostile: subprocess.CompletedProcess[str]) -> Mapping[str, Any]:
    found: dict[str, Any] = json.loads(hostile.stdout.splitlines()[-1])
    return found


def test_nothing_of_tensorflows_start_up_reaches_standard_error(
    hostile: subprocess.CompletedProcess[str],
) -> None:
    assert (hostile.returncode, hostile.stderr) == (0, "")


def test_the_environment_variables_are_those_of_the_params(facts: Mapping[str, Any]) -> None:
    assert facts["variables"] == {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TF_ENABLE_ONEDNN_OPTS": "1",
        "KERAS_BACKEND": "tensorflow",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ONEDNN_DEFAULT_FPMATH_MODE": "STRICT",
    }


@pytest.mark.skipif("avx2" not in CPU_FLAGS, reason="this CPU has no AVX2")
def test_the_instruction_set_is_capped(hostile: subprocess.CompletedProcess[str]) -> None:
    assert re.search(r"^onednn_verbose,.*isa:Intel AVX2$", hostile.stdout, re.MULTILINE)


def test_the_threads_are_in_force(hostile: subprocess.CompletedProcess[str], facts: Mapping[str, Any]) -> None:
    assert facts["threads"] == 3
    assert re.search(r"^onednn_verbose,.*nthr:3$", hostile.stdout, re.MULTILINE)


def test_a_persons_keras_settings_do_not_count(facts: Mapping[str, Any]) -> None:
    found = {key: facts[key] for key in ("backend", "layout", "float", "policy")}
    assert found == {
        "backend": "tensorflow",
        "layout": "channels_last",
        "float": "float32",
        "policy": "float32",
    }


def test_a_failing_import_shows_what_was_held_back(tmp_path: Path) -> None:
    (tmp_path / "keras.py").write_text(
        "import os\nos.write(2, b'a library is missing\\n')\nraise ImportError('no such library')\n"
    )
    code = (
        "from stages.model import runtime\n"
        "runtime.start(runtime.RuntimeParams(threads=1, cpu_isa='native', precision='float32', emulate=False, "
        "strategy='single', devices=1), 0)"
    )
    failed = run(code, PYTHONPATH=str(tmp_path))
    assert failed.returncode == 1
    assert failed.stderr.startswith("a library is missing\nTraceback")
    assert failed.stderr.endswith("ImportError: no such library\n")


@pytest.mark.skipif({"amx_bf16", "avx512_bf16"} & {*CPU_FLAGS} != set(), reason="this CPU has bfloat16")
def test_bfloat16_is_refused_by_key_on_a_cpu_without_it() -> None:
    with pytest.raises(StageError, match=r"^runtime\.precision: bfloat16 needs a CPU with .*: use float32, or .*"):
        runtime.start(PARAMS.model_copy(update={"precision": "bfloat16"}), seed=0)


@pytest.mark.usefixtures("started")
def test_float16_is_refused_by_key_without_a_gpu() -> None:
    import keras
    import tensorflow as tf

    if tf.config.list_logical_devices("GPU"):
        pytest.skip("this machine has a GPU")
    try:
        with pytest.raises(StageError, match=r"^runtime\.precision: float16 needs a GPU, .*: use float32, or .*"):
            runtime.start(PARAMS.model_copy(update={"precision": "float16"}), seed=0)
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.usefixtures("started")
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_emulation_may_be_chosen(precision: str) -> None:
    import keras

    try:
        runtime.start(PARAMS.model_copy(update={"precision": precision, "emulate": True}), seed=0)
        assert keras.config.dtype_policy().name == f"mixed_{precision}"
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.usefixtures("started")
def test_the_seed_decides_about_every_generator() -> None:
    import keras
    import tensorflow as tf

    def drawn(seed: int) -> list[float]:
        runtime.start(PARAMS, seed)
        weights = keras.layers.Dense(1)
        weights.build((None, 1))
        numbers = [random.random(), np.random.random(), tf.random.normal([]), keras.random.normal([])]
        return [float(number) for number in [*numbers, weights.kernel.numpy()[0, 0]]]

    assert drawn(1) == drawn(1)
    assert not set(drawn(1)) & set(drawn(2))


def test_the_record_says_what_a_run_was_made_on(tmp_path: Path) -> None:
    record, log = tmp_path / "environment" / "train.json", tmp_path / "logs" / "train.json"
    runtime.write_environment(record, log, PARAMS, "efc9", seconds=12.345)
    written = json.loads(record.read_text())
    assert written["runtime"] == PARAMS.model_dump()
    assert written["python"] == sys.version.split()[0]
    assert written["versions"]["numpy"] == np.__version__
    assert set(written["cpu_flags"].split()) <= set(CPU_FLAGS)
    assert written["cpu"]
    assert json.loads(log.read_text()) == {**written, "duration_seconds": 12.3}


def test_two_runs_of_one_machine_have_the_same_record(tmp_path: Path) -> None:
    for seconds in (1.0, 2.0):
        runtime.write_environment(tmp_path / f"{seconds}", tmp_path / "log", PARAMS, "efc9", seconds)
    assert (tmp_path / "1.0").read_bytes() == (tmp_path / "2.0").read_bytes()


def test_importing_what_needs_no_tensorflow_does_not_load_it() -> None:
    code = """
import sys
import stages.download, stages.evaluate, stages.preprocess, stages.train
import stages.training.loop, stages.training.optimization
print(sorted({"tensorflow", "keras"} & {*sys.modules}))
"""
    assert (run(code).stdout, run(code).returncode) == ("[]\n", 0)
