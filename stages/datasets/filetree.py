"""Lists and opens the files of a folder, or of a .zip or .tar archive of one, which is never extracted."""

import io
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import IO, Protocol

from stages.common.failure import StageError
from stages.common.pictures import Unreadable

DECOMPRESS = {".gz": "gunzip", ".tgz": "gunzip", ".bz2": "bunzip2", ".xz": "unxz", ".zst": "unzstd"}
MAX_MEMBER = 1 << 28  # bytes of one file in an archive, which is read into memory


class FileTree(Protocol):
    """Files by their names, which are relative to the root, with `/`."""

    names: list[str]

    def open(self, name: str) -> IO[bytes]:
        """Open a file for reading, seekable; threads may do so at once. Raises `Unreadable`."""

    def close(self) -> None:
        """Close the archive."""


def open_tree(path: Path) -> FileTree:
    """Return the files at `path`; raises `StageError` when it is neither a folder nor a safe archive."""
    if path.is_dir():
        return _Folder(path)
    if not path.is_file():
        raise StageError(f"{path}: no such folder or archive; set dataset.folder.path")
    try:
        tree: FileTree = _Zip(path) if zipfile.is_zipfile(path) else _Tar(path)
    except (tarfile.TarError, zipfile.BadZipFile) as error:
        tool = DECOMPRESS.get(path.suffix.lower())
        hint = (
            f"run: {tool} {path}"
            if tool
            else "if it is intact, unpack it and set dataset.folder.path to the folder"
        )
        raise StageError(f"{path}: not a folder, .zip or uncompressed .tar ({error}); {hint}") from None
    seen: set[str] = set()
    for name in tree.names:
        problem = "is not a safe path" if name.startswith("/") or ".." in name.split("/") else ""
        problem = "is in it twice" if name in seen else problem
        if problem:
            tree.close()
            raise StageError(f"{path}: {name!r} {problem}; pack the folder again")
        seen.add(name)
    return tree


class _Folder:
    def __init__(self, path: Path) -> None:
        self._path = path
        self.names: list[str] = []
        for folder, subfolders, files in os.walk(path, onerror=_raise):
            here = Path(folder)
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            if links := [here / name for name in subfolders if (here / name).is_symlink()]:
                raise StageError(
                    f"{links[0]}: a link to a folder, in which DVC sees no changes; move the folder here"
                )
            self.names += [(here / name).relative_to(path).as_posix() for name in sorted(files)]

    def open(self, name: str) -> IO[bytes]:
        path = self._path / name
        if not path.is_file():  # such as a broken link or a pipe
            raise Unreadable("is not a file")
        return path.open("rb")

    def close(self) -> None:
        """Nothing to close."""


def _raise(error: OSError) -> None:
    raise error


class _Zip:
    def __init__(self, path: Path) -> None:
        self._archive = zipfile.ZipFile(path)
        members = [member for member in self._archive.infolist() if not member.is_dir()]
        self.names = [member.filename.replace("\\", "/") for member in members]  # as some Windows programs write
        self._members = dict(zip(self.names, members, strict=True))

    def open(self, name: str) -> IO[bytes]:
        member = self._members[name]
        if stat.S_ISLNK(member.external_attr >> 16):
            raise Unreadable("is not a file")
        if member.flag_bits & 1:
            raise Unreadable("is encrypted")
        try:
            with self._archive.open(member) as file:
                content = file.read(MAX_MEMBER + 1)  # whatever size the archive states
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, EOFError, OSError) as error:
            raise Unreadable(f"is damaged in the archive: {error}") from None
        if len(content) > MAX_MEMBER:
            raise _too_large()
        return io.BytesIO(content)

    def close(self) -> None:
        self._archive.close()


class _Tar:
    def __init__(self, path: Path) -> None:
        self._extents: dict[str, tuple[int, int] | None] = {}
        self.names: list[str] = []
        with tarfile.open(path, "r:") as archive:  # uncompressed: the pictures are read at random
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # or it keeps them all
                if member.isdir():
                    continue
                name = member.name.removeprefix("./")
                self.names.append(name)
                plain = member.isreg() and not member.issparse()
                self._extents[name] = (member.offset_data, member.size) if plain else None
            end = archive.offset
        self._file = path.open("rb")
        # tarfile takes a damaged or truncated header, except the first, for the end of the archive.
        if os.pread(self._file.fileno(), tarfile.BLOCKSIZE, end) != bytes(tarfile.BLOCKSIZE):
            self._file.close()
            raise tarfile.ReadError(f"truncated or damaged at byte {end:,}")

    def open(self, name: str) -> IO[bytes]:
        extent = self._extents[name]
        if extent is None:  # a link, a device, a sparse file
            raise Unreadable("is not a file")
        offset, size = extent
        if size > MAX_MEMBER:
            raise _too_large()
        return io.BytesIO(os.pread(self._file.fileno(), size, offset))

    def close(self) -> None:
        self._file.close()


def _too_large() -> Unreadable:
    return Unreadable(f"has more than {MAX_MEMBER:,} bytes")
