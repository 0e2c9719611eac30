"""Finds pictures and decodes them ahead of the network, a bounded number at a time."""

import functools
import glob
import io
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from stages.common.failure import StageError
from stages.common.pictures import Decoding, Unreadable, decode

BATCH = 128  # pictures that the network gets at once; as many again are decoded meanwhile
STANDARD_INPUT = "-"


def find(arguments: Sequence[str]) -> list[str]:
    """Return the paths of the pictures that files, folders, globs and - stand for, those of a folder sorted.

    Hidden files of folders are left out. Raises `StageError` when a folder is empty or a glob matches nothing.
    """
    paths: list[str] = []
    for argument in arguments:
        found = [argument]
        if any(character in argument for character in "*?[") and not Path(argument).exists():
            found = sorted(glob.glob(argument, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
        files = [path for name in found for path in (_files(name) if Path(name).is_dir() else [name])]
        if not files:
            raise StageError(f"{argument}: no pictures here; give a file, a folder, a glob, or -")
        paths += files
    if paths.count(STANDARD_INPUT) > 1:
        raise StageError("-: standard input is one picture; give - once")
    return paths


def label_indices(paths: Sequence[str], classes: Sequence[str]) -> dict[str, int]:
    """Return the class index of each path: that of the nearest folder that has the name of a class."""
    indices = {name: index for index, name in enumerate(classes)}
    labels = {}
    for path in paths:
        name = next((part for part in reversed(Path(path).absolute().parts[:-1]) if part in indices), None)
        if name is None:
            raise StageError(
                f"{path}: in no folder with the name of a class; --labelled needs FOLDER/CLASS/PICTURE"
            )
        labels[path] = indices[name]
    return labels


def batches(
    paths: Sequence[str], rules: Decoding
) -> Iterator[tuple[list[str], NDArray[np.uint8], list[tuple[str, str]]]]:
    """Yield batches, in order: the paths that were read, uint8 (n, H, W, C), and the others with their reasons."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting: deque[tuple[str, Future[NDArray[np.uint8]]]] = deque()
        remaining = iter(paths)
        while True:
            for path in remaining:
                waiting.append((path, pool.submit(_read, path, rules)))
                if len(waiting) == 2 * BATCH:
                    break
            if not waiting:
                return
            read: list[str] = []
            images: list[NDArray[np.uint8]] = []
            problems: list[tuple[str, str]] = []
            for path, future in [waiting.popleft() for _ in range(min(BATCH, len(waiting)))]:
                try:
                    images.append(future.result())
                    read.append(path)
                except Unreadable as error:
                    problems.append((path, str(error)))
                except OSError as error:
                    problems.append((path, f"cannot be opened: {error.strerror}"))
            shape = (len(read), rules.height, rules.width, rules.channels)
            yield read, np.array(images, np.uint8).reshape(shape), problems


def _files(folder: str) -> Iterator[str]:
    for here, subfolders, names in os.walk(folder):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (str(Path(here, name)) for name in sorted(names) if not name.startswith("."))


def open_picture(name: str) -> IO[bytes]:
    """Open a picture; of standard input, its content, however often."""
    if name == STANDARD_INPUT:
        return io.BytesIO(_standard_input())
    path = Path(name)
    if path.exists() and not path.is_file():  # a pipe would never end
        raise Unreadable("is not a file")
    return path.open("rb")


@functools.cache
def _standard_input() -> bytes:
    return sys.stdin.buffer.read()


def _read(name: str, rules: Decoding) -> NDArray[np.uint8]:
    with open_picture(name) as file:
        return decode(file, rules)
