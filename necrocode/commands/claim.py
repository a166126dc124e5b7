"""necrocode claim: for shell scripts: hold files, branches, ports or anything named until the script ends."""

from __future__ import annotations

import os
from typing import Any

import click

from necrocode.door import Door, verb
from necrocode.errors import Refused
from necrocode.screen import clean


@verb("claim")
@click.argument("claims", nargs=-1, required=True, metavar="CLAIM...")
@click.option("--pid", type=click.IntRange(1), metavar="PID", help="Hold it for this process (default: your shell).")
@click.option("--name", default="", metavar="ID", help="The claim's id (default: one is made).")
@click.option("--wait/--no-wait", default=True, help="Wait for what is held (default), or end with 75.")
@click.option("--timeout", type=click.FloatRange(0), metavar="SECONDS", help="Wait at most so long, then end with 124.")
@click.option("--slot", is_flag=True, help="Take one of the machine's slots too, as a runner does.")
@click.option("--priority", type=click.IntRange(-50, 49), default=0, help="Higher is served first.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing while waiting.")
def command(door: Door, claims: tuple[str, ...], pid: int | None, quiet: bool, **options: Any) -> None:
    """Hold every CLAIM (file:src/a.py, branch:main, port:8080, shared:file:docs/, any KIND:NAME) and print the id.

    \b
    id=$(necrocode claim file:src/ port:8080)
    ...
    necrocode release "$id"

    All or none. A small process goes on holding them after this one has returned, until `release`, or until the
    shell (or --pid) has ended, however that came about. A subshell's claim is the shell's; with --pid $BASHPID it is
    the subshell's own. 75: held by others (--no-wait); 124: out of time."""
    from necrocode import holding
    from necrocode.lease import Request
    from necrocode.wanted import refuse_own, wanted

    wished = wanted(claims)
    owner = holding.owner(pid or holding.shell())

    def on_wait(refused: Refused) -> None:
        refuse_own(refused, door.ledger().state.root)
        if not quiet:
            door.say(clean(f"necrocode: waiting: {'; '.join(map(str, refused.blockers[:4])) or refused}"))

    runner_id = options["name"] or f"claim-{owner.pid}-{os.urandom(3).hex()}"
    details = {**owner.details, "directory": os.getcwd()}
    request = Request(runner_id, wished, slot=options["slot"], priority=options["priority"], details=details)
    wish = holding.Wish(request, options["wait"], options["timeout"], on_wait)
    held = holding.leave_holder(wish, owner, door.ledger)
    if held is None:
        return None  # we are the holder, and it is over
    return door.emit(held) if door.as_json else door.show(held["runner_id"])
