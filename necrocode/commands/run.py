"""necrocode run: many tasks at once, each in its own workspace, its work on its own branch."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from necrocode import names as known
from necrocode import options as flags
from necrocode import settings
from necrocode.declared import SETTINGS
from necrocode.door import Door, verb
from necrocode.errors import ConfigError, StateUnusable

if TYPE_CHECKING:
    from necrocode.fleet import Fleet
    from necrocode.launch import Draft, Wishes
    from necrocode.ledger.files import FileLedger
    from necrocode.plan import PlanRow
    from necrocode.runs import Plan, Standing
    from necrocode.settings import Resolved
    from necrocode.statedir import StateDir

_SHOWN = 8
"""Tasks of which one note tells."""


@verb("run")
@click.argument("file", required=False, type=click.Path())
@flags.of_a_run
@click.option("--dry-run", is_flag=True, help="Print the plan, with order and conflicts, and touch nothing.")
@click.option("--only", multiple=True, metavar="ID", help="Only this task (may be repeated); others count as done.")
@click.option("--failed", is_flag=True, help="Take the file's last run up again, and try its failed tasks once more.")
@click.option(
    "--resume", metavar="RUN", type=known.RUN, help="Take a run up again ('last': the newest). Nothing is repeated."
)
@click.option("--base", default="", metavar="REV", help="What tasks start from (default: the branch you are on).")
@click.option("-q", "--quiet", is_flag=True, help="No progress, only the end.")
def command(door: Door, /, **options: Any) -> int:
    """Run the tasks of FILE (TOML, JSON, JSON Lines or YAML), many at once.

    Each task works in a workspace of its own and leaves its work on the branch necrocode/RUN/TASK. Tasks that want
    the same files are put in line; what others on this machine hold is waited for. Ctrl-C once: start nothing more;
    twice: stop what runs; three times: leave (go on with --resume).
    """
    made = _taken_up(door, options) if options["resume"] or options["failed"] else _draft(options)
    for note in made.notes:
        door.note(note)
    if options["dry_run"]:
        _show_plan(door, made.plan)
        return 0
    from necrocode import runs

    ledger = door.ledger()
    plan = made.plan if made.plan.run_id else runs.begun(ledger.state, made.plan)
    return follow(door, ledger, plan, options["failed"], options)


def _draft(options: dict[str, Any]) -> Draft:
    from necrocode.launch import draft
    from necrocode.taskfile import read_tasks

    if not options["file"]:
        raise ConfigError("no task file is given", hint="necrocode run tasks.toml, or --resume last")
    found = settings.resolve(Path.cwd(), options)
    return draft(read_tasks(options["file"], found.base), _wishes(found, options), Path.cwd())


def _wishes(found: Resolved, options: dict[str, Any]) -> Wishes:
    from necrocode.launch import Wishes

    kept = ("keep_workspaces", "fail_fast", "patience", "grace", "heartbeat_timeout")
    return Wishes(
        jobs=found.now("jobs"), only=options["only"], timeout=found.now("timeout"), agent=found.now("agent") or "",
        mode=found.now("workspace_mode"), base=options["base"], retries=found.now("retries"),
        directory=found.values["workspaces"], **{key: found.values[key] for key in kept},
    )  # fmt: skip


# -- an earlier run


def _taken_up(door: Door, options: dict[str, Any]) -> Draft:
    """What is left of an earlier run, and what of this call is not as that was planned."""
    from necrocode import launch, runs

    _refuse_what_stands(options)
    state = door.existing()
    plan = launch.said_anew(_earlier(door, state, options), options)
    assert state
    notes = _edited(plan, options)
    stands = runs.standing(state, plan)
    tasks, left_out = launch.chosen(plan.tasks, options["only"], stands.done)
    plan = plan._replace(tasks=tasks)
    if options["dry_run"]:
        plan, ended = _left(plan, stands, options["failed"])
        notes += ended
    return launch.Draft(plan, (*notes, *left_out))


def _refuse_what_stands(options: dict[str, Any]) -> None:
    from necrocode.launch import SAID_ANEW

    ours = [one for one in SETTINGS.values() if one.of == "run" and one.key not in SAID_ANEW]
    said = [one.options[-1] for one in ours if options[one.key] is not None] + ["--base"] * bool(options["base"])
    if said:
        raise ConfigError(
            f"{', '.join(said)}: this stands in the plan of a run, and cannot be changed when it is taken up again",
            hint="leave it out, or start a new run: necrocode run FILE, without --failed and --resume",
        )


def _earlier(door: Door, state: StateDir | None, options: dict[str, Any]) -> Plan:
    """The plan of the run that is meant: the one named, or the newest, of FILE when that is named."""
    from necrocode import lookup, runs

    file, named = options["file"], options["resume"]
    source = os.path.abspath(file) if file else ""
    if named in (None, "last"):
        named = lookup.newest(state, door.note, source) if state else ""
    if not state or not named:
        raise ConfigError(
            f"there is no earlier run{f' of {file}' if file else ''}", hint="start one: necrocode run FILE"
        )
    plan = runs.Plan.load(state, named)
    if source not in ("", plan.source):
        raise ConfigError(
            f"run {named} is not one of {file}, but of {plan.source}", hint=f"necrocode run --resume {named}"
        )
    return plan


def _edited(plan: Plan, options: dict[str, Any]) -> list[str]:
    """A note when the task file says otherwise than the plan, which holds."""
    from necrocode.launch import differences
    from necrocode.taskfile import read_tasks

    if not (options["file"] or os.path.isfile(plan.source)):
        return []
    try:
        found = settings.resolve(Path.cwd(), options)
        other = differences(plan, read_tasks(plan.source, found.base))
    except ConfigError as error:
        return [f"run {plan.run_id} goes on as it was planned; its file cannot be used now: {error}"]
    more = f" and {len(other) - _SHOWN} more" if len(other) > _SHOWN else ""
    said = f"run {plan.run_id} goes on as it was planned, although {plan.source} differs now in "
    return [f"{said}{', '.join(other[:_SHOWN])}{more} (a new run takes it as it is)"] if other else []


def _left(plan: Plan, stands: Standing, retry_failed: bool) -> tuple[Plan, list[str]]:
    """The plan of what would be started now, and in a note what would not."""
    stays = frozenset() if retry_failed else stands.failed
    left = [task for task in plan.tasks if task.id not in stands.done | stays]
    tasks = tuple(task._replace(after=tuple(one for one in task.after if one not in stands.done)) for task in left)
    done = [task.id for task in plan.tasks if task.id in stands.done]
    words = [f"done: {', '.join(done)}"] if done else []
    words += [f"not tried again without --failed: {', '.join(sorted(stays))}"] if stays else []
    return plan._replace(tasks=tasks), [f"left out, because they are {'; '.join(words)}"] if words else []


def follow(door: Door, ledger: FileLedger, plan: Plan, retry_failed: bool, options: dict[str, Any]) -> int:
    """Launch the run, show how it goes unless `options["quiet"]`, tell how it ended; the exit code. `retry` does it
    too."""
    from necrocode.fleet import Fleet
    from necrocode.outcome import run_code
    from necrocode.progress import Progress, closing, console_on, kept, summary
    from necrocode.screen import columns

    quiet = options["quiet"] or door.as_json
    console = console_on(sys.stderr, door.colored(sys.stderr))
    progress = Progress(plan, console, quiet=quiet)
    fleet = Fleet(plan, ledger, listener=progress.heard, retry_failed=retry_failed)
    signals = _Signals(fleet, plan.run_id)
    progress.begin()
    try:
        with progress.shown():
            outcomes = fleet.run()
    except StateUnusable:
        door.say(f"necrocode: what runs goes on; then go on with: necrocode run --resume {plan.run_id}")
        raise
    stay = kept(ledger.state, plan)
    if door.as_json:
        tasks = [outcome.to_dict() for outcome in outcomes.values()]
        door.emit({"run": plan.run_id, "tasks": tasks, "kept": [one._asdict() for one in stay]})
    else:
        width = columns(sys.stdout.isatty())
        door.show("\n".join(summary(plan, outcomes, width, colored=door.colored(), kept=stay)))
        door.say("\n".join(closing(plan, outcomes, colored=door.colored(sys.stderr), kept=stay)))
    return signals.exit_code or run_code((one.status, one.run_code) for one in outcomes.values())


class _Signals:
    """SIGINT once: start nothing more. Twice, or SIGTERM: stop what runs. Three times: leave; the runners go on."""

    def __init__(self, fleet: Fleet, run_id: str) -> None:
        self.exit_code = 0
        self._fleet, self._run_id, self._asked = fleet, run_id, 0
        signal.signal(signal.SIGINT, self._heard)
        signal.signal(signal.SIGTERM, self._heard)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        self.exit_code = self.exit_code or 128 + number
        self._asked += 1 if number == signal.SIGINT else 2
        if self._asked > 2 and number == signal.SIGINT:
            with suppress(OSError):
                cursor = "\x1b[?25h" if os.isatty(2) else ""  # the live picture had hidden it
                os.write(2, f"{cursor}\nleft; go on with: necrocode run --resume {self._run_id}\n".encode())
            os._exit(130)
        self._fleet.interrupt(self._asked)


def _show_plan(door: Door, plan: Plan) -> None:
    from necrocode.plan import plan as rehearse
    from necrocode.progress import rehearsal
    from necrocode.schedule import Entry
    from necrocode.screen import columns

    rows = rehearse((Entry(t.id, t.priority, t.after, plan.claims[t.id]) for t in plan.tasks), plan.jobs)
    if door.as_json:
        door.emit({"jobs": plan.jobs, "base": plan.base, "tasks": [_planned(plan, row) for row in rows]})
    else:
        door.show("\n".join(rehearsal(plan, rows, columns(sys.stdout.isatty()), colored=door.colored())))


def _planned(plan: Plan, row: PlanRow) -> dict[str, Any]:
    """One task of a plan as it is; `conflicts` say for each that it is `behind` which claims of both meet."""
    conflicts = [{"after": one.after, "wanted": one.wanted, "held": one.held} for one in row.behind]
    facts = {"behind": [one.after for one in row.behind], "conflicts": conflicts}
    return {**row._asdict(), "claims": plan.claims[row.task_id], **facts}
