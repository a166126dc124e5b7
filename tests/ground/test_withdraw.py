"""A registration that waits in one thread can be taken back by another."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from necrocode.claim import Claim
from necrocode.lease import Request
from necrocode.ledger.files import FileLedger
from necrocode.ledger.memory import MemoryLedger
from necrocode.testing import wait_for


class Enough(Exception):
    pass


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_a_waiter_is_withdrawn(kind: str, state_root: Path) -> None:
    ledger = MemoryLedger() if kind == "memory" else FileLedger(state_root)
    claims = (Claim.parse("port:1"),)
    holder = ledger.register(Request("holder", claims))
    over, ended = threading.Event(), []

    def told(refused: Exception) -> None:
        if over.is_set():
            raise Enough

    def wait() -> None:
        try:
            ledger.register(Request("waiter", claims), wait=True, on_wait=told)
        except Enough:
            ended.append("withdrawn")

    thread = threading.Thread(target=wait)
    thread.start()
    wait_for(lambda: ledger.view.waiting)
    assert not ledger.withdraw("nobody")
    over.set()
    assert ledger.withdraw("waiter")
    thread.join(10)
    assert ended == ["withdrawn"] and not ledger.withdraw("waiter")
    ledger.release(holder)
    ledger.release(ledger.register(Request("waiter", claims)))
