"""A look at the whole state without the gate: readers never lock, never repair, and say how sure they are."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from necrocode import admission, process
from necrocode.admission import Obstacle, View, Waiter
from necrocode.claim import ClaimIndex
from necrocode.errors import StateUnreadable
from necrocode.lease import Holder, RunnerInstance
from necrocode.ledger import lifeline
from necrocode.ledger.records import Damaged, LeaseName, QueueName, is_orphaned, read_record, standing_of, wish_of
from necrocode.ledger.terms import read_terms
from necrocode.liveness import Liveness, Seen, judge
from necrocode.statedir import StateDir

_TRIES = 5


class Sighting(NamedTuple):
    """One runner as it was seen: its record (with the last heartbeat filled in), token, liveness (alive, silent,
    dead), and its `age` in seconds; `state` is running or fenced. `orphaned`: its process has provably ended, and
    others that inherited its lifeline keep the lease."""

    record: RunnerInstance
    token: int
    liveness: str
    state: str
    age: float = 0.0
    silent: float | None = None
    publishing: bool = False
    orphaned: bool = False

    @property
    def counts(self) -> bool:
        return self.state == "running" and self.record.slot and self.liveness == Liveness.ALIVE


class Waiting(NamedTuple):
    """One waiter: its record, place in line (from 1), what it waits for and who is in the way, and its `age`: seconds
    since it asked, of one that wants more those of its lease."""

    record: RunnerInstance
    position: int
    adding: bool
    liveness: str
    reason: str
    blockers: tuple[Holder, ...]
    age: float = 0.0
    live: int = 0
    limit: int = 0


class Snapshot(NamedTuple):
    """Everybody at one moment. `consistent` tells whether nothing moved while it was taken."""

    consistent: bool
    limit: int | None
    quotas: Mapping[str, int]
    runners: tuple[Sighting, ...]
    waiting: tuple[Waiting, ...]
    unreadable: tuple[str, ...] = ()

    @property
    def live(self) -> int:
        return sum(sighting.counts for sighting in self.runners)

    @property
    def undone(self) -> bool:
        """Whether a sweep would change something."""
        gone = any(
            s.liveness == Liveness.DEAD or (s.liveness == Liveness.SILENT and s.state == "running")
            for s in self.runners
        )
        return gone or any(waiter.liveness == Liveness.DEAD for waiter in self.waiting)


def take(state: StateDir, peek: Callable[[], tuple[bool, int]]) -> Snapshot:
    """Read until nothing moved meanwhile, at most five times."""
    for _ in range(_TRIES):
        before = peek()
        snapshot = _look_around(state)
        if before == peek() and before[0]:
            return snapshot._replace(consistent=True)
    return snapshot


def _look_around(state: StateDir) -> Snapshot:
    unreadable: list[str] = []
    limit, quotas = _terms(state, unreadable)
    view = View(limit, quotas)
    records: dict[str, RunnerInstance] = {}
    sightings: dict[str, Sighting] = {}
    for folder in ("fenced", "runners"):
        for name in _names(state, folder, unreadable):
            record = _read(state, folder, str(name), unreadable)
            if record:
                sightings[name.runner_id] = _sighting(state, name, record, folder)
                records[name.runner_id] = record
                view.stand(standing_of(name, record, fenced=folder == "fenced"))
    waiters = _waiters(state, view, records, unreadable)
    return Snapshot(
        False,
        limit,
        quotas,
        tuple(sightings.values()),
        tuple(_judged(state, view, records, waiters)),
        tuple(unreadable),
    )


def _terms(state: StateDir, unreadable: list[str]) -> tuple[int | None, dict[str, int]]:
    try:
        return read_terms(state.root / "config.json")
    except StateUnreadable:
        unreadable.append("config.json")
        return None, {}


def _names(state: StateDir, folder: str, unreadable: list[str]) -> list[LeaseName]:
    names = []
    for file_name in os.listdir(state.root / folder):
        try:
            names.append(LeaseName.parse(file_name))
        except ValueError:
            unreadable.append(f"{folder}/{file_name}")
    return sorted(names)  # of two revisions, which a writer that died may leave, the higher comes last and counts


def _read(state: StateDir, folder: str, file_name: str, unreadable: list[str]) -> RunnerInstance | None:
    try:
        return read_record(state.root / folder / file_name)
    except FileNotFoundError:
        return None
    except Damaged:
        unreadable.append(f"{folder}/{file_name}")
        return None


def _sighting(state: StateDir, name: LeaseName, record: RunnerInstance, folder: str) -> Sighting:
    seen = lifeline.look(state.live / name.runner_id, time.monotonic())
    if record.holder and record.holder.time_namespace != process.identity().time_namespace:
        seen = Seen(seen.held)  # its clock says nothing to us, and one look is not enough to tell
    verdict = judge(seen, record.heartbeat_timeout)
    orphaned = seen.held and is_orphaned(record)
    if verdict == Liveness.SILENT and orphaned:
        verdict = Liveness.ALIVE
    running = "running" if folder == "runners" else "fenced"
    return Sighting(
        _with_heartbeat(record, seen)._replace(token=name.token),
        name.token,
        verdict,
        running,
        _age(record),
        seen.silent,
        seen.publishing is not None,
        orphaned,
    )


def _age(record: RunnerInstance) -> float:
    return record.age(process.identity(), datetime.now(UTC), time.monotonic())


def _with_heartbeat(record: RunnerInstance, seen: Seen) -> RunnerInstance:
    if seen.silent is None:
        return record
    return record._replace(last_heartbeat=datetime.now(UTC) - timedelta(seconds=max(0.0, seen.silent)))


def _waiters(
    state: StateDir, view: View, records: dict[str, RunnerInstance], unreadable: list[str]
) -> list[tuple[Waiter, RunnerInstance]]:
    found = []
    for file_name in sorted(os.listdir(state.queue)):
        try:
            name = QueueName.parse(file_name)
        except ValueError:
            unreadable.append(f"queue/{file_name}")
            continue
        record = _read(state, "queue", file_name, unreadable)
        if record:
            waiter = name.waiter(admission.known(wish_of(record)))
            view.waiting[waiter.key] = waiter
            records.setdefault(name.runner_id, record)
            found.append((waiter, record))
    return found


def _judged(
    state: StateDir, view: View, records: Mapping[str, RunnerInstance], waiters: list[tuple[Waiter, RunnerInstance]]
) -> list[Waiting]:
    judged, ahead = [], ClaimIndex()
    for position, (waiter, record) in enumerate(waiters, 1):
        found = admission.obstacle(view, waiter, ahead) or Obstacle("turn", {})
        ahead.add(waiter.runner_id, waiter.wish.claims)
        held = lifeline.is_held(state.live / waiter.runner_id)
        holders = tuple(
            admission.holder_of(one, pair, view.standing.get(one), records.get(one))
            for one, pair in sorted(found.blockers.items())
        )
        verdict = Liveness.ALIVE if held else Liveness.DEAD
        judged.append(
            Waiting(
                record, position, waiter.adding, verdict, found.reason, holders, _age(record), found.live, found.limit
            )
        )  # fmt: skip
    return judged
