"""Errors and short writes at each system call that can answer with them, once and lasting.

Each is told as an error of necrocode.errors that names a place, the invariants hold on the files alone, and when the
trouble is over the same object and everybody else go on. What a kill and an error leave of every other file, too."""

from __future__ import annotations

from pathlib import Path

import enumeration
import pytest
import small_files
import trouble
from actors import run_clean
from proofs import THOROUGH, Proof


@pytest.mark.parametrize("name", enumeration.OPERATIONS)
def test_no_call_of_the_ledger_may_fail_it(name: str, state_root: Path, proof: Proof) -> None:
    faults = trouble.FAULTS if THOROUGH else trouble.chosen(name)
    report = run_clean(trouble.everywhere, name, str(state_root), faults)
    assert not report.wrong, "\n".join(report.wrong)
    assert report.cut > 20 and report.past == len(faults)
    proof("Q2", report.cut)


@pytest.mark.parametrize("name", small_files.FILES)
def test_no_call_may_damage_a_file(name: str, state_root: Path, proof: Proof) -> None:
    for goal, play in (("Q1", small_files.kill), ("Q2", small_files.trouble)):
        report = run_clean(play, name, str(state_root))
        assert not report.wrong, "\n".join(report.wrong)
        assert report.cases > 3
        proof(goal, report.cases)
