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
from necrocode.door import Door, verb
from necrocode.errors import ConfigError, StateUnusable
from necrocode.screen import clean

if TYPE_CHECKING:
    from necrocode.fleet import Fleet
    from necrocode.launch import Draft
    from necrocode.ledger.files import FileLedger
    from necrocode.runs import Plan


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
    ledger = door.ledger()
    plan, retry_failed, notes = _plan(ledger, options)
    for note in notes:
        door.say(f"note: {clean(note)}")
    if options["dry_run"]:
        _show_plan(door, plan)
        return 0
    return follow(door, ledger, plan, retry_failed, options)


def _plan(ledger: FileLedger, options: dict[str, Any]) -> tuple[Plan, bool, tuple[str, ...]]:
    from necrocode.runs import Plan, new_run

    if options["resume"] or options["failed"]:
        run_id = options["resume"] if options["resume"] not in (None, "last") else _newest(ledger, options["file"])
        plan = Plan.load(ledger.state, run_id)
        return plan._replace(jobs=options["jobs"] or plan.jobs), options["failed"], ()
    if not options["file"]:
        raise ConfigError("no task file is given", hint="necrocode run tasks.toml, or --resume last")
    made = _draft(options)
    if options["dry_run"]:
        return made.plan, False, made.notes
    plan = made.plan._replace(run_id=new_run(ledger.state))
    plan.save(ledger.state)
    return plan, False, made.notes


def _newest(ledger: FileLedger, file: str | None) -> str:
    """The newest run, of this file when one is named."""
    from necrocode.runs import Plan, runs

    for run_id in runs(ledger.state):
        if file is None or Plan.load(ledger.state, run_id).source == os.path.abspath(file):
            return run_id
    raise ConfigError(f"there is no earlier run{f' of {file}' if file else ''}", hint="start one: necrocode run FILE")


def _draft(options: dict[str, Any]) -> Draft:
    from necrocode.launch import Wishes, draft
    from necrocode.taskfile import read_tasks

    found = settings.resolve(Path.cwd(), options)
    kept = ("keep_workspaces", "fail_fast", "patience", "grace", "heartbeat_timeout")
    wishes = Wishes(
        jobs=found.now("jobs"), only=options["only"], timeout=found.now("timeout"), agent=found.now("agent") or "",
        mode=found.now("workspace_mode"), base=options["base"], retries=found.now("retries"),
        directory=found.values["workspaces"], **{key: found.values[key] for key in kept},
    )  # fmt: skip
    return draft(read_tasks(options["file"], found.base), wishes, Path.cwd())


def follow(door: Door, ledger: FileLedger, plan: Plan, retry_failed: bool, options: dict[str, Any]) -> int:
    """Launch the run, show how it goes unless `options["quiet"]`, tell how it ended; the exit code. `retry` does it
    too."""
    from necrocode.fleet import Fleet
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
    return signals.exit_code or _exit_code(fleet)


def _exit_code(fleet: Fleet) -> int:
    outcomes = fleet.outcomes.values()
    for kind, code in (("not_found", 127), ("not_executable", 126)):
        if any(outcome.error_kind == kind for outcome in outcomes):
            return code
    return 0 if all(outcome.ok for outcome in outcomes) else 1


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
        listed = [{**row._asdict(), "behind": [behind.after for behind in row.behind]} for row in rows]
        door.emit({"jobs": plan.jobs, "base": plan.base, "tasks": listed})
    else:
        door.show("\n".join(rehearsal(plan, rows, columns(sys.stdout.isatty()), colored=door.colored())))
