"""necrocode events: what happened, as JSON lines or as lines for a person, and what happens now."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING

import click

from necrocode import names as known
from necrocode.door import Door, verb
from necrocode.errors import ConfigError
from necrocode.screen import clean, styled

if TYPE_CHECKING:
    from necrocode.event import Event

_STYLES = {
    "lease.queued": "yellow", "lease.refused": "red", "lease.fenced": "red", "lease.reaped": "red",
    "attempt.lost": "red", "attempt.retried": "yellow", "error.recorded": "red", "deadlock.found": "red",
    "conflict.found": "yellow", "task.cancelled": "yellow", "record.quarantined": "red",
}  # fmt: skip


@verb("events", as_json="One JSON object a line on stdout.")
@click.option("-f", "--follow", is_flag=True, help="Go on as things happen, until Ctrl-C.")
@click.option("--since", metavar="10m|TIME", help="From so long ago, or from then (with -f: default now).")
@click.option("--run", "run_id", metavar="RUN", type=known.RUN, help="Only of this run.")
@click.option(
    "--task", "task_id", metavar="TASK", type=known.TASK, help="Only of this task; RUN/TASK for that of one run."
)
@click.option(
    "--kind", "kinds", multiple=True, metavar="KIND", help="Only these: lease, or lease.granted (repeatable)."
)
def command(
    door: Door, follow: bool, since: str | None, run_id: str | None, task_id: str | None, kinds: tuple[str, ...]
) -> int:
    """What happened: one JSON object a line, or on a terminal lines for a person.

    Events are what metrics and reports are made of; docs/events.md lists the kinds and their facts."""
    from necrocode import journal, when

    _check_kinds(kinds)
    begin = when.moment(since) if since else None
    run, _, task = task_id.rpartition("/") if task_id else ("", "", "")
    state = door.existing()
    if state is None and not follow:
        return 0
    folder = (state or door.state()).events
    events = journal.follow(folder, lambda: False, since=begin) if follow else journal.read(folder, begin)
    try:
        _show(door, (one for one in events if _fits(one, run_id or run, task, kinds)))
    except KeyboardInterrupt:
        return 130
    return 0


def _check_kinds(kinds: tuple[str, ...]) -> None:
    from difflib import get_close_matches

    from necrocode.event import KINDS

    known = [*KINDS, *dict.fromkeys(kind.partition(".")[0] for kind in KINDS)]
    for kind in kinds:
        if kind not in known:
            near = get_close_matches(kind, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"kinds begin with {', '.join(known[len(KINDS) :])}"
            raise ConfigError(f"there are no events of the kind {kind!r}", hint=hint)


def _fits(event: Event, run_id: str, task_id: str, kinds: tuple[str, ...]) -> bool:
    from necrocode.figures import is_of

    if kinds and event.kind not in kinds and event.kind.partition(".")[0] not in kinds:
        return False
    return is_of(event, run_id, task_id)


def _show(door: Door, events: Iterator[Event]) -> None:
    readable = sys.stdout.isatty() and not door.as_json
    for event in events:
        if readable:
            door.show(styled(clean(_line(event)), _STYLES.get(event.kind, ""), door.colored()))
        else:
            door.show(json.dumps(event.to_dict(), ensure_ascii=False))


def _line(event: Event) -> str:
    from necrocode.explain import told

    whom = event.runner_id or "/".join(part for part in (event.run_id, event.task_id) if part)
    when, _, rest = told(event).partition("  ")
    day = "" if datetime.fromtimestamp(event.at).date() == datetime.now().date() else f"{_day(event)} "
    return f"{day}{when}  {whom or '-':<20}  {rest}"


def _day(event: Event) -> str:
    return f"{datetime.fromtimestamp(event.at):%Y-%m-%d}"
