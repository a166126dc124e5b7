"""How many leases there were at once, by the events of their beginnings and ends.

A lease is known by its token and ends once, whoever notices. One whose end alone is among the events is counted
from the first event on, unless its token says that it began later.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple

from necrocode.event import Event

REBOOT = 60.0
"""Seconds; when the boot's clock goes back further than events are ever written late, it was started anew."""


class Spread(NamedTuple):
    """Some durations: how many, and in seconds their sum, the middle one, the one that 95 of 100 do not pass, and
    the longest."""

    samples: int = 0
    total: float = 0.0
    p50: float = 0.0
    p95: float = 0.0
    max: float = 0.0

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        ordered = sorted(values)
        if not ordered:
            return cls()
        p50, p95 = (ordered[(len(ordered) * share - 1) // 100] for share in (50, 95))
        return cls(len(ordered), sum(ordered), p50, p95, ordered[-1])


class Concurrency(NamedTuple):
    """How many leases with a slot there were at once among these events: the most, the mean over the time from the
    first to the last change, and the changes as (seconds since the first event, how many from then on).

    `live` is the most that the ledger itself counted, over all runs on the machine."""

    max: int = 0
    mean: float = 0.0
    timeline: tuple[tuple[float, int], ...] = ()
    live: int = 0


class Clock:
    """Seconds since the first event, on the clock of the boot, carried on over reboots by the wall's."""

    def __init__(self) -> None:
        self._shift: float | None = None
        self._last = (0.0, 0.0)

    def read(self, event: Event, leases: Leases) -> float:
        latest, at = self._last
        if self._shift is None:
            self._shift = -event.mono
        elif event.mono + self._shift < latest - REBOOT and event.at > at:
            leases.end_all(latest)  # none of them lived through it
            self._shift = latest + (event.at - at) - event.mono
        now = event.mono + self._shift
        if now >= latest:
            self._last = now, event.at
        return now


class Leases:
    """When leases began and ended."""

    def __init__(self) -> None:
        self._open: dict[object, float] = {}
        self._ended: set[object] = set()
        self._changes: list[tuple[float, int]] = []
        self._earlier = self._live = 0
        self._first_token: int | None = None
        self._freed: list[float] = []
        self._served: list[tuple[float, str]] = []

    def add(self, event: Event, now: float) -> None:
        if event.kind not in ("lease.granted", "lease.released", "lease.reaped", "lease.fenced"):
            return
        token, live = event.facts.get("token"), event.facts.get("live")
        self._live = max(self._live, live if isinstance(live, int) else 0)
        lease = token if isinstance(token, int) else event.runner_id
        if event.kind == "lease.granted":
            self._begin(event, lease, now)
        else:
            self._end(event, lease, now)

    def _begin(self, event: Event, lease: object, now: float) -> None:
        if lease in self._open or (isinstance(lease, int) and lease in self._ended):
            return
        if isinstance(lease, int) and self._first_token is None:
            self._first_token = lease
        if event.facts.get("waited"):
            self._served.append((now, event.runner_id))
        if event.facts.get("slot", True):
            self._open[lease] = now
            self._changes.append((now, +1))

    def _end(self, event: Event, lease: object, now: float) -> None:
        if lease in self._ended:
            return
        self._freed.append(now)
        known = self._open.pop(lease, None) is not None
        if isinstance(lease, int):
            self._ended.add(lease)
            earlier = self._first_token is None or lease < self._first_token
            if not known and earlier and event.facts.get("slot", True):
                self._earlier += 1  # it began before these events do
                known = True
        if known:
            self._changes.append((now, -1))

    def end_all(self, now: float) -> None:
        self._changes += [(now, -1) for _ in self._open]
        self._ended.update(lease for lease in self._open if isinstance(lease, int))
        self._open.clear()

    def concurrency(self) -> Concurrency:
        count, area = self._earlier, 0.0
        most, before = count, 0.0
        timeline: list[tuple[float, int]] = [(0.0, count)] if count else []
        for now, step in sorted(self._changes):
            begin = before if timeline else now
            area, before, count = area + count * (now - begin), now, count + step
            most = max(most, count)
            if timeline and timeline[-1][0] == now:
                timeline.pop()
            timeline.append((now, count))
        length = before - timeline[0][0] if timeline else 0.0
        return Concurrency(most, area / length if length > 0 else float(most), tuple(timeline), self._live)

    def hand_over(self, prefix: str = "") -> Spread:
        """Each grant to a waiter with the latest end before it that no other such grant is put down to; of waiters
        whose id begins so, though anybody's end may be what they waited for."""
        free, seconds = sorted(self._freed), []
        for now, runner_id in sorted(self._served):
            at = bisect_right(free, now) - 1
            if at >= 0:
                took = now - free.pop(at)
                if runner_id.startswith(prefix):
                    seconds.append(took)
        return Spread.of(seconds)
