"""How long until a slot is free, from how long leases have lasted so far; infinite when nothing is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from heapq import heappop, heapreplace


def expected_wait(turn: int, ages: Sequence[float], observed: Sequence[float], *, surplus: int = 0) -> float:
    """Seconds until the `turn`-th slot (from 1) becomes free, when slots held for `ages` seconds last as long as
    the `observed` ones did. So many ends as there are slots in `surplus`, over a limit that was lowered, free none.

    A lease that is older than everything observed tells nothing about its end: it counts as endless."""
    if not observed or len(ages) <= surplus:
        return math.inf
    durations = sorted(observed)
    ends = sorted(_remaining(age, durations) for age in ages)[surplus:]  # sorted, it is a heap too
    for _ in range(turn - 1):
        heapreplace(ends, ends[0] + _middle(durations))
    return heappop(ends)


def _remaining(age: float, durations: Sequence[float]) -> float:
    longer = [duration for duration in durations if duration > age]
    return _middle(longer) - age if longer else math.inf


def _middle(ordered: Sequence[float]) -> float:
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
