"""Claims as people write them, resolved against the directory and the repository they were written in."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from necrocode.claim import Claim, conflict
from necrocode.wanted import wanted


def meet(ours: tuple[Claim, ...], theirs: tuple[Claim, ...]) -> bool:
    return any(conflict(*pair) for pair in product(ours, theirs))


@pytest.mark.parametrize("name", ["file:src", "branch:fix", "workspace:tree", "gpu:0"])
@pytest.mark.parametrize("inside", [True, False])
def test_whatever_is_shared_is_shared_with_those_who_share_it(
    repository: Path, tmp_path: Path, name: str, inside: bool
) -> None:
    where = repository if inside else tmp_path
    alone, shared = wanted([name], where=where), wanted([f"shared:{name}"], where=where)
    assert meet(alone, alone) and meet(alone, shared) and not meet(shared, shared)
