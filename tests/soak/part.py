"""What a part of the soak is."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.soak.history import History


class Soak(NamedTuple):
    """What a part is given."""

    place: Path
    """An empty folder of its own, on a file system in memory where there is one."""
    history: History
    wanted: int
    """How many faults to inject, or a few more."""
    seed: int

    def chance(self) -> random.Random:
        return random.Random(self.seed)


def _nothing() -> str:
    return ""


class Part(NamedTuple):
    goal: str
    """What is promised."""
    counts: str
    """What the figure counts."""
    full: int
    """Faults of a full run."""
    play: Callable[[Soak], None]
    lacking: Callable[[], str] = _nothing
    """What it needs and this machine has not ("root", "xfs_io"); "" when it can be played."""
