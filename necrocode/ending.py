"""Whether a run, a task or a runner has come to its end, and how."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from necrocode import journal, lookup, runs
from necrocode.errors import StateUnreadable
from necrocode.ledger import lifeline
from necrocode.lookup import Found
from necrocode.order import read_result, taken_by
from necrocode.outcome import Outcome, Status
from necrocode.statedir import StateDir, read
from necrocode.vigil import is_gone

_BEGINNING = 10.0
"""Seconds between the plan of a run and its launcher's first sign, and between an attempt and its runner's, before
they are taken for dead."""


class End(NamedTuple):
    """How something ended: `status` is a final status, "lost", "not_begun", or for a runner of nobody's run
    "released" or "died"; `exit_code` is what `necrocode run` would have ended with."""

    name: str
    status: str
    exit_code: int
    error: str = ""
    seconds: float = 0.0


def ends(state: StateDir, found: Found) -> list[End] | None:
    """How it ended, for a run one for each of its tasks; None while it goes on or waits for its turn.

    Raises ConfigError or StateUnreadable for a run whose plan cannot be read."""
    if not found.run_id:
        return _of_runner(state, found.runner_id)
    launcher = _Launcher(state, found.run_id)  # looked at first: what is missing after its end will not come
    plan = runs.Plan.load(state, found.run_id)
    if found.task_id:
        end = _of_task(state, found, launcher, plan.task(found.task_id).retries)
        return [end] if end else None
    if launcher.lives or _has_runners(state, found.run_id):
        return None
    told = (_of_task(state, Found(found.run_id, task.id), launcher, task.retries) for task in plan.tasks)
    found_ends = [end for end in told if end]
    return found_ends if len(found_ends) == len(plan.tasks) else None


class _Launcher:
    """Whether somebody follows the run, and since when."""

    def __init__(self, state: StateDir, run_id: str) -> None:
        folder = runs.run_folder(state, run_id)
        self.since = _since(folder / "launcher.json")
        self.lives = lookup.launcher_lives(state, run_id) or (self.since is None and _is_young(folder / "plan.json"))
        self._events, self._run_id = state.events, run_id

    @cached_property
    def reasons(self) -> dict[str, str]:
        """Why tasks of the run will not be started; what this launcher said of it, while there is one."""
        since = self.since if self.lives else None
        told = journal.read(self._events, since, kind="task.cancelled", run_id=self._run_id)
        return {event.task_id: str(event.facts.get("reason", "")) for event in told}


def _since(path: Path) -> float | None:
    try:
        return float(json.loads(read(path))["since"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_young(path: Path) -> bool:
    with suppress(FileNotFoundError):
        return time.time() - path.stat().st_mtime < _BEGINNING
    return False


def _has_runners(state: StateDir, run_id: str) -> bool:
    names = (name for name in lookup.runner_ids(state) if name.startswith(f"{run_id}."))
    return any(lifeline.is_held(state.live / name) for name in names)


def _of_task(state: StateDir, found: Found, launcher: _Launcher, retries: int) -> End | None:
    attempts = dict(runs.attempts(state, found.run_id, found.task_id))
    number, name = found.attempt or max(attempts, default=0), str(found)
    if number not in attempts:
        return _not_begun(name, launcher, found.task_id)
    alive = _is_carried(state, attempts[number], f"{found.run_id}.{found.task_id}.{number}")
    outcome = read_result(attempts[number])
    if outcome is None:
        return None if alive or launcher.lives else End(name, "lost", 1, "its runner died")
    if not (found.attempt or outcome.ok) and launcher.lives and not _is_last(attempts, launcher, retries, outcome):
        return _not_begun(name, launcher, found.task_id)
    return End(name, str(outcome.status), outcome.run_code, outcome.error, outcome.seconds)


def _is_carried(state: StateDir, folder: Path, runner_id: str) -> bool:
    """Whether a runner is at it, also before it has its lease, or may just have been given it."""
    if lifeline.is_held(state.live / runner_id):
        return True
    try:
        carrier = taken_by(folder)
    except StateUnreadable:
        return False  # its lifeline has told
    return not is_gone(state, carrier, runner_id) if carrier else _is_young(folder / "task.json")


def _not_begun(name: str, launcher: _Launcher, task_id: str) -> End | None:
    """What becomes of a task of which no (other) attempt has begun."""
    reason = launcher.reasons.get(task_id)
    if reason is not None:
        return End(name, str(Status.CANCELLED), 130 if reason == "interrupted" else 1, reason)
    return None if launcher.lives else End(name, "not_begun", 1, "nobody follows its run")


def _is_last(attempts: dict[int, Path], launcher: _Launcher, retries: int, outcome: Outcome) -> bool:
    """Whether it is plain that a living launcher will start no other attempt; when it is not, its end will tell."""
    if outcome.ended < (launcher.since or 0.0):
        return False
    failed = sum(one.ended >= (launcher.since or 0.0) and one.status is not Status.LOST for one in _results(attempts))
    return outcome.status is Status.CANCELLED or failed > retries


def _results(attempts: dict[int, Path]) -> Iterator[Outcome]:
    for folder in attempts.values():
        with suppress(StateUnreadable):
            if outcome := read_result(folder):
                yield outcome


def _of_runner(state: StateDir, runner_id: str) -> list[End] | None:
    if lifeline.is_held(state.live / runner_id):
        return None
    last, held = "", 0.0
    for event in journal.read(state.events, None, runner_id=runner_id):
        if event.kind in ("lease.granted", "lease.released", "lease.reaped", "lease.abandoned", "lease.refused"):
            last, held = event.kind, float(event.facts.get("held") or 0.0)
    if last == "lease.released":
        return [End(runner_id, "released", 0, seconds=held)]
    return [End(runner_id, "died" if last in ("lease.granted", "lease.reaped", "") else "left the queue", 1)]
