"""Loads TensorFlow like the stage train, and prints what it computes with as one line of JSON.

Run by tools/doctor/environment.py as `python -m tools.doctor.computing`.
"""

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from stages.common import failure


def main(arguments: Sequence[str]) -> None:
    """Load TensorFlow, compute one convolution, print."""
    from stages.common.params import load
    from stages.model import runtime

    os.environ["ONEDNN_VERBOSE"] = "1"  # makes oneDNN print its instruction set at its first operation
    runtime.start(load(Path("params.yaml"), "runtime", runtime.RuntimeParams), seed=0)
    import tensorflow as tf

    sys.stdout.flush()
    with tempfile.TemporaryFile("w+") as output:
        original = os.dup(1)
        os.dup2(output.fileno(), 1)  # C++ writes to the descriptor, not to sys.stdout
        try:
            tf.nn.conv2d(tf.ones((1, 8, 8, 3)), tf.ones((3, 3, 3, 8)), 1, "SAME").numpy()
        finally:
            os.dup2(original, 1)
            os.close(original)
        output.seek(0)
        uses = [line.rpartition("isa:")[2].strip() for line in output if ",cpu,isa:" in line]
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split() if Path("/proc/cpuinfo").exists() else []
    result = {
        "version": tf.__version__,
        "uses": uses[0] if uses else "nothing that it names",
        "has": sorted(runtime.FLAGS.intersection(flags)),
        "gpus": len(tf.config.list_physical_devices("GPU")),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(failure.run("computing", main))
