"""necrocode exec: like flock(1), for anybody's command: it joins the same limit and the same claims."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from necrocode.door import Door, verb
from necrocode.errors import LeaseLost, Refused
from necrocode.screen import clean
from necrocode.statedir import mark

if TYPE_CHECKING:
    from necrocode.lease import Lease, Request
    from necrocode.ledger.files import FileLedger
    from necrocode.process import Ended

_BEAT = 2.0
_SETTLING = 0.2
"""Seconds that processes which end together with the command are given to be gone."""
_SECONDS = click.FloatRange(0)


@verb(
    "exec",
    as_json="One line of JSON on stderr when it has ended.",
    context_settings={"allow_interspersed_args": False, "ignore_unknown_options": False},
)
@click.option("--claim", "claims", multiple=True, metavar="KIND:NAME", help="Hold this (file, branch, port, any kind).")
@click.option("--file", "files", multiple=True, metavar="PATH", help="Hold this file, directory or pattern.")
@click.option("--branch", "branches", multiple=True, metavar="NAME", help="Hold this branch.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Start only below N runners on this machine.")
@click.option("--wait/--no-wait", default=True, help="Wait for what is held (default), or end with 75.")
@click.option("--timeout", type=_SECONDS, metavar="SECONDS", help="Wait at most so long, then end with 124.")
@click.option("--time-limit", type=_SECONDS, metavar="SECONDS", help="End the command after so long, with 124.")
@click.option("--grace", type=_SECONDS, default=10.0, metavar="SECONDS", help="Between SIGTERM and SIGKILL.")
@click.option("--name", default="", metavar="ID", help="The runner's id (default: one is made).")
@click.option("--priority", type=click.IntRange(-50, 49), default=0, help="Higher is served first.")
@click.option("--spec", default="", metavar="NAME", help="The name that quotas count by.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing while waiting.")
@click.argument("argv", nargs=-1, required=True, metavar="-- COMMAND...", type=click.UNPROCESSED)
def command(door: Door, argv: tuple[str, ...], wait: bool, timeout: float | None, quiet: bool, **options: Any) -> int:
    """Run COMMAND once it has a slot and everything it claims; its exit code is passed through.

    The command runs in this terminal, with its own input and output. 75: held by others (--no-wait), 124: out of
    time, 125: the lease was lost, 126/127: COMMAND cannot be executed / was not found, 128+N: ended by signal N.
    With --json, what happened is one line on stderr, since stdout belongs to the command."""
    from necrocode.wanted import refuse_own

    if not argv[0]:
        raise click.UsageError("the command is empty text, which names no program")
    ledger = door.ledger()
    request = _request(argv, options)

    def on_wait(refused: Refused) -> None:
        refuse_own(refused, ledger.state.root)
        if not quiet:
            door.say(f"necrocode: waiting: {clean(_held(refused))}")

    lease = ledger.register(request, wait=wait, timeout=timeout, on_wait=on_wait)
    if lease.record.waited_seconds >= 0.05 and not quiet:
        door.say(f"necrocode: {lease.runner_id} starts after {lease.record.waited_seconds:.1f} s")
    ended, lost = _carried(ledger, lease, argv, options)
    code = _exit_code(ended, lost)
    _tell(door, lease, ended, lost, code)
    return code


def _request(argv: tuple[str, ...], options: Mapping[str, Any]) -> Request:
    from necrocode.lease import Request
    from necrocode.wanted import wanted

    claims = wanted(options["claims"], options["files"], options["branches"])
    runner_id = options["name"] or f"exec-{os.getpid()}-{os.urandom(2).hex()}"
    details = {"command": shlex.join(argv)[:1000], "directory": os.getcwd()}
    return Request(
        runner_id, claims, spec_name=options["spec"], limit=options["limit"], priority=options["priority"],
        tree=True, details=details,
    )  # fmt: skip


def _held(refused: Refused) -> str:
    shown = "; ".join(map(str, refused.blockers[:4])) or str(refused)
    more = len(refused.blockers) - 4
    return shown + (f"; and {more} more" if more > 0 else "")


def _carried(
    ledger: FileLedger, lease: Lease, argv: tuple[str, ...], options: Mapping[str, Any]
) -> tuple[Ended, LeaseLost | None]:
    from necrocode.heartbeat import Heartbeat
    from necrocode.process.foreground import Halt, foreground, signals_held

    halt, marker = Halt(), mark(ledger.state.root, lease.runner_id)
    found, left_behind = None, False
    with signals_held():  # until the lease is given back: nothing may cut that short
        heartbeat = Heartbeat(ledger, lease, _BEAT, on_lost=lambda lost: halt.set())
        try:
            with heartbeat:
                assert lease.lifeline is not None
                ended = foreground(
                    argv, env=_environment(ledger, lease), marker=marker, pass_fds=(lease.lifeline,),
                    time_limit=options["time_limit"], grace=options["grace"], halt=halt,
                )  # fmt: skip
            left_behind = ended.why == "exited" and _goes_on(marker)
        finally:
            if not left_behind:
                found = _given_back(ledger, lease)
    return ended, heartbeat.lost or found


def _given_back(ledger: FileLedger, lease: Lease) -> LeaseLost | None:
    """Release it; how it had been lost since the last beat, if it had."""
    try:
        ledger.release(lease)
    except LeaseLost as lost:
        return lost
    return None


def _environment(ledger: FileLedger, lease: Lease) -> dict[str, str]:
    ports = ",".join(claim.name for claim in lease.claims if claim.family == "port")
    ours = {
        "RUNNER": lease.runner_id, "TOKEN": str(lease.token), "STATE_DIR": str(ledger.state.root), "PORTS": ports,
    }  # fmt: skip
    return {**os.environ, **{f"NECROCODE_{key}": value for key, value in ours.items() if value}}


def _goes_on(marker: str) -> bool:
    """Whether the command left processes in the background; the lease is theirs then, until the last one ends."""
    from necrocode.process import marked

    until = time.monotonic() + _SETTLING
    while left := [pid for pid in marked(marker) if pid != os.getpid()]:
        if time.monotonic() > until:
            return bool(left)
        time.sleep(0.01)
    return False


def _exit_code(ended: Ended, lost: LeaseLost | None) -> int:
    if ended.why == "timeout":
        return 124
    if lost:
        return 125
    return 128 + ended.signal if ended.signal else ended.exit_code or 0


def _tell(door: Door, lease: Lease, ended: Ended, lost: LeaseLost | None, code: int) -> None:
    import json

    from necrocode.door import plain

    notes = []
    if ended.error:
        notes.append(ended.error)
    if lost:
        notes.append(f"{lost}{'; the command was ended' if ended.why == 'stopped' else ''}")
    if ended.why == "timeout":
        notes.append(f"out of time after {ended.seconds:.1f} s; the command was ended")
    if ended.survivors:
        notes.append(f"could not be ended: pid {', '.join(map(str, ended.survivors))}")
    for note in notes:
        door.say(f"necrocode: {clean(note)}")
    if door.as_json:
        facts = {
            "runner_id": lease.runner_id, "token": lease.token, "waited": lease.record.waited_seconds,
            "exit_code": code, **ended._asdict(),
        }  # fmt: skip
        door.say(json.dumps(plain(facts | {"exit_code": code})))
