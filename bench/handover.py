"""From the release (or the death) of a holder to the next waiter running, between processes."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.compare import interleaved, place, told
from necrocode.lease import Request
from necrocode.ledger.files import FileLedger

ROUNDS = 60
SETTLE = 0.05


def main() -> None:
    root = Path(tempfile.mkdtemp(dir=place(), prefix="necrocode-bench-"))
    try:
        FileLedger(root / "state")
        peers = {
            "necrocode": lambda: _hand(lambda: _ledger(root), None),
            "flock(2), blocking": lambda: _hand(lambda: _flock(root), None),
            "filelock, as it comes": lambda: _hand(lambda: _filelock(root), None),
        }
        told("release to the waiter running", interleaved(peers, ROUNDS))
        killed = {
            "necrocode, holder killed": lambda: _hand(lambda: _ledger(root), signal.SIGKILL),
            "flock(2), holder killed": lambda: _hand(lambda: _flock(root), signal.SIGKILL),
        }
        told("kill -9 of the holder to the waiter running", interleaved(killed, ROUNDS))
    finally:
        shutil.rmtree(root)


Held = Callable[[], None]


def _ledger(root: Path) -> Held:
    ledger = FileLedger(root / "state")
    lease = ledger.register(Request(f"p{os.getpid()}", limit=1), wait=True)
    return lambda: ledger.release(lease)


def _flock(root: Path) -> Held:
    descriptor = os.open(root / "flock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return lambda: os.close(descriptor)


def _filelock(root: Path) -> Held:
    from filelock import FileLock

    lock = FileLock(root / "filelock")
    lock.acquire()
    return lock.release


def _hand(acquire: Callable[[], Held], kill: signal.Signals | None) -> float:
    """One process holds, another waits; seconds from the moment of letting go to the moment of having."""
    ready, say_ready = os.pipe()
    go, say_go = os.pipe()
    had, say_had = os.pipe()
    holder = _forked(lambda: _hold(acquire, say_ready, go))
    os.read(ready, 1)
    waiter = _forked(lambda: _wait(acquire, say_had))
    time.sleep(SETTLE)  # let it go to sleep; when it has is not ours to see
    let_go = time.monotonic()
    os.kill(holder, kill) if kill else os.write(say_go, b"!")
    at = float(os.read(had, 32))
    for pid in (holder, waiter):
        os.waitpid(pid, 0)
    for descriptor in (ready, say_ready, go, say_go, had, say_had):
        os.close(descriptor)
    return at - let_go


def _hold(acquire: Callable[[], Held], say_ready: int, go: int) -> None:
    let_go = acquire()
    os.write(say_ready, b"!")
    os.read(go, 1)
    let_go()


def _wait(acquire: Callable[[], Held], say_had: int) -> None:
    let_go = acquire()
    os.write(say_had, f"{time.monotonic():.9f}".encode())
    let_go()


def _forked(body: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        body()
    finally:
        os._exit(0)
