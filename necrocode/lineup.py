"""Tasks of runs under way that no runner has taken yet: what each of them waits for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from necrocode.errors import ConfigError, StateUnreadable

if TYPE_CHECKING:
    from necrocode.event import Event
    from necrocode.runs import Plan
    from necrocode.statedir import StateDir

_RUNS = 200
"""Of so many runs, the newest, it is asked whether somebody follows them."""


class Unbegun(NamedTuple):
    """A task to come. `behind` are the tasks of its run that it comes after and that are not done, `claims` what it and
    they want; without them it waits for one of the `places` of its run, or, with `again`, for its next attempt."""

    run_id: str
    task_id: str
    behind: tuple[str, ...]
    claims: tuple[str, ...]
    places: int
    again: bool = False


def lineup(state: StateDir, events: Iterable[Event]) -> tuple[Unbegun, ...]:
    """Of all runs that somebody follows, in the order of their plans; `events` are the latest."""
    followed = [run_id for run_id in _runs(state.runs) if _is_followed(state.runs / run_id)]
    if not followed:
        return ()
    from necrocode.runs import Plan

    events = [event for event in events if event.run_id in followed]
    found: list[Unbegun] = []
    for run_id in followed:
        with suppress(StateUnreadable, ConfigError):  # it went meanwhile, or `doctor` tells of it
            found += _of_run(state, Plan.load(state, run_id), [event for event in events if event.run_id == run_id])
    return tuple(found)


def _runs(folder: Path) -> list[str]:
    entries = sorted(os.scandir(folder), key=lambda entry: entry.stat().st_mtime, reverse=True)
    return [entry.name for entry in entries[:_RUNS]]


def _is_followed(run: Path) -> bool:
    from necrocode.ledger import lifeline

    try:
        return lifeline.is_held(run / "launcher.json")
    except OSError:
        return False


def _of_run(state: StateDir, plan: Plan, events: list[Event]) -> Iterator[Unbegun]:
    from necrocode.order import read_result
    from necrocode.runs import attempts_of_all

    came, last, lines = attempts_of_all(state, plan.run_id), _last(events), _lines(events)

    @cache
    def is_done(task_id: str) -> bool:
        with suppress(StateUnreadable):
            outcome = read_result(came[task_id][-1][1]) if task_id in came else None
            return outcome is not None and outcome.ok
        return False

    for task in plan.tasks:
        again = last.get(task.id) == "attempt.retried"
        if again or (task.id not in came and last.get(task.id) != "task.cancelled"):
            line = lines.get(task.id, {})
            behind = tuple(other for other in dict.fromkeys((*task.after, *line)) if not is_done(other))
            claims = tuple(dict.fromkeys(claim for other in behind for claim in line.get(other, ())))
            yield Unbegun(plan.run_id, task.id, behind, claims, plan.jobs, again)


def _last(events: Iterable[Event]) -> dict[str, str]:
    """For each task, what was told of it last that says where it stands."""
    return {
        event.task_id: event.kind
        for event in events
        if event.kind.startswith("attempt.") or event.kind == "task.cancelled"
    }


def _lines(events: Iterable[Event]) -> dict[str, dict[str, tuple[str, ...]]]:
    """For each task that was put in line, behind which others, and for what."""
    lines: dict[str, dict[str, tuple[str, ...]]] = {}
    for event in events:
        if event.kind == "conflict.avoided":
            claims = tuple(map(str, event.facts.get("claims", ())))
            lines.setdefault(event.task_id, {})[str(event.facts.get("after", ""))] = claims
    return lines
