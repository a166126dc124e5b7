"""Fifty processes in line for one slot: how long the last one waits, and what waiting costs the processor."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.compare import interleaved, place, told
from bench.rivals import Held, by_filelock, by_flock, by_ledger, forked
from necrocode.ledger.files import FileLedger

WAITERS, ROUNDS, HOLD, WATCHED = 50, 7, 0.002, 2.0
SETTLE = 1.0
"""Seconds for all of them to go to sleep, after they have said that they are about to ask."""


def main() -> None:
    root = Path(tempfile.mkdtemp(dir=place(), prefix="necrocode-bench-"))
    try:
        FileLedger(root / "state")
        kinds = {
            "necrocode": partial(by_ledger, root), "flock(2), blocking": partial(by_flock, root),
            "filelock, as it comes": partial(by_filelock, root),
        }  # fmt: skip
        worst = {"in line without a gap": lambda: (WAITERS - 1) * HOLD}
        worst |= {name: partial(_worst, acquire) for name, acquire in kinds.items()}
        told(f"worst wait of {WAITERS} in line, each holds {HOLD * 1e3:g} ms", interleaved(worst, ROUNDS), "ms")
        idle = {name: partial(_idle, acquire) for name, acquire in kinds.items()}
        told(f"processor time of {WAITERS} who only wait, for each second", interleaved(idle, 3), "ms")
    finally:
        shutil.rmtree(root)


def _worst(acquire: Callable[[], Held]) -> float:
    """Seconds from the release to the last waiter's having had it."""
    release, had, pids = _in_line(acquire)
    let_go = time.monotonic()
    release()
    return max(_moments(had, pids)) - let_go


def _idle(acquire: Callable[[], Held]) -> float:
    """Seconds of processor time that all waiters together take in a second of waiting."""
    release, had, pids = _in_line(acquire)
    before, began = sum(map(_used, pids)), time.monotonic()
    time.sleep(WATCHED)
    used, took = sum(map(_used, pids)) - before, time.monotonic() - began
    release()
    _moments(had, pids)
    return used / took


def _in_line(acquire: Callable[[], Held]) -> tuple[Held, int, list[int]]:
    """We hold it, and the waiters wait: how to let go, where they tell when they had it, and who they are."""
    had, say_had = os.pipe()
    held, say_held = os.pipe()
    go, say_go = os.pipe()
    holder = forked(lambda: _hold(acquire, say_held, go))
    os.read(held, 1)
    pids = [forked(lambda: _wait(acquire, say_held, say_had)) for _ in range(WAITERS)]
    for _ in pids:
        os.read(held, 1)
    while _running(pids):
        time.sleep(0.02)
    time.sleep(SETTLE)
    for descriptor in (say_had, held, say_held, go):
        os.close(descriptor)

    def release() -> None:
        os.write(say_go, b"!")
        os.close(say_go)
        os.waitpid(holder, 0)

    return release, had, pids


def _moments(had: int, pids: list[int]) -> list[float]:
    with os.fdopen(had) as told_moments:
        moments = [float(line) for line in told_moments.read().split()]
    for pid in pids:
        os.waitpid(pid, 0)
    assert len(moments) == WAITERS
    return moments


def _hold(acquire: Callable[[], Held], say_held: int, go: int) -> None:
    let_go = acquire()
    os.write(say_held, b"!")
    os.read(go, 1)
    let_go()


def _running(pids: list[int]) -> bool:
    """Whether most of them have something to do still: some of those who poll always have."""
    states = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in pids]
    return states.count("R") > WAITERS // 5


def _wait(acquire: Callable[[], Held], say_ready: int, say_had: int) -> None:
    os.write(say_ready, b"!")
    let_go = acquire()
    os.write(say_had, f"{time.monotonic():.6f}\n".encode())
    time.sleep(HOLD)
    let_go()


def _used(pid: int) -> float:
    """Seconds of processor time so far; the first figure of schedstat is in nanoseconds."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
