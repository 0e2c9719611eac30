"""Finds classes and splits in a tree of picture files, from the names of the files alone.

    cat/1.jpg  dog/a/2.jpg                   one folder per class, with or without a folder around them
    train/cat/1.jpg  val/…  test/cat/3.jpg   split already; also valid, validation, training, test_set, …
    test/7.jpg                               pictures without a class are left for prediction
    labels.csv  images/1.jpg                 a table of paths and labels, and splits if it has such a column

Every file is accounted for: it is a picture of the result, without a label, or ignored for a reason.
"""

import csv
import difflib
import fnmatch
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from stages.common.failure import StageError

MAX_CLASSES = 1 << 16  # labels have two bytes
MANY = 20  # pictures, of which most have a number of their own as label: these are no classes
EXPECTED = "expected one folder per class, such as cat/1.jpg and dog/2.jpg, or these in train/ and test/"
PICTURES = re.compile(r"\.(png|jpe?g|jpe|jfif|mpo|webp|bmp|dib|tiff?|gif|avif|hei[cf]|hif)", re.IGNORECASE)
# Files and folders of macOS, Windows and Synology, in lower case. Names that begin with a dot are ignored as well.
SYSTEM = frozenset(
    (
        "__macosx",
        "icon\r",
        "thumbs.db",
        "ehthumbs.db",
        "ehthumbs_vista.db",
        "desktop.ini",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "@eadir",
        "#recycle",
        "#snapshot",
    )
)
Role = Literal["", "train", "validation", "test"]
_ROLE_NAMES: dict[Role, str] = {
    "train": "train training",
    "validation": "val valid validation dev eval",
    "test": "test testing test1",
}
ROLES = {
    name + suffix: role
    for role, names in _ROLE_NAMES.items()
    for name in names.split()
    for suffix in ("", "set", "_set", "_images", "_data")
}
COLUMNS = {
    "path": (
        "path",
        "file",
        "filename",
        "file_name",
        "filepath",
        "file_path",
        "image",
        "image_path",
        "image_name",
        "image_id",
        "id",
    ),
    "label": ("label", "class", "category", "class_name", "label_name", "target", "species", "breed"),
    "split": ("split", "set", "subset", "partition"),
}


@dataclass(frozen=True)
class Table:
    """A CSV file: its name, text and SHA-256, and the names of its columns where they are given."""

    name: str
    text: str
    columns: Mapping[str, str | None] = field(default_factory=dict)
    sha256: str = ""


@dataclass(frozen=True)
class Layout:
    """The use of each file.

    pictures: the split and class of each, by file name; split "": still to be divided into train and test.
    unlabeled: names of pictures without a class. ignored: the reason, by name. notes: lines for the user.
    """

    pictures: Mapping[str, tuple[Role, str]]
    unlabeled: Sequence[str]
    ignored: Mapping[str, str]
    notes: Sequence[str]


def arrange(
    root: str,
    names: Iterable[str],
    *,
    exclude: Sequence[str] = (),
    val_as: Literal["test", "train"] = "test",
    table: Table | None = None,
) -> Layout:
    """Return the use of each file in `names`, which are relative paths with `/`.

    exclude: glob patterns of paths, or of single names in them. val_as: what val/ is if there is no labeled test
    split: the test split, or part of the training images. root: for messages. Raises `StageError` when no
    classes can be found, and for pictures that clearly have a wrong place.
    """
    ignored: dict[str, str] = {}
    paths: dict[str, tuple[str, ...]] = {}
    for name in names:
        parts = tuple(normal(name).split("/"))
        if reason := _reason_to_ignore(parts, exclude):
            ignored[name] = reason
        else:
            paths[name] = parts
    if table:
        ignored.pop(table.name, None)
        found = _from_table(root, paths, table, ignored)
    else:
        found = _from_folders(root, paths)
    return _resolved(root, found, ignored, val_as)


def _reason_to_ignore(parts: tuple[str, ...], exclude: Sequence[str]) -> str:
    if any(part.startswith(".") or part.lower() in SYSTEM for part in parts):
        return "hidden or system files"
    if any(fnmatch.fnmatchcase(text, pattern) for pattern in exclude for text in ("/".join(parts), *parts)):
        return "excluded"
    suffix = re.search(r"[^.](\.[^.]*)$", parts[-1])
    if suffix is None:
        return "without a suffix"
    return "" if PICTURES.fullmatch(suffix[1]) else suffix[1]


Found = dict[str, tuple[Role, str | None]]  # the split and class of each picture by its name


def _from_folders(root: str, paths: dict[str, tuple[str, ...]]) -> Found:
    paths = _without_common_folders(paths)
    folders = {parts[0] for parts in paths.values() if len(parts) > 1}
    roles = _roles(root, folders)
    if not roles:
        _check_lone_train(root, paths, folders)
        return {name: ("", _class(root, name, parts)) for name, parts in paths.items()}
    found: Found = {}
    for name, parts in paths.items():
        if len(parts) == 1:
            raise StageError(
                f"{root}/{name}: this picture is in none of {', '.join(sorted(folders))}; move or exclude it"
            )
    classes: set[str] = set()
    for folder in sorted(folders, key=lambda folder: roles[folder] != "train"):  # train first: it has the classes
        inside = {name: parts[1:] for name, parts in paths.items() if parts[0] == folder}
        if roles[folder] == "train":
            inside = _without_common_folders(inside)
            found |= {name: ("train", _class(root, name, parts)) for name, parts in inside.items()}
            classes = {label for _, label in found.values() if label}
            continue
        inside = _without_common_folders(inside, keep=classes, depth=1)
        if all(len(parts) == 1 for parts in inside.values()):
            found |= {name: (roles[folder], None) for name in inside}
        else:
            found |= {name: (roles[folder], _class(root, name, parts)) for name, parts in inside.items()}
    return found


def _without_common_folders(
    paths: dict[str, tuple[str, ...]], keep: Iterable[str] = (), depth: int = 2
) -> dict[str, tuple[str, ...]]:
    """Drop the first folder while all paths have it, it is not in `keep`, and `depth` components are left."""
    while (
        len(first := {parts[0] for parts in paths.values()}) == 1
        and not first & set(keep)
        and min(map(len, paths.values())) > depth
    ):
        paths = {name: parts[1:] for name, parts in paths.items()}
    return paths


def _role(name: str) -> Role | None:
    return ROLES.get(re.sub(r"[-_ ]+", "_", name.strip().lower()))


def _roles(root: str, folders: Iterable[str]) -> dict[str, Role]:
    """Return the splits that the folders are; nothing if they are classes."""
    roles: dict[str, Role] = {folder: role for folder in sorted(folders) if (role := _role(folder))}
    if "train" not in roles.values() or len(roles) < 2:
        if roles and len(roles) == len(set(folders)) > 1:
            raise StageError(
                f"{root}: found {' and '.join(roles)}, but no training images; expected train/ as well"
            )
        return {}
    if others := sorted(set(folders) - set(roles)):
        raise StageError(
            f"{root}: {others[0]!r} is neither of {', '.join(roles)}; move it, or add it to dataset.folder.exclude"
        )
    if len(set(roles.values())) < len(roles):
        raise StageError(f"{root}: {', '.join(roles)}: two folders for the same split; move one, or exclude it")
    return roles


def _check_lone_train(root: str, paths: Mapping[str, tuple[str, ...]], folders: set[str]) -> None:
    """Raise `StageError` when a folder is named like the training split and consists of folders like one."""
    for train in sorted(folder for folder in folders if _role(folder) == "train"):
        inside = [parts[1:] for parts in paths.values() if parts[0] == train]
        others = sorted(folders - {train})
        if others and len({parts[0] for parts in inside}) > 1 and all(len(parts) > 1 for parts in inside):
            raise StageError(
                f"{root}: {train}/ looks like the training split, but {others[0]}/ beside it is not a split; "
                "rename it to val or test, add it to dataset.folder.exclude, or rename the class"
            )


def _class(root: str, name: str, parts: tuple[str, ...]) -> str:
    if len(parts) == 1:
        raise StageError(f"{root}/{name}: this picture is not in the folder of a class; {EXPECTED}")
    return parts[0]


def _from_table(root: str, paths: dict[str, tuple[str, ...]], table: Table, ignored: dict[str, str]) -> Found:
    where = f"{root}/{table.name}"
    header = table.text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(table.text), delimiter=max(",;\t", key=header.count))
    columns = _columns(where, list(reader.fieldnames or ()), table.columns)
    try:
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise StageError(f"{where}:{reader.line_num}: not valid CSV: {error}; correct it") from None
    find = _finder(paths, table.name.rpartition("/")[0])
    found: Found = {}
    missing: list[str] = []
    for number, row in rows:
        line, written = f"{where}:{number}", (row[columns["path"]] or "").strip()
        matches = find(written)
        if len(matches) > 1:
            raise StageError(
                f"{line}: {written!r} is the name of {len(matches)} pictures; write the path from {root}/"
            )
        if not matches:
            missing.append(f"{line}: {written!r}")
            continue
        text = row[columns["split"]] or "" if "split" in columns else None
        role: Role | None = "" if text is None else _role(text)
        if role is None:
            raise StageError(
                f"{line}: {text!r} is not a split; write train, val or test, or ignore the column with "
                f'dataset.folder.labels: {{file: {table.name}, split: ""}}'
            )
        entry = (role, (row[columns["label"]] or "").strip() or None)
        if found.setdefault(matches.pop(), entry) != entry:
            raise StageError(f"{line}: {written!r} has another label or split in an earlier row; remove one")
    if missing:
        more = f", and {len(missing) - 1:,} rows more" if len(missing) > 1 else ""
        such = f", such as {'/'.join(min(paths.values()))}" if paths else ""
        raise StageError(
            f"{missing[0]} is not a picture in {root}/{more}; correct or remove these rows: paths start in {root}/"
            f"{such}"
        )
    ignored |= {name: f"not in {table.name}" for name in paths if name not in found}
    return found


def rows(
    root: str, names: Iterable[str], table: Table, wanted: Sequence[str]
) -> list[tuple[str, str, dict[str, str]]]:
    """Return for each row of a table where it is, the name of its picture, and its texts in the columns `wanted`.

    The column of pictures is named path. Raises `StageError` for a missing column, a path that is no picture or
    several, and a second row for a picture.
    """
    where = f"{root}/{table.name}"
    reader = csv.DictReader(io.StringIO(table.text))
    if missing := [name for name in ("path", *wanted) if name not in (reader.fieldnames or ())]:
        raise StageError(f"{where}: no column {missing[0]!r}; expected path,{','.join(wanted)}")
    find = _finder({name: tuple(normal(name).split("/")) for name in names}, table.name.rpartition("/")[0])
    found: dict[str, tuple[str, str, dict[str, str]]] = {}
    for row in reader:
        line, written = f"{where}:{reader.line_num}", (row["path"] or "").strip()
        matches = find(written)
        if len(matches) != 1:
            problem = f"the name of {len(matches)} pictures" if matches else f"not a picture in {root}/"
            raise StageError(f"{line}: {written!r} is {problem}; correct or remove this row")
        name = matches.pop()
        if name in found:
            raise StageError(f"{line}: {written!r} has an earlier row; remove one")
        found[name] = (line, name, {column: (row[column] or "").strip() for column in wanted})
    return list(found.values())


def relabeled(root: str, layout: Layout, table: Table) -> Layout:
    """Return the layout with the labels of a table with the columns path and label; the label drop: left out."""
    pictures = dict(layout.pictures)
    classes = {label for _, label in pictures.values()}
    changed = dropped = 0
    for line, name, row in rows(root, pictures, table, ["label"]):
        split, old = pictures[name]
        if row["label"] == "drop":
            del pictures[name]
            dropped += 1
        elif row["label"] not in classes:
            close = difflib.get_close_matches(row["label"], classes, 1, 0)
            raise StageError(f"{line}: {row['label']!r} is neither a class nor drop; did you mean {close[0]!r}?")
        elif row["label"] != old:
            pictures[name] = (split, row["label"])
            changed += 1
    note = f"{table.name} changes the labels of {changed:,} pictures and leaves out {dropped:,}"
    return replace(layout, pictures=pictures, notes=[*layout.notes, note])


def normal(name: str) -> str:
    """Return the name in Unicode's composed form: macOS stores é as e and an accent, others as one character."""
    return unicodedata.normalize("NFC", name)


def _finder(paths: dict[str, tuple[str, ...]], folder: str) -> Callable[[str], set[str]]:
    """Return a function from a path as a table may write it to the pictures that it can mean."""
    by_path = {"/".join(parts): name for name, parts in paths.items()}
    by_file_name: dict[str, set[str]] = {}  # with and without its suffix
    for name, parts in paths.items():
        for key in (parts[-1], parts[-1].rpartition(".")[0]):
            by_file_name.setdefault(key, set()).add(name)

    def find(written: str) -> set[str]:
        path = normal(written).replace("\\", "/").removeprefix("./")
        exact = {by_path[full] for full in (path, f"{folder}/{path}") if full in by_path}
        return exact or set(by_file_name.get(path, ()))

    return find


def _columns(where: str, fields: list[str], given: Mapping[str, str | None]) -> dict[str, str]:
    columns = {}
    for role, known in COLUMNS.items():
        wanted = given.get(role)
        if wanted == "" and role == "split":
            continue
        match = [name for name in fields if (name == wanted if wanted else name.strip().lower() in known)]
        match.sort(key=lambda name: 0 if wanted else known.index(name.strip().lower()))
        if match:
            columns[role] = match[0]
        elif wanted or role != "split":
            name = where.rpartition("/")[2]
            raise StageError(
                f"{where}: no column {wanted or role!r}; its columns are {', '.join(fields)}; set "
                f"dataset.folder.labels to {{file: {name}, {role}: COLUMN}}"
            )
    return columns


def _resolved(root: str, found: Found, ignored: Mapping[str, str], val_as: str) -> Layout:
    """Decide what val/ is, and check the classes of the splits."""
    notes = []
    unlabeled = [name for name, (_, label) in found.items() if label is None]
    pictures: dict[str, tuple[Role, str]] = {
        name: (role, label) for name, (role, label) in found.items() if label is not None
    }
    if unlabeled:
        wrong = [name for name in unlabeled if found[name][0] not in ("test", "")]
        if wrong:
            raise StageError(f"{root}/{wrong[0]}: this picture has no class; {EXPECTED}")
        notes.append(
            f"{len(unlabeled):,} pictures without a class are left for prediction, such as {unlabeled[0]}"
        )
    roles = {split for split, _ in pictures.values()}
    if "validation" in roles and "test" not in roles:
        new: Role = "test" if val_as == "test" else ""
        notes.append(
            "val/ is the test split, as there is no other; for part of the training images, set "
            "dataset.folder.val_as: train"
            if val_as == "test"
            else "val/ is part of the training images (dataset.folder.val_as: train)"
        )
        pictures = {name: (new if old == "validation" else old, label) for name, (old, label) in pictures.items()}
        roles = {old for old, _ in pictures.values()}
    if "test" not in roles:  # it is drawn from all
        undecided: Role = ""
        pictures = {name: (undecided, label) for name, (_, label) in pictures.items()}
    counts = ", ".join(f"{count:,} {reason}" for reason, count in Counter(ignored.values()).most_common(8))
    _check_classes(root, pictures, f"; ignored files: {counts}" if ignored else "")
    if ignored:
        notes.append(f"ignored {len(ignored):,} files that are not pictures of the dataset: {counts}")
    return Layout(pictures, unlabeled, ignored, notes)


def _check_classes(root: str, pictures: Mapping[str, tuple[Role, str]], ignored: str) -> None:
    by_role: dict[str, set[str]] = {}
    for role, label in pictures.values():
        by_role.setdefault(role, set()).add(label)
    classes = by_role.pop("train", set()) or by_role.pop("", set())
    if unprintable := sorted(label for label in classes if not label.isprintable()):
        raise StageError(f"{root}: the class {unprintable[0]!r} has an unprintable name; rename it")
    if not 2 <= len(classes) <= MAX_CLASSES:
        number = f"1 class ({min(classes)})" if len(classes) == 1 else f"{len(classes):,} classes"
        raise StageError(f"{root}: found {number}, expected 2 to {MAX_CLASSES:,}; {EXPECTED}{ignored}")
    every = {label for _, label in pictures.values()}
    if 2 * len(every) > len(pictures) > MANY and all(map(_is_number, every)):
        raise StageError(
            f"{root}: the labels are {len(every):,} different numbers for {len(pictures):,} pictures, such as "
            f"{min(every)}: a regression, for which there is no network here; write classes, such as ranges"
        )
    for split, present in by_role.items():
        if unknown := sorted(present - classes):
            same = [label for label in classes if label.strip().lower() == unknown[0].strip().lower()]
            hint = f"rename it to {same[0]!r}" if same else "add training images or exclude it"
            raise StageError(f"{root}: the class {unknown[0]!r} is in the {split} split only; {hint}")


def _is_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True
