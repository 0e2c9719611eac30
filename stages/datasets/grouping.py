"""Which pictures must be on the same side of a split: copies, and the groups of `dataset.folder.groups`."""

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence

from stages.common.failure import StageError
from stages.datasets.layout import Table, rows

Keys = dict[str, list[Hashable]]  # the groups of each picture, by its name


def group_keys(root: str, names: Sequence[str], rules: Iterable[str | Table]) -> tuple[Keys, list[str]]:
    """Return the groups that the rules put the pictures in, and notes for the user.

    rules: regular expressions, whose groups (or the whole match, if there are none) identify the group, and tables
    with the columns path and group. A picture in no group is in a group of its own.
    """
    keys: Keys = {name: [] for name in names}
    notes = []
    for number, rule in enumerate(rules):
        if isinstance(rule, Table):
            found: Mapping[str, Hashable] = {
                name: row["group"] for _, name, row in rows(root, keys, rule, ["group"])
            }
            title = rule.name
        else:
            matches = {name: re.search(rule, name) for name in names}
            found = {name: match.groups() or match[0] for name, match in matches.items() if match}
            title = rule
        if not found:
            raise StageError(
                f"dataset.folder.groups: {title!r} matches none of the pictures in {root}; correct it"
            )
        for name, group in found.items():
            keys[name].append((number, group))
        rest = len(names) - len(found)
        notes.append(
            f"{title!r} puts {len(found):,} pictures into {len(set(found.values())):,} groups"
            + (f"; {rest:,} are in none" if rest else "")
        )
    return keys, notes


def connected(keys: Iterable[Iterable[Hashable]]) -> list[int]:
    """Return a number for each picture, the same for pictures that a chain of common keys connects."""
    parents: list[int] = []
    first: dict[Hashable, int] = {}

    def find(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    for index, of_picture in enumerate(keys):
        parents.append(index)
        for key in of_picture:
            parents[find(index)] = find(first.setdefault(key, index))
    return [find(index) for index in range(len(parents))]
