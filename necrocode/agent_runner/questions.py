"""What can be asked of a state directory: how many, how long, who is in the way. Answers come from one look."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from necrocode import clock, journal
from necrocode.agent_runner.estimate import expected_wait
from necrocode.claim import Claim, conflict
from necrocode.errors import GateTimeout, StateUnusable
from necrocode.ledger.files import FileLedger
from necrocode.ledger.snapshot import Sighting, Snapshot
from necrocode.liveness import Liveness
from necrocode.statedir import StateDir

_REMEMBERED = 500
"""Finished leases that an estimate looks back at, within the last day."""
_DAY = 86400.0
_PATIENCE = 2.0
"""Seconds for which the gate is waited for by whoever cannot count what moves all the time."""
_FAMILIES = {"file": "File", "branch": "Branch", "workspace": "Workspace"}


def look(ledger: FileLedger) -> Snapshot:
    """Everybody who stands and waits. What the dead and silent left is swept first when the gate is free at once."""
    snapshot = ledger.snapshot(patience=_PATIENCE)
    if not snapshot.undone:
        return snapshot
    with suppress(GateTimeout, StateUnusable):  # a look that cannot repair is still a look
        ledger.sweep(patience=0)
    return ledger.snapshot(patience=_PATIENCE)


def effective_limit(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def wait_seconds(state: StateDir, snapshot: Snapshot, limit: int | None) -> float:
    """Seconds until somebody who came now would have a slot: 0.0 below the limit, `math.inf` when no lease has
    ended lately that lasted longer than the present ones."""
    if limit is None or snapshot.live < limit:
        return 0.0
    ages = [seen.age for seen in snapshot.runners if seen.counts]
    queued = [waiter for waiter in snapshot.waiting if not waiter.adding and waiter.liveness == Liveness.ALIVE]
    over = snapshot.live - limit
    return expected_wait(1 + len(queued), ages, _observed(state), surplus=over) if ages else math.inf


def _observed(state: StateDir) -> list[float]:
    since = clock.wall() - _DAY
    released = journal.read(state.events, since, kind="lease.released", slot=True)
    held = (event.facts.get("held") for event in released)
    return list(deque((float(one) for one in held if isinstance(one, (int, float))), _REMEMBERED))


class Conflict(NamedTuple):
    """One live runner that holds something that was asked about, and what."""

    runner_id: str
    family: str
    claims: tuple[Claim, ...]

    def __str__(self) -> str:
        names = ", ".join(sorted({claim.name for claim in self.claims}))
        return f"{_FAMILIES.get(self.family, self.family)} conflict with runner {self.runner_id}: {names}"


def conflicts(snapshot: Snapshot, runner_id: str, wanted: Iterable[Claim], *, anywhere: bool = False) -> list[Conflict]:
    """Who else holds what, of the wanted claims; with `anywhere`, whatever repository it belongs to."""
    wanted = tuple(wanted)
    found: dict[tuple[str, str], dict[Claim, None]] = {}
    for seen in snapshot.runners:
        if seen.record.runner_id != runner_id:
            for ours, held in _met(wanted, _held(seen), anywhere=anywhere):
                told = held if "*" in ours.path and "*" not in held.path else ours
                found.setdefault((ours.family, seen.record.runner_id), {})[told] = None
    order = list(_FAMILIES)
    ranked = sorted(found.items(), key=lambda item: (order.index(item[0][0]), item[0][1]))
    return [Conflict(holder, family, tuple(claims)) for (family, holder), claims in ranked]


def _held(seen: Sighting) -> Iterator[Claim]:
    if seen.liveness == Liveness.DEAD:
        return
    alive = seen.state == "running" and seen.liveness == Liveness.ALIVE
    yield from (claim for claim in seen.record.claims if alive or claim.sticky)


def _met(wanted: tuple[Claim, ...], held: Iterable[Claim], *, anywhere: bool) -> Iterator[tuple[Claim, Claim]]:
    for theirs in held:
        for ours in wanted:
            same = ours._replace(kind=theirs.kind) if anywhere and ours.family == theirs.family else ours
            if conflict(same, theirs):
                yield ours, theirs


def status(snapshot: Snapshot, limit: int | None) -> dict[str, Any]:
    """The document's status, and who holds claims without a slot, who was fenced, who waits for what."""
    alive = [seen for seen in snapshot.runners if seen.state == "running" and seen.liveness == Liveness.ALIVE]
    return {
        "active_runners": snapshot.live,
        "max_parallel_runners": limit,
        "runners": [_told(seen) for seen in alive if seen.record.slot],
        "without_slot": [_told(seen) for seen in alive if not seen.record.slot],
        "fenced": [_told(seen) for seen in snapshot.runners if seen.state == "fenced"],
        "waiting": [
            {
                "runner_id": waiter.record.runner_id,
                "task_id": waiter.record.task_id,
                "position": waiter.position,
                "reason": waiter.reason,
                "waits_for": [str(holder) for holder in waiter.blockers],
            }
            for waiter in snapshot.waiting
        ],
    }


def _told(seen: Sighting) -> dict[str, Any]:
    record = seen.record
    return {
        "runner_id": record.runner_id,
        "task_id": record.task_id,
        "spec_name": record.spec_name,
        "elapsed_seconds": seen.age,
        "workspace_path": record.workspace_path,
        "files": sorted(record.files_locked),
        "branches": sorted(record.branches_used),
        "token": seen.token,
        "pid": record.holder.pid if record.holder else None,
    }
