"""The three clocks. Called as `clock.monotonic()`, so that a test can put another in its place.

Durations and deadlines use `monotonic`; `wall` is for people and for records that outlive a boot.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime


def monotonic() -> float:
    """Seconds on the boot's clock: one clock for all processes of this host, never set, stands still in suspend."""
    return time.monotonic()


def wall() -> float:
    """Seconds since 1970, as this host believes; may jump."""
    return time.time()


def utc(seconds: float) -> datetime:
    """A moment given in seconds since 1970, as an aware datetime."""
    return datetime.fromtimestamp(seconds, UTC)
