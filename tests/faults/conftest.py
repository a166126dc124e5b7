"""What `python -m tests.faults` makes its table of: each test says what it injected and what of that was survived."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator

import pytest
from proofs import Proof


@pytest.fixture
def proof() -> Iterator[Proof]:
    """`proof(goal, injected, survived)`: for the table, where somebody wants one; several calls add up."""
    began, place = time.monotonic(), os.environ.get("NECROCODE_PROOF")

    def told(goal: str, injected: int, survived: int | None = None) -> None:
        nonlocal began
        now = time.monotonic()
        line = {"goal": goal, "injected": injected, "survived": injected if survived is None else survived,
                "seconds": now - began}  # fmt: skip
        began = now
        if place:
            with open(place, "a") as file:
                file.write(json.dumps(line) + "\n")

    yield told
