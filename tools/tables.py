"""Formats tables for the terminal or as GitHub Markdown."""

from collections.abc import Sequence

Row = tuple[str, ...]


def table(header: Row, rows: Sequence[Row], markdown: bool) -> str:
    """Return an aligned text table, or a Markdown table."""
    if markdown:
        cells = [[cell.replace("|", "\\|") for cell in row] for row in (header, ("---",) * len(header), *rows)]
        return "\n".join(f"| {' | '.join(row)} |" for row in cells)
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = (zip(row, widths, strict=True) for row in (header, *rows))
    return "\n".join("  ".join(cell.ljust(width) for cell, width in line).rstrip() for line in lines)
