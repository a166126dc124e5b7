"""Tasks of runs under way that no runner has taken yet: what each of them waits for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from necrocode.errors import ConfigError, StateUnreadable

if TYPE_CHECKING:
    from necrocode.event import Event
    from necrocode.runs import Plan
    from necrocode.statedir import StateDir
    from necrocode.task import Task

_RUNS = 200
"""Of so many runs, the newest, it is asked whether somebody follows them."""


class Unbegun(NamedTuple):
    """A task to come. `behind` are the tasks of its run that it comes after and that are not done, and those that hold
    what it wants, which are its `claims`; without any it waits for one of the `places` of its run, or, with `again`,
    for its next attempt."""

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
    found: list[Unbegun] = []
    for run_id in followed:
        with suppress(StateUnreadable, ConfigError):  # it went meanwhile, or `doctor` tells of it
            found += _line(state, run_id, [event for event in events if event.run_id == run_id]).to_come()
    return tuple(found)


def _runs(folder: Path) -> list[str]:
    entries = sorted(os.scandir(folder), key=_changed, reverse=True)
    return [entry.name for entry in entries[:_RUNS]]


def _changed(entry: os.DirEntry[str]) -> float:
    try:
        return entry.stat().st_mtime
    except FileNotFoundError:  # it went just now
        return 0.0


def _is_followed(run: Path) -> bool:
    from necrocode.ledger import lifeline

    try:
        return lifeline.is_held(run / "launcher.json")
    except OSError:
        return False


def _line(state: StateDir, run_id: str, events: list[Event]) -> _Line:
    """As its launcher follows it: perhaps not all of the plan, with other places, and what had failed once more."""
    from necrocode.runs import Plan, run_folder
    from necrocode.statedir import read_json

    plan = Plan.load(state, run_id)
    try:
        said: dict[str, Any] = read_json(run_folder(state, run_id) / "launcher.json")
        wanted, jobs, failed_too = frozenset(said["tasks"]), int(said["jobs"]), bool(said["failed_too"])
    except (OSError, ValueError, KeyError, TypeError):  # it is only just beginning
        return _Line(state, plan, _told(events), failed_too=False)
    plan = plan._replace(tasks=tuple(task for task in plan.tasks if task.id in wanted), jobs=jobs)
    return _Line(state, plan, _told(events), failed_too=failed_too)


class _Line:
    """One run's tasks as they stand: `plan` as it is followed, `told` what its launcher said of each task last."""

    def __init__(self, state: StateDir, plan: Plan, told: Mapping[str, str], *, failed_too: bool) -> None:
        from necrocode.claim import ClaimIndex
        from necrocode.runs import attempts_of_all

        self._plan, self._told, self._failed_too = plan, told, failed_too
        self._last = {task_id: came[-1][1] for task_id, came in attempts_of_all(state, plan.run_id).items()}
        self._here = {task.id for task in plan.tasks}
        self._results: dict[str, bool] = {}
        self._held = ClaimIndex()
        for task_id, folder in self._last.items():
            if not (folder / "result.json").exists():
                self._held.add(task_id, plan.claims.get(task_id, ()))

    def to_come(self) -> Iterator[Unbegun]:
        off: set[str] = set()
        for task in self._plan.tasks:
            if self._is_to_come(task.id):
                if off.intersection(task.after) or any(map(self._has_failed, task.after)):
                    off.add(task.id)  # the launcher is about to say so
                else:
                    yield self._unbegun(task)

    def _unbegun(self, task: Task) -> Unbegun:
        blockers = self._held.blockers(task.id, self._plan.claims.get(task.id, ()))
        after = [other for other in task.after if other in self._here and not self._is_done(other)]
        claims = tuple(dict.fromkeys(str(wanted) for wanted, _ in blockers.values()))
        again = self._told.get(task.id) == "attempt.retried"
        return Unbegun(
            self._plan.run_id, task.id, (*dict.fromkeys((*after, *blockers)),), claims, self._plan.jobs, again
        )

    def _is_to_come(self, task_id: str) -> bool:
        told = self._told.get(task_id)
        if told == "attempt.retried":
            return True
        if task_id not in self._last:
            return told != "task.cancelled"
        return told is None and self._failed_too and self._has_ended(task_id) and not self._is_done(task_id)

    def _has_failed(self, task_id: str) -> bool:
        return self._has_ended(task_id) and not self._is_done(task_id) and not self._is_to_come(task_id)

    def _has_ended(self, task_id: str) -> bool:
        return task_id in self._last and (self._last[task_id] / "result.json").exists()

    def _is_done(self, task_id: str) -> bool:
        from necrocode.order import read_result

        if task_id not in self._results and task_id in self._last:
            with suppress(StateUnreadable):
                outcome = read_result(self._last[task_id])
                self._results[task_id] = outcome is not None and outcome.ok
        return self._results.get(task_id, False)


def _told(events: Iterable[Event]) -> dict[str, str]:
    """For each task, what was told of it last that says where it stands, by the launcher that is there now."""
    last: dict[str, str] = {}
    for event in events:
        if event.kind in ("run.started", "run.resumed"):
            last.clear()
        elif event.kind.startswith("attempt.") or event.kind == "task.cancelled":
            last[event.task_id] = event.kind
    return last
