"""What the fault tests share: how much they do, and how they tell of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import pytest

THOROUGH = bool(os.environ.get("NECROCODE_THOROUGH"))
"""Everything, instead of what fits the time of a pull request."""
PROVING = THOROUGH or bool(os.environ.get("NECROCODE_PROOF"))
"""What the gate does in each of its runs (`make prove`); the suite by itself takes a part of it, for a shorter wait."""

Proof = Callable[..., None]
"""`proof(goal, injected, survived)`: the fixture."""
SEED = int(os.environ.get("NECROCODE_SEED", "1"))

only_while_proving = pytest.mark.skipif(not PROVING, reason="make prove does it")
only_in_the_gate = pytest.mark.skipif(not PROVING, reason="the gate does it")
only_when_thorough = pytest.mark.skipif(not THOROUGH, reason="takes long: NECROCODE_THOROUGH=1")
_T = TypeVar("_T")


def part(cases: Sequence[_T], step: int = 3) -> Sequence[_T]:
    """All of them while proving, else every third or so."""
    return cases if PROVING else cases[SEED % step :: step] or cases[:1]


def most(cases: Sequence[_T]) -> Sequence[_T]:
    """All of them when there is time, three of four while proving, else every third."""
    if THOROUGH or not PROVING:
        return part(cases)
    return [case for at, case in enumerate(cases) if (at + SEED) % 4]


def some(names: Iterable[str], step: int = 3) -> list[Any]:
    """Parameters of a test: all while proving, else the first, the fourth and so on; the others say why not."""
    return [pytest.param(name, marks=only_while_proving if at % step else ()) for at, name in enumerate(names)]
