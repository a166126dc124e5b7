"""Tests against the clock on a machine that may stand still: what only a stall explains is played again, no more."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import TracebackType


class Scene:
    """One go at a scenario: `step` notes that the process moves, and gives the time; `turn` counts the goes from 0."""

    def __init__(self, turn: int, bearable: float, last: bool) -> None:
        self.turn, self.excused = turn, False
        self._bearable, self._last = bearable, last
        self._before = time.monotonic()
        self._stood = 0.0

    def step(self) -> float:
        now = time.monotonic()
        self._stood, self._before = max(self._stood, now - self._before), now
        return now

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        self.step()
        self.excused = isinstance(error, Exception) and self._stood > self._bearable and not self._last
        return self.excused


def unstalled(bearable: float, turns: int = 20) -> Iterator[Scene]:
    """Scenes, until one does not fail; one that fails is excused when more than `bearable` seconds lay between two
    of its steps, but for the last.

    When a process stood still, nobody can say which of its threads wakes first: the one that gives the sign of life,
    or the one that misses it. What fails without that has failed."""
    for turn in range(turns):
        scene = Scene(turn, bearable, turn == turns - 1)
        yield scene
        if not scene.excused:
            return


def longer(first: float) -> Iterator[float]:
    """Clocks for what may begin late: leave the loop when it had begun in time. The last is 16 times the first."""
    yield from (first, 4 * first, 16 * first)
