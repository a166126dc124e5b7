"""What kills, errors and short writes at each system call leave of every file that is not the ledger's."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import small_files
from actors import run_clean
from proofs import THOROUGH, Proof, some


@pytest.mark.parametrize("name", some(small_files.FILES))
def test_no_call_may_damage_a_file(name: str, state_root: Path, proof: Proof) -> None:
    errors = partial(small_files.trouble, every=1 if THOROUGH else 2)
    for goal, play in (("Q1", small_files.kill), ("Q2", errors)):
        report = run_clean(play, name, str(state_root))
        assert not report.wrong, "\n".join(report.wrong)
        assert report.cases > 3
        proof(goal, report.cases)
