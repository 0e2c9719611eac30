"""Checkpoints of a training run: written atomically, the last two kept, and read only by the same run.

One file holds everything: arrays and a JSON text as an uncompressed .npz, followed by the 32 bytes of its SHA-256.
The checksums inside an .npz are not enough: a changed bit in a header gives different arrays without an error.
"""

import hashlib
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.common.outputs import replacing

KEPT = 2
DIGEST_SIZE = 32


def pack(arrays: Sequence[NDArray[Any]], state: Mapping[str, Any]) -> bytes:
    """Return the content for `unpack`: the arrays and a JSON text as an uncompressed .npz."""
    content = io.BytesIO()
    np.savez(content, *arrays, state=np.frombuffer(json.dumps(state).encode(), np.uint8))
    return content.getvalue()


def unpack(content: bytes) -> tuple[list[NDArray[Any]], dict[str, Any]]:
    """Return the arrays and the state of a checkpoint's `content`."""
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        state = json.loads(file["state"].tobytes())
        return [file[f"arr_{index}"] for index in range(len(file.files) - 1)], state


class Checkpoints:
    """The checkpoints in `folder` of the run that `key` names.

    `key` is a digest of everything that determines a run: params, data, code, versions. Files with other keys are
    never read.
    """

    def __init__(self, folder: Path, key: str) -> None:
        """Set the folder and key. Nothing is read or written yet."""
        self.folder, self._key, self._prefix = folder, key, key[:16]

    def of_phase(self, name: str) -> "Checkpoints":
        """Return the checkpoints of another phase of the same run."""
        return Checkpoints(self.folder / name, self._key)

    def save(self, epoch: int, step: int, arrays: Sequence[NDArray[Any]], state: Mapping[str, Any]) -> None:
        """Write one checkpoint atomically, and delete all but the last `KEPT`."""
        content = pack(arrays, state)
        path = self.folder / f"{self._prefix}-{epoch:06d}-{step:09d}.npz"
        with replacing(path) as partial, partial.open("wb") as file:
            file.write(content)
            file.write(hashlib.sha256(content).digest())
        for path in self._own()[:-KEPT]:
            path.unlink()

    def latest(self) -> bytes:
        """Return the content of the newest valid checkpoint, for `unpack`; empty when there is none.

        Warns of damaged checkpoints, and mentions those of other runs.
        """
        foreign = [path for path in self._all() if path not in self._own()]
        if foreign:
            print(
                f"train: {len(foreign)} checkpoints in {self.folder}/ belong to other params, data or code and "
                f"are ignored; to delete them: rm -r {self.folder}",
                file=sys.stderr,
            )
        for path in reversed(self._own()):
            content = path.read_bytes()
            if hashlib.sha256(content[:-DIGEST_SIZE]).digest() != content[-DIGEST_SIZE:]:
                print(f"train: {path} is damaged; trying the checkpoint before it", file=sys.stderr)
                continue
            return content[:-DIGEST_SIZE]
        return b""

    def clear(self) -> None:
        """Delete this run's checkpoints, complete or not, and the folder when it is empty then."""
        for path in self.folder.glob(f"{self._prefix}-*"):
            path.unlink()
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("*.npz"))

    def _own(self) -> list[Path]:
        return [path for path in self._all() if path.name.startswith(f"{self._prefix}-")]
