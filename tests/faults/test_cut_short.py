"""Each changing operation of the ledger, cut short at each of its system calls: by kill -9, and by an error.

Right afterwards the invariants hold on the files alone, waiters are served without any tick, and then everything
is free again, nothing is left over and all slots are back. After an error the same ledger works on."""

from __future__ import annotations

from pathlib import Path

import enumeration
import pytest
from actors import run_clean
from proofs import PROVING, THOROUGH, Proof
from ring_mutants import RING_MUTANTS


@pytest.mark.parametrize("name", enumeration.OPERATIONS)
def test_killed_before_and_after_each_call(name: str, state_root: Path, proof: Proof) -> None:
    report = run_clean(enumeration.kill_everywhere, name, str(state_root))
    assert not report.wrong, "\n".join(report.wrong)
    assert report.cut > 8 and report.past > 0
    proof("Q1", report.cut)


@pytest.mark.parametrize("name", enumeration.OPERATIONS)
def test_refused_at_each_call(name: str, state_root: Path, proof: Proof) -> None:
    """By errors and short writes, once and lasting. Each is told as an error of ours that names a place."""
    some = enumeration.some_of(name)  # the first of them at every call
    faults = enumeration.TROUBLE if THOROUGH else some if PROVING else some[:1]
    report = run_clean(enumeration.fail_everywhere, name, str(state_root), faults)
    assert not report.wrong, "\n".join(report.wrong)
    assert report.cut > 2 * len(faults) and report.past == len(faults)
    proof("Q2", report.cut)


def test_a_ring_that_believes_the_dead_is_seen(state_root: Path) -> None:
    """Whoever dies between a move and the end of its pass has told nobody of the move."""
    wrong = run_clean(_believing, "release with waiters", str(state_root))
    assert wrong, "who believed a dead one's ring made no mistake"


def _believing(name: str, base: str) -> list[str]:
    RING_MUTANTS["crashes unnoticed"]()
    enumeration.SLOW = 1.0  # nobody is served any sooner
    return enumeration.kill_everywhere(name, base).wrong
