"""kill -9 of workers at any moment: no task is lost, none is published twice, no slot stays taken."""

from __future__ import annotations

from pathlib import Path

import published
from actors import Failed, run_clean
from proofs import SEED, THOROUGH, Proof


def test_eight_workers_fifty_tasks_and_hundreds_of_kills(state_root: Path, proof: Proof) -> None:
    kills = 4000 if THOROUGH else 400
    counts = run_clean(published.play, str(state_root), 50, kills, SEED)
    assert counts["lost"] == counts["twice"] == counts["left"] == 0, counts
    assert counts["killed"] > 20 and counts["published"] >= 50, counts
    proof("Q3", counts["killed"])


def test_the_storm_sees_a_ledger_that_lets_everybody_in(state_root: Path) -> None:
    try:
        counts = run_clean(published.play_broken, str(state_root))
    except Failed as seen:  # by the checker, while it went on
        assert "I1" in str(seen) or "I2" in str(seen), seen
    else:
        assert counts["twice"] > 0
