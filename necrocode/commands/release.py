"""necrocode release: end what `necrocode claim` holds, and wait until it is free."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from necrocode import names as known
from necrocode.door import Door, verb
from necrocode.errors import ConfigError
from necrocode.screen import clean

if TYPE_CHECKING:
    from necrocode.lease import RunnerInstance
    from necrocode.ledger.files import FileLedger

_GRACE = 2.0


@verb("release")
@click.argument("names", nargs=-1, metavar="ID...", type=known.RUNNER)
@click.option("--pid", type=click.IntRange(1), metavar="PID", help="All that is held for this process.")
def command(door: Door, names: tuple[str, ...], pid: int | None) -> int:
    """End the claims ID, or all of process PID, and wait until they are free.

    One that has ended already is no mistake. Only what `necrocode claim` made is ended here; for runners there is
    `necrocode stop`. Exit code 1 when a claim could not be ended."""
    from necrocode import stopping

    if bool(names) == (pid is not None):
        raise ConfigError("name the claims, or give --pid", hint='necrocode release "$id", or --pid $$')
    ledger = door.ledger() if door.existing() else None
    chosen = _chosen(ledger, names, pid) if ledger else []
    targets = [stopping.Target(one.runner_id, one.holder, "running", one.runner_id) for one in chosen]
    ended = stopping.stop(ledger, targets, _GRACE) if ledger and targets else []
    if door.as_json:
        door.emit({"released": [one.name for one in ended if one.how != "alive"]})
    else:
        gone = [name for name in names if name not in {one.name for one in ended}]
        told = [*(f"{one.name} {_how(one.how)}" for one in ended), *(f"{name} had ended already" for name in gone)]
        for line in told or ["nothing was held"]:
            door.say(clean(f"necrocode: {line}"))
    return int(any(one.how == "alive" for one in ended))


def _how(how: str) -> str:
    return "could not be ended" if how == "alive" else "is released"


def _chosen(ledger: FileLedger, names: tuple[str, ...], pid: int | None) -> list[RunnerInstance]:
    """The records of the claims that are meant, of holders and of those that still wait."""
    snapshot = ledger.snapshot()
    records = [*(waiter.record for waiter in snapshot.waiting), *(seen.record for seen in snapshot.runners)]
    known = {record.runner_id: record for record in records}
    if pid is not None:
        return [record for record in known.values() if _is_for(record, pid)]
    return [record for name in names if (record := _named(ledger, known, name))]


def _is_for(record: RunnerInstance, pid: int) -> bool:
    from necrocode.process.who import stat

    details, seen = record.details, stat(pid)
    ticks = str(seen.ticks) if seen else details.get("for_ticks")  # of one that has ended: whoever had the number last
    return (details.get("kind"), details.get("for_pid"), details.get("for_ticks")) == ("claim", str(pid), ticks)


def _named(ledger: FileLedger, known: dict[str, RunnerInstance], name: str) -> RunnerInstance | None:
    from necrocode import lookup

    record = known.get(name)
    if record is None:
        lookup.find(ledger.state, name)  # raises for what there never was
        return None
    if record.details.get("kind") != "claim":
        raise ConfigError(f"{name} is a runner, not a claim", hint=f"necrocode stop {name}")
    return record
