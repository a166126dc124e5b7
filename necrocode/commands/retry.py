"""necrocode retry: failed and cancelled tasks of a run, once more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from necrocode import names as known
from necrocode.commands.run import follow
from necrocode.door import Door, verb
from necrocode.errors import ConfigError, Refused
from necrocode.screen import counted

if TYPE_CHECKING:
    from necrocode.runs import Plan


@verb("retry")
@click.argument("run_id", metavar="RUN", type=known.RUN)
@click.argument("tasks", nargs=-1, metavar="[TASK...]", type=known.TASK)
@click.option("-n", "--jobs", type=click.IntRange(1), help="Tasks at once (default: as the run had).")
@click.option("-q", "--quiet", is_flag=True, help="No progress, only the end.")
def command(door: Door, run_id: str, tasks: tuple[str, ...], jobs: int | None, quiet: bool) -> int:
    """Take the failed and cancelled tasks of RUN up again, each with all its attempts; with TASK only those, and
    what they come after. `last` is the newest run.

    What is done stays done. Each task works on its branch again, and what the last attempt left there is kept as a
    snapshot. Exit codes as those of `run`; 75 while somebody still follows RUN."""
    from necrocode import lookup, runs

    state = door.knowing(run_id)
    plan = runs.Plan.load(state, lookup.run(state, run_id, door.note))
    if lookup.launcher_lives(state, plan.run_id):
        raise Refused(
            f"run {plan.run_id} is still followed by its launcher", runner_id=plan.run_id, reason="run",
            hint=f"necrocode wait {plan.run_id}, or necrocode stop {plan.run_id}, then try again",
        )  # fmt: skip
    done = runs.standing(state, plan).done
    again = _chosen(plan, tasks, done)
    if not again:
        return _nothing(door, plan)
    if not (quiet or door.as_json):
        door.say(f"again: {', '.join(sorted(again))} ({counted(len(done), 'task')} done before)")
    kept = tuple(task for task in plan.tasks if task.id in again | done)
    return follow(door, door.ledger(), plan._replace(tasks=kept, jobs=jobs or plan.jobs), True, {"quiet": quiet})


def _nothing(door: Door, plan: Plan) -> int:
    if door.as_json:
        door.emit({"run": plan.run_id, "tasks": []})
    door.say(f"nothing to try again: all of run {plan.run_id} is done")
    return 0


def _chosen(plan: Plan, names: tuple[str, ...], done: frozenset[str]) -> set[str]:
    """The tasks to be tried: those named and what they need that is not done; without names, all that are not."""
    if not names:
        return {task.id for task in plan.tasks} - done
    todo, again = [name.removeprefix(f"{plan.run_id}/") for name in names], set[str]()
    if over := [name for name in todo if plan.task(name).id in done]:
        raise ConfigError(f"{', '.join(over)} is done already", hint="only what failed or was cancelled is tried again")
    while todo:
        task = plan.task(todo.pop())
        again.add(task.id)
        todo += [other for other in task.after if other not in done | again]
    return again
