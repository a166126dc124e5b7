"""necrocode stop: end tasks, runners or whole runs, and say what became of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from necrocode import names as known
from necrocode.door import Door, verb
from necrocode.errors import ConfigError
from necrocode.screen import clean, duration

if TYPE_CHECKING:
    from necrocode.lookup import Found
    from necrocode.stopping import Stopped

_WORDS = {
    "asked": "ended", "killed": "was ended by force", "gone": "had ended already; its lease was removed",
    "orphaned": "had died; what it left was ended", "alive": "could not be ended",
}  # fmt: skip


@verb("stop")
@click.argument("names", nargs=-1, metavar="TASK|RUNNER|RUN...", type=known.ANY)
@click.option("--all", "everything", is_flag=True, help="All runs, runners and waiters of this state directory.")
@click.option("--grace", type=click.FloatRange(0), default=10.0, metavar="SECONDS", help="Between asking and SIGKILL.")
def command(door: Door, names: tuple[str, ...], everything: bool, grace: float) -> int:
    """End tasks, runners or runs: ask them first (SIGTERM), and end the whole process tree of those that do not.

    Waits until they have ended; exit code 1 when something could not be ended. The work of a stopped task stays in
    its workspace."""
    from necrocode import stopping

    if bool(names) == everything:
        raise ConfigError("name what is to be stopped, or give --all", hint="`necrocode status` shows who there is")
    if not door.existing():
        return _report(door, [])
    ledger = door.ledger()
    found = None if everything else [_found(door, name) for name in names]
    chosen = stopping.targets(ledger, found)
    for one in found or ():
        if not stopping.targets(ledger, [one]):
            door.say(f"necrocode: {one} does not run now (necrocode why {one})")
    return _report(door, stopping.stop(ledger, chosen, grace) if chosen else [])


def _found(door: Door, name: str) -> Found:
    """What is meant, which must be plain when something is to be ended: a bare task that runs in two runs is not."""
    from necrocode import lookup, stopping

    found = lookup.find(door.state(), name)
    ledger = door.ledger()
    running = [run for run in (found.run_id, *found.also) if stopping.targets(ledger, [found._replace(run_id=run)])]
    if found.also and len(running) > 1:
        raise ConfigError(
            f"{name} runs in several runs", hint=f"name one: {', '.join(f'{run}/{name}' for run in running)}"
        )
    return found._replace(run_id=running[0]) if found.also and running else found


def _report(door: Door, stopped: list[Stopped]) -> int:
    if door.as_json:
        door.emit({"stopped": stopped})
    for one in () if door.as_json else stopped:
        how = "left the queue" if one.state == "waiting" and one.how == "asked" else _WORDS[one.how]
        left = f"; still alive: pid {', '.join(map(str, one.survivors))}" if one.survivors else ""
        door.show(clean(f"{one.name} {how} after {duration(one.seconds)}{left}"))
    if not stopped and not door.as_json:
        door.show("nothing to stop")
    return int(any(one.how == "alive" or one.survivors for one in stopped))
