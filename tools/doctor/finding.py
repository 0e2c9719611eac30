"""The finding of a check: one line with the state, the place, and the command that fixes it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One line. state: ok, wrong, or note for what is good to know; remedy: a command, or empty."""

    state: Literal["ok", "note", "wrong"]
    found: str
    remedy: str = ""


class NotChecked(Exception):
    """There is nothing to check, or another check reports why it is impossible; the message becomes a note."""


def megabytes(size: float) -> str:
    """Return a size in bytes as text in megabytes."""
    return f"{size / 1e6:,.1f} MB" if size < 1e7 else f"{size / 1e6:,.0f} MB"


def listed(names: list[str], most: int = 3) -> str:
    """Return the first `most` names as text."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
