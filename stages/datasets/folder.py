"""A person's own pictures: PNG, JPEG and WebP files, a subfolder a class.

    pictures/cat/1.jpg  pictures/dog/1.jpg …                   split into train and test by a seed, or
    pictures/train/cat/1.jpg …  pictures/test/cat/1.jpg …      split already

Every picture is turned upright by its EXIF orientation, scaled as a whole to one size, whatever its
proportions, and made RGB or grey. What is transparent becomes white; of 16 bits the upper 8 are kept;
colour profiles are not applied. Names that start with a dot, Thumbs.db, desktop.ini, and what stands beside
the classes' folders and is no picture by its name, such as a README, are passed over.
"""

import hashlib
import sys
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator
from tqdm import tqdm

from stages.common.failure import StageError
from stages.common.params import Section
from stages.common.pictures import Decoding, Unreadable, decode
from stages.datasets import Dataset, Images

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
PASSED_OVER = ("Thumbs.db", "desktop.ini")  # what Windows leaves in folders of pictures
MOST_CLASSES = 256  # a label is one byte
LAYOUT = "one subfolder a class is expected, as in cat/1.jpg and dog/1.jpg, or train/ and test/ with these"


class Params(Section):
    """`dataset.folder` of params.yaml."""

    path: str = Field("pictures", min_length=1, description="relative to the repository")
    # Height and width. Not `size`: DVC's run cache leaves that name out of what it tells runs apart by, and would
    # bring back pictures of another size.
    pixels: list[Annotated[int, Field(ge=1, le=4096)]]
    channels: int  # 1 or 3; a Literal would take true for 1
    test_fraction: float = Field(gt=0, lt=1, description="of each class, unless there are train/ and test/")
    seed: int = Field(ge=0, description="of the order, and of the split")
    skip_unreadable: bool

    @field_validator("pixels", mode="before")
    @classmethod
    def _square(cls, pixels: Any) -> Any:
        if not (type(pixels) is int or (isinstance(pixels, list) and len(pixels) == 2)):
            raise ValueError(f"it should be one number or [height, width], found {pixels!r}")
        return [pixels, pixels] if type(pixels) is int else pixels

    @field_validator("channels")
    @classmethod
    def _grey_or_rgb(cls, channels: int) -> int:
        if channels not in (1, 3):
            raise ValueError(f"it should be 1 (grey) or 3 (RGB), found {channels}")
        return channels

    @property
    def decoding(self) -> Decoding:
        """The rules by which the pictures are decoded."""
        height, width = self.pixels
        return Decoding(height=height, width=width, channels=self.channels)


@dataclass(frozen=True)
class Picture:
    """A picture as it was read: its name in the folder with `/`, the label, and uint8 pixels (H, W, C)."""

    name: str
    label: int
    sha256: str
    pixels: NDArray[np.uint8]


def load(params: Params) -> Dataset:
    """Return the pictures in `params.path`, split into train and test; the classes are sorted by name.

    A split is in an order that follows from the seed and the pictures' content: classes are mixed, since the
    last part of the training images may be set aside for validation; names and the file system do not
    matter; copies of a picture come together; and a picture more or less leaves the others almost as they
    were. `sha256` is that of the lines `HASH  NAME` that `sha256sum` prints, sorted by name.

    Raises `StageError` when the folders are not as expected, and, unless `params.skip_unreadable`, for all
    pictures that cannot be read, each with its reason; these are then only named on stderr.
    """
    root = Path(params.path)
    if not root.is_dir():
        raise StageError(f"{root}: no such folder; {LAYOUT}")
    content = {entry.name for entry in _entries(root) if entry.is_dir() or _named_as_picture(entry)}
    divided = content >= {"train", "test"}
    if divided and (others := content - {"train", "test"}):
        raise StageError(f"{root}: beside train/ and test/ there is {min(others)!r}; remove it; {LAYOUT}")
    trees = {part: _files_of_classes(root / part) for part in (("train", "test") if divided else ("",))}
    classes, *also = (tuple(tree) for tree in trees.values())
    if also and (differing := set(classes).symmetric_difference(*also)):
        raise StageError(
            f"{root}: only one of train/ and test/ has the class {min(differing)!r}; add or remove it"
        )

    files = [
        (f"{part}/{name}/{_normal(file.name)}".removeprefix("/"), classes.index(name), file)
        for part, tree in trees.items()
        for name, entries in tree.items()
        for file in entries
    ]
    pictures, reasons = _read(files, params)
    if reasons and not params.skip_unreadable:
        raise StageError(
            f"{root}: {len(reasons):,} of {len(files):,} files are no picture that can be read: "
            f"{'; '.join(reasons)}. Repair or remove them, or set dataset.folder.skip_unreadable to true"
        )
    for reason in reasons:
        print(f"{root}: skipped: {reason}", file=sys.stderr)

    if divided:
        train = [picture for picture in pictures if picture.name.startswith("train/")]
        test = [picture for picture in pictures if picture.name.startswith("test/")]
    else:
        train, test = _split(pictures, len(classes), params)
    for part, chosen in (("train", train), ("test", test)):
        if lacking := set(range(len(classes))) - {picture.label for picture in chosen}:
            name = classes[min(lacking)]
            raise StageError(f"{root}: the class {name!r} has no picture left for {part}; add some to it")
    return Dataset(
        name="folder",
        sha256=_digest(pictures),
        edition=f"pictures of your own: {len(pictures):,} files in {params.path.rstrip('/')}/"
        + (f", {len(reasons):,} skipped" if reasons else ""),
        classes=classes,
        train=_images(train, params.seed),
        test=_images(test, params.seed),
        decoding=params.decoding,
    )


def _files_of_classes(folder: Path) -> dict[str, list[Path]]:
    """The files of each class in `folder`, both sorted by name; raises `StageError` for wrong classes."""
    entries = _entries(folder)
    if stray := next((entry for entry in entries if _named_as_picture(entry) and not entry.is_dir()), None):
        raise StageError(f"{stray}: this picture is in no class's folder; {LAYOUT}")
    found: dict[str, list[Path]] = {}
    for entry in entries:
        name = _normal(entry.name)
        if not entry.is_dir():
            continue
        if name in found or not name.isprintable():
            raise StageError(
                f"{folder}: the folder's name {entry.name!r} is unprintable or there twice; rename it"
            )
        found[name] = _entries(entry)
        if not found[name]:
            raise StageError(f"{entry}: this class has no picture; add some, or remove the folder")
    if not 2 <= len(found) <= MOST_CLASSES:
        number = f"1 class found ({min(found)})" if len(found) == 1 else f"{len(found)} classes found"
        raise StageError(f"{folder}: {number}, 2 to {MOST_CLASSES} expected; {LAYOUT}")
    return found


def _entries(folder: Path) -> list[Path]:
    """What `folder` holds and is not passed over, sorted by name."""
    entries = []
    for entry in folder.iterdir():
        if entry.name.startswith(".") or entry.name in PASSED_OVER:
            continue
        if entry.is_symlink() and entry.is_dir():
            raise StageError(f"{entry}: a link to a folder, in which DVC sees no change; move the folder here")
        entries.append(entry)
    return sorted(entries, key=lambda entry: (_normal(entry.name), entry.name))


def _normal(name: str) -> str:
    """The name in one form: macOS may keep é as e and an accent, where others keep one character."""
    return unicodedata.normalize("NFC", name)


def _named_as_picture(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES


def _read(files: list[tuple[str, int, Path]], params: Params) -> tuple[list[Picture], list[str]]:
    """The pictures in the order of `files`, and a sentence for each file that is none."""
    pictures, reasons = [], []
    rules = params.decoding
    for name, label, file in tqdm(files, desc="pictures", unit="", leave=False, disable=None):
        try:
            if not name.isprintable():
                raise Unreadable("has a name that cannot be shown; rename it")
            if file.is_dir():
                raise Unreadable("is a folder within a class; move its pictures up")
            if not file.is_file():
                raise Unreadable("is not a file")
            if not _named_as_picture(file):
                raise Unreadable(f"is not named {', '.join(SUFFIXES)}")
            with file.open("rb") as content:
                sha256 = hashlib.file_digest(content, "sha256").hexdigest()
                if not content.tell():
                    raise Unreadable("is empty")
                content.seek(0)
                pixels = decode(content, rules)
            pictures.append(Picture(name, label, sha256, pixels))
        except Unreadable as reason:
            reasons.append(f"{name if name.isprintable() else repr(name)} {reason}")
    return pictures, reasons


def _split(pictures: list[Picture], classes: int, params: Params) -> tuple[list[Picture], list[Picture]]:
    """Train and test: of each class `test_fraction`, but at least one picture, and not all of several."""
    train: list[Picture] = []
    test: list[Picture] = []
    for label in range(classes):
        chosen = sorted(
            (picture for picture in pictures if picture.label == label),
            key=lambda picture: _rank(picture, params.seed),
        )
        count = max(1, min(round(len(chosen) * params.test_fraction), len(chosen) - 1))
        test += chosen[:count]
        train += chosen[count:]
    return train, test


def _rank(picture: Picture, seed: int) -> tuple[str, str]:
    """What puts pictures into an order that is as good as random."""
    return hashlib.sha256(f"{seed} {picture.sha256}".encode()).hexdigest(), picture.name


def _images(pictures: list[Picture], seed: int) -> Images:
    ordered = sorted(pictures, key=lambda picture: _rank(picture, seed))
    return Images(
        np.stack([picture.pixels for picture in ordered]),
        np.array([picture.label for picture in ordered], np.uint8),
        official=len(ordered),
    )


def _digest(pictures: list[Picture]) -> str:
    lines = sorted((picture.name, picture.sha256) for picture in pictures)
    return hashlib.sha256("".join(f"{sha256}  {name}\n" for name, sha256 in lines).encode()).hexdigest()
