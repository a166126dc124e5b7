"""Growth curves as SVG, drawn from tables whose titles differ only in a number. Both axes are logarithmic."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

from bench.compare import Table

_WIDE, _HIGH, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 400, 70, 200, 44, 48
_COLORS = ("#2f6db3", "#c46a1b", "#3d8f5f", "#8a4fa3", "#b0413e", "#7a7a2a", "#4f8f9f", "#777777")
_NUMBER = re.compile(r"\d+(?: \d{3})*")

Points = Sequence[tuple[float, float]]


class Curve(NamedTuple):
    """A chart: `lines` are (x, seconds) by the name of the peer; `along` says what x counts."""

    bench: str
    title: str
    along: str
    lines: Mapping[str, Points]


def curves(tables: Iterable[Table]) -> list[Curve]:
    """A chart for each group of at least three tables whose titles differ only in their first number."""
    groups: dict[tuple[str, str], dict[float, Table]] = {}
    for table in tables:
        if found := _NUMBER.search(table.title):
            form = f"{table.title[: found.start()]}#{table.title[found.end() :]}"
            groups.setdefault((table.bench, form), {})[float(found[0].replace(" ", ""))] = table
    return [_curve(bench, form, found) for (bench, form), found in groups.items() if len(found) > 2]


def _curve(bench: str, form: str, tables: Mapping[float, Table]) -> Curve:
    lines: dict[str, list[tuple[float, float]]] = {}
    for x, table in sorted(tables.items()):
        for row in table.rows:
            if row.p50 > 0:
                lines.setdefault(row.name, []).append((x, row.p50))
    before, _, after = form.partition("#")
    return Curve(bench, before.strip(" ,"), after.strip(" ,"), lines)


def write(curve: Curve, folder: Path) -> Path:
    """The chart as a file of its own in the folder."""
    file = folder / file_name(curve)
    file.write_text(svg(curve))
    return file


def file_name(curve: Curve) -> str:
    """What the file of a chart is called."""
    name = re.sub(r"[^a-z0-9]+", "-", f"{curve.bench} {curve.title or curve.along}".lower()).strip("-")
    return f"{name}.svg"


def svg(curve: Curve) -> str:
    """The chart, readable on light and on dark ground."""
    points = [point for line in curve.lines.values() for point in line]
    across = _Scale([x for x, _ in points], _LEFT, _WIDE - _RIGHT, whole=False)
    up = _Scale([y * 1e6 for _, y in points], _HIGH - _BOTTOM, _TOP, whole=True)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDE} {_HIGH}" role="img" font-size="12"'
        ' font-family="system-ui, sans-serif">',
        "<style>text{fill:#333}.grid{stroke:#8884}@media(prefers-color-scheme:dark){text{fill:#ddd}}</style>",
        _text(_LEFT, 20, curve.title, size=15), _text(_LEFT, _HIGH - 10, curve.along),
    ]  # fmt: skip
    for value in up.ticks():
        y = up.at(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDE - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(_LEFT - 6, y + 4, _time(value), anchor="end"))
    for value in sorted({x for x, _ in points}):
        parts.append(_text(across.at(value), _HIGH - _BOTTOM + 18, f"{value:,.0f}".replace(",", " "), anchor="middle"))
    parts += [part for at, (name, line) in enumerate(curve.lines.items()) for part in _line(at, name, line, across, up)]
    return "\n".join([*parts, "</svg>", ""])


def _line(at: int, name: str, line: Points, across: _Scale, up: _Scale) -> list[str]:
    color, places = _COLORS[at % len(_COLORS)], [(across.at(x), up.at(y * 1e6)) for x, y in line]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in places]
    key = _TOP + 10 + 20 * at
    width = 3 if at == 0 else 1.5
    return [
        f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{width}"/>', *dots,
        f'<rect x="{_WIDE - _RIGHT + 14}" y="{key - 9}" width="10" height="10" fill="{color}"/>',
        _text(_WIDE - _RIGHT + 30, key, name),
    ]  # fmt: skip


class _Scale:
    """A logarithmic axis from one place to another; with `whole` it begins and ends at powers of ten."""

    def __init__(self, values: Sequence[float], first: float, last: float, *, whole: bool) -> None:
        low, high = math.log10(min(values)), math.log10(max(values))
        self.low, self.high = (math.floor(low), math.ceil(high)) if whole else (low, high)
        self.high += self.low == self.high
        self.first, self.last = first, last

    def at(self, value: float) -> float:
        return self.first + (math.log10(value) - self.low) / (self.high - self.low) * (self.last - self.first)

    def ticks(self) -> list[float]:
        return [10.0**power for power in range(math.floor(self.low), math.ceil(self.high) + 1)]


def _time(micro: float) -> str:
    return f"{micro:g} us" if micro < 1e3 else f"{micro / 1e3:g} ms" if micro < 1e6 else f"{micro / 1e6:g} s"


def _text(x: float, y: float, text: str, *, size: int = 0, anchor: str = "") -> str:
    more = (f' font-size="{size}"' if size else "") + (f' text-anchor="{anchor}"' if anchor else "")
    return f'<text x="{x:.1f}" y="{y:.1f}"{more}>{escape(text)}</text>'
