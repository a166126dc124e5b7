"""Damaged files of every kind: nobody is told anything but an answer or one of our errors, nobody else is harmed."""

from __future__ import annotations

from pathlib import Path

import damage
import pytest
from actors import run_clean
from proofs import Proof, most

GROUPS = {**damage.FILE_CASES, "folders": damage.FOLDER_CASES, "odd names": damage.NAME_CASES}


@pytest.mark.parametrize("group", GROUPS)
def test_damage_is_told_and_kept_apart(group: str, state_root: Path, proof: Proof) -> None:
    cases = most(GROUPS[group])
    wrong = run_clean(damage.play, cases, str(state_root))
    assert not wrong, "\n\n".join(wrong)
    proof("Q8", len(cases))


def test_every_kind_of_file_is_damaged(state_root: Path) -> None:
    known = run_clean(_kinds, str(state_root))
    assert sorted(known) == sorted(kind for kinds in damage.KINDS.values() for kind in kinds)


def _kinds(root: str) -> list[str]:
    scene = damage.Scene(Path(root) / "state")
    try:
        return list(scene.files())
    finally:
        scene.end()
