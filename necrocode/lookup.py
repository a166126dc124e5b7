"""What a person means by a name: a run, a task of a run, one of its attempts, or a runner."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

from necrocode import runs
from necrocode.errors import ConfigError, StateUnreadable
from necrocode.ledger import lifeline
from necrocode.ledger.records import LeaseName, QueueName
from necrocode.statedir import StateDir

_RUNS = 200
"""Of so many runs, the newest, the tasks are known by their bare ids."""


class Found(NamedTuple):
    """What a name means. A run has only `run_id`; a task has `task_id` too, an attempt its number as well (0: not
    said); a runner of nobody's run has only `runner_id`. `also` are other runs with a task of that id."""

    run_id: str = ""
    task_id: str = ""
    attempt: int = 0
    runner_id: str = ""
    also: tuple[str, ...] = ()

    def __str__(self) -> str:
        name = "/".join(part for part in (self.run_id, self.task_id) if part)
        return (f"{name}.{self.attempt}" if self.attempt else name) or self.runner_id


def find(state: StateDir, name: str) -> Found:
    """What the name means: RUN, RUN/TASK or RUN.TASK, either with `.ATTEMPT`, a bare TASK (that of the newest run
    that has it), or the id of a runner that is or was. Raises ConfigError with near misses for anything else."""
    known = runs.runs(state)
    if name in known:
        return Found(name)
    if found := _in_run(state, name, known):
        return found
    if name in runner_ids(state):
        return Found(runner_id=name)
    having = [run_id for run_id in known[:_RUNS] if name in task_ids(state, run_id)]
    if having:
        return Found(having[0], name, also=tuple(having[1:]))
    if _was(state, name):
        return Found(runner_id=name)
    raise ConfigError(f"there is no task, runner or run {name!r}", hint=_near(state, name, known))


def _in_run(state: StateDir, name: str, known: list[str]) -> Found | None:
    for mark in "/.":
        run_id, found, rest = name.partition(mark)
        if not found or run_id not in known:
            continue
        tasks = task_ids(state, run_id)
        if rest in tasks:
            return Found(run_id, rest)
        task_id, _, number = rest.rpartition(".")
        if task_id in tasks and number.isdigit():
            return Found(run_id, task_id, int(number))
        near = _close(rest, tasks)
        raise ConfigError(f"run {run_id} has no task {rest!r}", hint=near or f"its tasks: {', '.join(tasks[:20])}")
    return None


def run(state: StateDir, name: str, tell: Callable[[str], None]) -> str:
    """The id of a run: itself, or that of the newest for `last` (see `newest`). Raises ConfigError."""
    if name == "last" and (found := newest(state, tell)):
        return found
    known = runs.runs(state)
    if name not in known:
        hint = _close(name, known) or f"known runs, newest first: {', '.join(known[:8]) or 'none'}"
        raise ConfigError(f"there is no run {name!r}", hint=hint)
    return name


def newest(state: StateDir, tell: Callable[[str], None], source: str = "") -> str:
    """The newest run (of that task file, when one is named) whose plan can be read, "" when there is none; `tell`
    hears of those that are passed over."""
    for run_id in runs.runs(state):
        try:
            plan = runs.Plan.load(state, run_id)
            if source in ("", plan.source):
                return run_id
        except StateUnreadable as error:
            tell(f"run {run_id} is passed over: {error}")
        except ConfigError:  # it went meanwhile
            continue
    return ""


def task_ids(state: StateDir, run_id: str) -> list[str]:
    """The tasks of a run, [] when its plan cannot be read."""
    with suppress(StateUnreadable, ConfigError):
        return [task.id for task in runs.Plan.load(state, run_id).tasks]
    return []


def runner_ids(state: StateDir) -> set[str]:
    """All that run, wait or are fenced now."""
    return {name for folder in ("runners", "fenced", "queue") for name in _names(state, folder)}


def _names(state: StateDir, folder: str) -> Iterator[str]:
    parse = QueueName.parse if folder == "queue" else LeaseName.parse
    for name in os.listdir(state.root / folder):
        with suppress(ValueError):
            yield parse(name).runner_id


def _was(state: StateDir, name: str) -> bool:
    from necrocode import journal

    return next(journal.read(state.events, runner_id=name), None) is not None


def _near(state: StateDir, name: str, known: list[str]) -> str:
    names = [*runner_ids(state), *known, *(task for run_id in known[:_RUNS] for task in task_ids(state, run_id))]
    return _close(name, list(dict.fromkeys(names))) or "`necrocode status` shows who there is"


def _close(name: str, names: list[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, names, 3, 0.5)
    return f"did you mean {' or '.join(near)}?" if near else ""


def launcher_lives(state: StateDir, run_id: str) -> bool:
    """Whether some process follows this run now."""
    return lifeline.is_held(runs.run_folder(state, run_id) / "launcher.json")
