"""From the release (or the death) of a holder to the next waiter running, between processes."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.compare import interleaved, place, timed, told
from bench.rivals import Held, by_filelock, by_flock, by_ledger, forked
from necrocode.lease import Request
from necrocode.ledger.files import FileLedger

ROUNDS = 60
SETTLE = 0.05


def main() -> None:
    root = Path(tempfile.mkdtemp(dir=place(), prefix="necrocode-bench-"))
    try:
        FileLedger(root / "state")
        peers = {
            "necrocode": lambda: _hand(lambda: by_ledger(root), None),
            "flock(2), blocking": lambda: _hand(lambda: by_flock(root), None),
            "filelock, as it comes": lambda: _hand(lambda: by_filelock(root), None),
        }
        told("release to the waiter running", interleaved(peers, ROUNDS))
        killed = {
            "necrocode, holder killed": lambda: _hand(lambda: by_ledger(root), signal.SIGKILL),
            "flock(2), holder killed": lambda: _hand(lambda: by_flock(root), signal.SIGKILL),
        }
        told("kill -9 of the holder to the waiter running", interleaved(killed, ROUNDS))
        ledger = FileLedger(root / "state")
        alone = {"at once": partial(_let_go, ledger, 0.0), "after a sleep": partial(_let_go, ledger, SETTLE)}
        told("the release alone, nobody waits", interleaved(alone, ROUNDS))
    finally:
        shutil.rmtree(root)


def _hand(acquire: Callable[[], Held], kill: signal.Signals | None) -> float:
    """One process holds, another waits; seconds from the moment of letting go to the moment of having."""
    ready, say_ready = os.pipe()
    go, say_go = os.pipe()
    had, say_had = os.pipe()
    holder = forked(lambda: _hold(acquire, say_ready, go))
    os.read(ready, 1)
    waiter = forked(lambda: _wait(acquire, say_had))
    time.sleep(SETTLE)  # let it go to sleep; when it has is not ours to see
    let_go = time.monotonic()
    os.kill(holder, kill) if kill else os.write(say_go, b"!")
    at = float(os.read(had, 32))
    for pid in (holder, waiter):
        os.waitpid(pid, 0)
    for descriptor in (ready, say_ready, go, say_go, had, say_had):
        os.close(descriptor)
    return at - let_go


def _let_go(ledger: FileLedger, pause: float) -> float:
    """One and the same release: what a processor that has slept has forgotten is most of a hand-over."""
    lease = ledger.register(Request("alone"))
    time.sleep(pause)
    return timed(lambda: ledger.release(lease))


def _hold(acquire: Callable[[], Held], say_ready: int, go: int) -> None:
    let_go = acquire()
    os.write(say_ready, b"!")
    os.read(go, 1)
    let_go()


def _wait(acquire: Callable[[], Held], say_had: int) -> None:
    let_go = acquire()
    os.write(say_had, f"{time.monotonic():.9f}".encode())
    let_go()
