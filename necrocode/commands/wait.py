"""necrocode wait: until runs, tasks or runners have ended."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from necrocode import names as known
from necrocode.door import Door, verb
from necrocode.errors import TaskTimeoutError
from necrocode.screen import clean, counted, duration

if TYPE_CHECKING:
    from necrocode.ending import End
    from necrocode.lookup import Found

_LOOK, _SELDOM = 0.1, 0.5
"""Seconds between two looks, at first and after a while: each one reads what was told meanwhile."""


@verb("wait")
@click.argument("names", nargs=-1, required=True, metavar="RUN|TASK|RUNNER...", type=known.ANY)
@click.option("--timeout", type=click.FloatRange(0), metavar="SECONDS", help="Wait at most so long, then end with 124.")
@click.option("-q", "--quiet", is_flag=True, help="Only the exit code.")
def command(door: Door, names: tuple[str, ...], timeout: float | None, quiet: bool) -> int:
    """Wait until all of these have ended. The exit code is that of `necrocode run`: 0 when everything went well, 1
    when a task failed, 124 when the time is over first.

    A task that is tried again has not ended. Of a run that nobody follows any more, the tasks that had not begun
    count as failed (go on with it: necrocode run --resume RUN)."""
    from necrocode import ending, lookup
    from necrocode.outcome import run_code

    state = door.knowing(names[0])
    left = {name: lookup.find(state, name) for name in names}
    ended: dict[str, list[End]] = {}
    began = time.monotonic()
    while left:
        for name, found in list(left.items()):
            if (ends := ending.ends(state, found)) is not None:
                ended[name] = ends
                del left[name]
                if not (quiet or door.as_json):
                    door.show("\n".join(map(clean, _lines(found, ends))))
        waited = time.monotonic() - began
        if left and timeout is not None and waited >= timeout:
            raise TaskTimeoutError(waited, timeout, task_id=", ".join(left))
        time.sleep(min(_SELDOM, max(_LOOK, waited / 20)) if left else 0)
    all_ends = [end for ends in ended.values() for end in ends]
    code = run_code((end.status, end.exit_code) for end in all_ends)
    if door.as_json:
        door.emit({"exit_code": code, "ended": all_ends})
    return code


def _lines(found: Found, ends: list[End]) -> list[str]:
    """One line; for a run a count, and one for each task that did not go well."""
    if found.task_id or not found.run_id:
        return [_line(end) for end in ends]
    bad = [end for end in ends if end.exit_code]
    told = f"{found}: {counted(len(ends) - len(bad), 'task')} done" + (f", {len(bad)} not" if bad else "")
    return [told, *(f"  {_line(end)}" for end in bad)]


def _line(end: End) -> str:
    took = f" after {duration(end.seconds)}" if end.seconds else ""
    return f"{end.name}: {end.status.replace('_', ' ')}{took}" + (f": {end.error}" if end.error else "")
