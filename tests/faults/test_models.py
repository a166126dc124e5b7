"""The protocol's hard parts as models of a few processes, every order of their steps looked at by Spin.

Each model holds, and each of its mutants, in which one rule of the protocol is missing, does not: so the model is
about that rule."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from proofs import Proof, only_while_proving, some

MODELS = {
    "claim": ("NO_GATE", "PID_ONLY", "AGE_ONLY", "LIFELINE_LATE", "COUNTER_LATE"),
    "fence": ("NO_TOKEN", "NO_WINDOW", "CHECK_OUTSIDE", "FREE_STICKY", "NO_GATE"),
    "queue": ("NO_HANDOFF", "NO_PREDECESSOR", "NO_RING", "NO_WATCH", "HIDE_EARLY", "BARGING"),
    "workspace": ("NO_CLAIM", "STALE_SURVEY", "OWN_LIFELINE", "NO_SAVE", "RELEASE_FIRST"),
}
FOLDER = Path(__file__).parent / "models"
MISSING = [tool for tool in ("spin", "gcc") if not shutil.which(tool)]

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (apt install spin gcc)")


def verified(model: str, where: Path, *mutant: str) -> tuple[int, int]:
    """How many errors Spin finds in the model with these definitions, and how many states it has seen."""
    defined = [f"-D{one}" for one in mutant]
    _run(["spin", "-a", *defined, str(FOLDER / f"{model}.pml")], where)
    # A mutant falls over soon: compiling takes longest then.
    _run(["gcc", "-O0" if mutant else "-O1", "-w", "-DSAFETY", "-o", "pan", "pan.c"], where)
    said = _run(["./pan", "-m200000"], where)
    assert "search depth too small" not in said and "max search depth" not in said, said
    errors, states = re.search(r"errors: (\d+)", said), re.search(r"(\d+) states, stored", said)
    assert errors and states, said
    return int(errors[1]), int(states[1])


def _run(argv: list[str], where: Path) -> str:
    done = subprocess.run(argv, cwd=where, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, (argv, done.stdout, done.stderr)
    return done.stdout


@pytest.mark.parametrize("model", some(MODELS))
def test_the_model_holds(model: str, tmp_path: Path, proof: Proof) -> None:
    errors, states = verified(model, tmp_path)
    assert errors == 0
    assert states > 10_000
    proof("Q7", states)


@only_while_proving
@pytest.mark.parametrize(("model", "mutant"), [(model, one) for model, many in MODELS.items() for one in many])
def test_without_one_rule_it_does_not(model: str, mutant: str, tmp_path: Path, proof: Proof) -> None:
    assert f"ifdef {mutant}" in (text := (FOLDER / f"{model}.pml").read_text()) or f"ifndef {mutant}" in text
    errors, _ = verified(model, tmp_path, mutant)
    assert errors == 1
    proof("Q7 mutants", 1)
