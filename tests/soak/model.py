"""The ledger on real files against a specification in plain Python: `tests/faults/test_ledger_model.py`, for longer.

In portions, each with a seed of its own: a failing one is told with its steps and can be played again by itself."""

from __future__ import annotations

import gc
import sys
import traceback
from pathlib import Path

from tests.soak.part import Part, Soak

STEPS = 30
PORTION = 250
"""Examples with one seed."""


def play(soak: Soak) -> None:
    from hypothesis import HealthCheck, Phase, seed, settings
    from hypothesis.stateful import run_state_machine_as_test

    machine = _machine()
    terms = settings(
        max_examples=PORTION,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    for at, begin in enumerate(range(0, soak.wanted, PORTION)):
        number, many = soak.seed * 1_000_000 + at, min(PORTION, soak.wanted - begin)
        try:
            run_state_machine_as_test(seed(number)(machine), settings=settings(terms, max_examples=many))
        except Exception:  # noqa: BLE001 - whatever a step raises is what was looked for
            soak.history.broken(f"seed {number}: {traceback.format_exc()}")
        soak.history.injected("example", many)
        gc.collect()


def _machine() -> type:
    tests = Path(__file__).resolve().parents[1]
    sys.path[:0] = [str(tests), str(tests / "faults")]
    from test_ledger_model import LedgerMachine

    return LedgerMachine


PART = Part(
    f"random operations on real files ({STEPS} steps each) against a model in plain Python: they agree",
    "examples",
    20_000,
    play,
)
