"""Words and tables for people: aligned, cut to the width of the terminal, free of control characters."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_CODES = {"red": "31", "green": "32", "yellow": "33", "cyan": "36", "dim": "2", "bold": "1"}
_UNBOUNDED = 100_000
_GAP = 2


class Column(NamedTuple):
    """One column of a table. Where room is short, that of the least `importance` is narrowed first, down to `least`
    characters, and then left out; the most important one always stays. `right` is for numbers, aligned and never
    cut; `tail` keeps the end of what is cut."""

    name: str
    importance: int
    least: int = 4
    right: bool = False
    tail: bool = False


class Row(NamedTuple):
    """The cells of one line, and its style (red, green, yellow, cyan, dim, bold or "")."""

    cells: Sequence[str]
    style: str = ""


def clean(text: str) -> str:
    """One line of text without characters that would move a cursor, ring, recolour or turn the writing round."""
    return _CONTROLS.sub("?", text)


def styled(text: str, style: str, colored: bool) -> str:
    return f"\x1b[{_CODES[style]}m{text}\x1b[0m" if colored and style else text


def columns(stream_is_terminal: bool) -> int:
    """How wide a line may be: COLUMNS, or the terminal; without either, as wide as it gets (for grep)."""
    asked = os.environ.get("COLUMNS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    return os.get_terminal_size(1).columns if stream_is_terminal else _UNBOUNDED


def duration(seconds: float) -> str:
    """0.4 s, 12 s, 3:07, 2:15:01, 3 d 4 h."""
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f} s"
    if seconds < 60:
        return f"{min(seconds, 59):.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def counted(number: int, noun: str, plural: str = "") -> str:
    """1 runner, 2 runners, no runners."""
    return f"{number or 'no'} {noun if number == 1 else plural or noun + 's'}"


def fit(text: str, width: int, *, tail: bool = False) -> str:
    """The text, cut with an ellipsis when it is wider than that; `tail` keeps its end instead of its beginning."""
    if measured(text) <= width:
        return text
    kept = 0
    step = -1 if tail else 1
    left = width - 1
    for char in text[::step]:
        left -= measured(char)
        if left < 0:
            break
        kept += 1
    if width < 1:
        return ""
    return f"…{text[len(text) - kept :]}" if tail else f"{text[:kept]}…"


def measured(text: str) -> int:
    """How many columns of a terminal the text takes."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1 for char in text)


def table(head: Sequence[Column], rows: Sequence[Row], width: int, *, colored: bool = False) -> list[str]:
    """The lines of a table no wider than `width`. Columns that are empty in all rows are left out."""
    cells = [[clean(cell) for cell in row.cells] for row in rows]
    shown = [at for at in range(len(head)) if any(row[at] for row in cells)]
    widths = _widths(head, cells, shown, width)
    while sum(widths.values()) + _GAP * (len(widths) - 1) > width and len(widths) > 1:
        shown.remove(min(shown, key=lambda at: head[at].importance))
        widths = _widths(head, cells, shown, width)
    title = _line(head, [column.name for column in head], widths)
    lines = [_line(head, row, widths) for row in cells]
    return [
        styled(fit(title, width), "bold", colored),
        *(styled(fit(line, width), row.style, colored) for line, row in zip(lines, rows, strict=True)),
    ]


def _widths(head: Sequence[Column], cells: list[list[str]], shown: Sequence[int], width: int) -> dict[int, int]:
    """The width of each shown column: as wide as its widest cell, narrowed where that is too much."""
    widths = {at: max([measured(head[at].name), *(measured(row[at]) for row in cells)]) for at in shown}
    over = sum(widths.values()) + _GAP * (len(widths) - 1) - width
    for at in sorted(shown, key=lambda at: head[at].importance):
        least = widths[at] if head[at].right else max(measured(head[at].name), head[at].least)
        taken = min(max(0, over), max(0, widths[at] - least))
        widths[at] -= taken
        over -= taken
    return widths


def _line(head: Sequence[Column], cells: Sequence[str], widths: dict[int, int]) -> str:
    parts = []
    for at, width in widths.items():
        text = fit(cells[at], width, tail=head[at].tail)
        space = " " * (width - measured(text))
        parts.append(space + text if head[at].right else text + space)
    return (" " * _GAP).join(parts).rstrip()
