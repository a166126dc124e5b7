"""The chronicle of a run as lines for a screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from necrocode import figures
from necrocode.chronicle import WAITING, Chronicle, Stretch
from necrocode.screen import Column, Row, clean, counted, duration, fit, measured, styled, table

_MARKS = {WAITING: ".", "prepare": "-", "work": "=", "verify": "v", "commit": "+", "artifacts": "+"}
_LEGEND = "- set up   = work   v verify   + commit   . wait"
_WIDEST = 120
_SHORTEST = 6
"""Of a name, when it is cut: of less, nobody sees what is meant, and the marks say more."""
_FAILED = (
    Column("NOT DONE", 99, 20), Column("ENDED", 95, 9), Column("TRIES", 20, right=True), Column("BECAUSE", 80, 16),
    Column("NEXT", 90, 60, tail=True),
)  # fmt: skip
_ROOM = {
    "limit": "`necrocode config set limit N` raises it, -n does not",
    "quota": "`necrocode config set quota NAME N` raises it, -n does not",
    "queue": "`necrocode config set limit N` lets more work at once, -n does not",
}
"""What to do where not a claim was waited for, but a turn."""
_WAITS = (Column("WAITED FOR", 99, 16), Column("TIMES", 50, right=True), Column("TOGETHER", 90, right=True))


def lines(told: Chronicle, width: int, *, colored: bool = False) -> list[str]:
    """Head, timeline, where time went, waits and conflicts, failures with the next command; `width` columns wide."""
    parts = [
        [styled(fit(clean(_head(told)), width), "bold", colored)],
        _timeline(told, min(width, _WIDEST)),
        figures.lines(_figures(told), width),
        table(_WAITS, [Row((what, str(n), duration(s))) for what, n, s in told.contended[:8]], width, colored=colored)
        if told.contended else [],
        table(_FAILED, [_failed(one) for one in told.failures], width, colored=colored) if told.failures else [],
        [fit(clean(line), width) for line in _next(told)],
    ]  # fmt: skip
    return [line for part in parts if part for line in ["", *part]][1:]


def _failed(one: tuple[str, str, int, str, str]) -> Row:
    task_id, status, attempts, error, go_on = one
    return Row((task_id, status.replace("_", " "), str(attempts), error, go_on), "red" if attempts else "yellow")


def _head(told: Chronicle) -> str:
    counts = Counter(told.status(task.id) for task in told.plan.tasks)
    ends = "  ".join(f"{count} {status.replace('_', ' ')}" for status, count in counts.most_common())
    work = told.metrics.total.seconds
    speed = f"   speed-up {work / told.wall:.1f}" if told.wall > 0 and work > told.wall else ""
    now = "   goes on now" if told.goes_on else ""
    name = f"   {Path(told.plan.source).name}" if told.plan.source else ""
    tasks = f"{counted(len(told.plan.tasks), 'task')}: {ends}"
    return f"run {told.plan.run_id}{name}   {tasks}   took {duration(told.wall)}{speed}{now}"


def _timeline(told: Chronicle, width: int) -> list[str]:
    """One line for each slot, time from left to right."""
    room = width - len("slot 00 || 100 %")
    if not told.slots or room < 20:
        return []
    rows = []
    for slot in range(told.slots):
        cells = [" "] * room
        for stretch in told.stretches:
            if stretch.slot == slot:
                _draw(cells, stretch, room / (told.wall or 1.0))
        rows.append(f"slot {slot:<2} |{''.join(cells)}| {100 * told.busy(slot):3.0f} %")
    end = duration(told.wall)
    scale = f"{'':8}0 {'-' * (room - len(end) - 3)}> {end}"
    return [*rows, scale, f"{'':8}{_LEGEND}"]


def _draw(cells: list[str], stretch: Stretch, scale: float) -> None:
    first, last = _place(stretch.begin, scale, cells), _place(stretch.end, scale, cells)
    for span in stretch.spans:
        for at in range(_place(span.begin, scale, cells), _place(span.end, scale, cells) + 1):
            cells[at] = _MARKS.get(span.phase, "=")
    cells[first] = "|"
    name = fit(clean(stretch.task_id), last - first)
    if len(name) >= min(_SHORTEST, len(stretch.task_id)) and measured(name) == len(name):
        cells[first + 1 : first + 1 + len(name)] = name


def _place(seconds: float, scale: float, cells: list[str]) -> int:
    return max(0, min(len(cells) - 1, int(seconds * scale)))


def _figures(told: Chronicle) -> Iterator[tuple[str, str]]:
    shares, all_of_it = told.shares(), sum(told.shares().values())
    if all_of_it:
        went = ", ".join(f"{phase} {100 * seconds / all_of_it:.0f} %" for phase, seconds in shares.items())
        yield "time went", went
    for name, text in figures.shown(told.metrics):
        if name != "phases":
            yield name, text


def _next(told: Chronicle) -> Iterator[str]:
    """What a person may want to do now."""
    run_id = told.plan.run_id
    if told.goes_on:
        yield f"NEXT  necrocode wait {run_id}"
    elif told.failures:
        yield f"NEXT  necrocode retry {run_id}"
    shares = told.shares()
    if told.contended and shares.get(WAITING, 0.0) > 0.25 * sum(shares.values()):
        what, _, seconds = told.contended[0]
        advice = _ROOM.get(what, "split it, before raising -n")
        yield f"HINT  {duration(seconds)} were spent waiting for {what}: {advice}"
