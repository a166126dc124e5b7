"""The three clocks. Called as `clock.monotonic()`, so that a test can put another in its place.

Durations and deadlines use `monotonic`; `wall` is for people and for records that outlive a boot.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import UTC, datetime

_NAP = 1.0


def monotonic() -> float:
    """Seconds on the boot's clock: one clock for all processes of this host, never set, stands still in suspend."""
    return time.monotonic()


def wall() -> float:
    """Seconds since 1970, as this host believes; may jump."""
    return time.time()


def until(reached: Callable[[float], bool], timeout: float | None = None) -> bool:
    """Call `reached(seconds)`, which sleeps for at most so long, until it is True or `timeout` seconds are over.

    For callers whose sleep a signal shall end: when one comes in the very moment in which Python falls asleep, or to
    another thread, nobody is woken, and its handler only runs once this sleep is over."""
    deadline = math.inf if timeout is None else monotonic() + timeout
    while not reached(max(0.0, min(_NAP, deadline - monotonic()))):
        if monotonic() >= deadline:
            return False
    return True


def utc(seconds: float) -> datetime:
    """A moment given in seconds since 1970, as an aware datetime."""
    return datetime.fromtimestamp(seconds, UTC)
