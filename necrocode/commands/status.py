"""necrocode status: who runs, who waits and for what, what has ended, what could be cleaned."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from necrocode.door import NOTHING_YET, Door, plain, verb
from necrocode.screen import clean

if TYPE_CHECKING:
    from necrocode.board import Board

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
        if door.as_json or door.existing():
            _once(door, _look(door))
        else:
            door.show(clean(NOTHING_YET.format(door.root)))
        return 0
    try:
        _dashboard(door) if sys.stdout.isatty() and not door.as_json else _changes(door)
    except KeyboardInterrupt:
        return 130
    return 0


def _look(door: Door) -> Board:
    from necrocode import board

    state = door.existing()
    return board.look(state) if state else board.Board(door.root, time.time())


def _once(door: Door, seen: Board) -> None:
    from necrocode import board, picture
    from necrocode.screen import columns

    if door.as_json:
        return door.emit(board.facts(seen))
    width = columns(sys.stdout.isatty())
    return door.show("\n".join(picture.lines(seen, width, colored=door.colored())))


def _changes(door: Door) -> None:
    import json

    from necrocode import board

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

    from necrocode import picture

    console = Console()
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for seen in _looks(door, _REDRAW):
            shown = picture.lines(seen, console.width, colored=door.colored(), height=console.height - 1)
            live.update(Text.from_ansi("\n".join(shown), no_wrap=True), refresh=True)


def _looks(door: Door, redraw: float | None) -> Iterator[Board]:
    """A look now, and again whenever something has moved, at most four a second; `redraw`: at least every so many
    seconds."""
    from necrocode import board

    last, drawn = None, 0.0
    while True:
        state = door.existing()
        now = (board.moved(state),) if state else ()
        if now != last or (redraw is not None and time.monotonic() - drawn >= redraw):
            yield _look(door)
            last, drawn = now, time.monotonic()
        time.sleep(_LOOK)
