"""necrocode status: who runs, who waits and for what, what has ended, what could be cleaned."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from necrocode import board
from necrocode.door import Door, plain, verb
from necrocode.screen import columns

if TYPE_CHECKING:
    from necrocode.ledger.files import FileLedger

_LOOK = 0.25
_REDRAW = 1.0
"""Seconds after which a dashboard is drawn anew although nothing has moved: beats and ages go on."""


@verb("status")
@click.option("-w", "--watch", is_flag=True, help="Go on showing it, until Ctrl-C.")
def command(door: Door, watch: bool) -> int:
    """Who runs, who waits and for what, recent conflicts and ends, and what could be cleaned.

    Only reads; never locks, never repairs. With --watch a dashboard on a terminal, elsewhere one screen for each
    change (with --json one line)."""
    if not watch:
        _once(door, board.look(door.root, _ledger(door)))
        return 0
    try:
        _dashboard(door) if sys.stdout.isatty() and not door.as_json else _changes(door)
    except KeyboardInterrupt:
        return 130
    return 0


def _ledger(door: Door) -> FileLedger | None:
    return door.ledger() if door.existing() else None


def _once(door: Door, seen: board.Board) -> None:
    if door.as_json:
        return door.emit(board.facts(seen))
    width = columns(sys.stdout.isatty())
    return door.show("\n".join(board.lines(seen, width, colored=door.colored())))


def _changes(door: Door) -> None:
    for seen in _looks(door, None):
        if door.as_json:
            door.show(json.dumps(plain(board.facts(seen))))
        else:
            _once(door, seen)
            door.show("")


def _dashboard(door: Door) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for seen in _looks(door, _REDRAW):
            shown = board.lines(seen, console.width, colored=door.colored(), height=console.height - 1)
            live.update(Text.from_ansi("\n".join(shown), no_wrap=True), refresh=True)


def _looks(door: Door, redraw: float | None) -> Iterator[board.Board]:
    """A look now, and again whenever something has moved, at most four a second; `redraw`: at least every so many
    seconds."""
    ledger, last, drawn = _ledger(door), None, 0.0
    while True:
        ledger = ledger or _ledger(door)
        now = _moved(ledger)
        if now != last or (redraw is not None and time.monotonic() - drawn >= redraw):
            yield board.look(door.root, ledger)
            last, drawn = now, time.monotonic()
        time.sleep(_LOOK)


def _moved(ledger: FileLedger | None) -> Any:
    """Something that is another whenever a lease, a waiter or an event has come or gone."""
    if ledger is None:
        return None
    root = ledger.state.root
    times = [os.stat(root / folder).st_mtime_ns for folder in ("runners", "queue", "fenced", "quarantine")]
    return times, [entry.stat().st_size for entry in os.scandir(root / "events")]
