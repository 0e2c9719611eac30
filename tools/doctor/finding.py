"""What a look finds: one line that says how it is, where, and the command that mends it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One line. `state`: ok; note, to know of, nothing to mend; wrong. `remedy` is a command, or empty."""

    state: Literal["ok", "note", "wrong"]
    found: str
    remedy: str = ""


class NotChecked(Exception):
    """There is nothing to look at, or what it takes is broken and named by another look; the message is a note."""


def megabytes(size: float) -> str:
    """Return a size in bytes as it is shown."""
    return f"{size / 1e6:,.1f} MB" if size < 1e7 else f"{size / 1e6:,.0f} MB"


def listed(names: list[str], most: int = 3) -> str:
    """Return names as one text, the first `most` of them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
