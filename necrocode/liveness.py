"""Alive, silent or dead: judged from what was seen of a holder, never from a guess.

Dead needs proof: the kernel says that nobody holds the lifeline any more, or the machine has rebooted since.
Silent is a suspicion: no renewal for longer than the lease allows. A silent holder keeps what it stands on.
"""

from __future__ import annotations

from typing import NamedTuple

PUBLISHING_BOUND = 60.0
"""Seconds that a publishing window may defer the fencing of a silent lease."""


class Liveness:
    """The three answers, as they are shown and stored."""

    ALIVE = "alive"
    SILENT = "silent"
    DEAD = "dead"


class Seen(NamedTuple):
    """One look at a holder: `held` is whether the lifeline is locked, `silent` the seconds without renewal (None when
    that cannot be known yet), `publishing` the seconds since a publishing window opened (None outside one)."""

    held: bool
    silent: float | None = None
    publishing: float | None = None


def judge(seen: Seen, timeout: float) -> str:
    """What the holder is, given the seconds its lease may go without renewal."""
    if not seen.held:
        return Liveness.DEAD
    if seen.silent is not None and seen.silent > timeout:
        return Liveness.SILENT
    return Liveness.ALIVE


def may_publish(seen: Seen) -> bool:
    """Whether it is inside a publishing window that is within its bound."""
    return seen.publishing is not None and seen.publishing <= PUBLISHING_BOUND


def may_fence(seen: Seen, timeout: float) -> bool:
    """Whether the lease may be revoked now: silent, and not inside a publishing window that is within its bound."""
    return judge(seen, timeout) == Liveness.SILENT and not may_publish(seen)


class Observer:
    """Staleness by the observer's own clock, for holders whose clock cannot be compared with ours.

    A stamp that has not changed since it was first seen is as old as the time since then."""

    def __init__(self) -> None:
        self._first_seen: dict[str, tuple[float, float]] = {}

    def silent(self, runner_id: str, stamp: float, now: float) -> float:
        known, since = self._first_seen.get(runner_id, (None, now))
        if known != stamp:
            since = now
            self._first_seen[runner_id] = (stamp, now)
        return now - since
