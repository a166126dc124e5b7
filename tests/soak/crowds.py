"""Thousands of processes come to one gate at the same moment, each wants one of a few slots, and all are served.

How many are inside at once is told by their own lines alone, which the checker counts. How long each waited is from
before it asked until it had its slot: all ask when one pipe is closed, so in a fair line the longest wait is about
twice the median."""

from __future__ import annotations

import gc
import os
import signal
import statistics
import struct
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

from necrocode.errors import ResourceLimitError
from necrocode.lease import Request
from necrocode.ledger.files import FileLedger
from necrocode.ledger.knock import Place
from necrocode.testing import check, forked
from tests.soak.history import History
from tests.soak.part import Part, Soak

CROWD = 4000
"""Four times as many take ten times as long: each reads the whole line once when it comes, and once when it is the
first of it."""
INSIDE = 0.03
"""Seconds with the slot: long enough that all slots are taken at once, and one too many would be seen."""
LIMIT = 8
FAIR = 3.0
"""The longest wait is at most so many times the median one."""
PATIENCE = 600.0
MEMORY = 5300 << 10
"""Bytes that each process of such a crowd needs of its own, half of them to know the line; a twentieth stays free."""
_WAIT = struct.Struct("dd")


def play(soak: Soak) -> None:
    _warmed(soak.place / "warm")
    left, number = soak.wanted, 0
    most = max(10, _free() * 19 // 20 // MEMORY)
    while left > 0:
        many = min(CROWD, left, most)
        _crowd(soak.place / f"crowd{number}", soak.history, many)
        left, number = left - many, number + 1


def _warmed(place: Path) -> None:
    """All that a visitor loads is loaded once, so that thousands share its memory."""
    ledger = FileLedger(place)
    first = ledger.register(Request("first", limit=1))
    with suppress(ResourceLimitError):
        ledger.register(Request("second", limit=1), wait=True, timeout=0.2)
    ledger.release(first)
    line = Place(str(ledger.state.lock))
    line.reached(time.monotonic() + 1)
    line.leave()
    gc.collect()
    gc.freeze()


def _free() -> int:
    """Bytes of memory that are free, or can be made so."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _crowd(place: Path, history: History, many: int) -> None:
    place.mkdir()
    FileLedger(place / "state")
    history.limit(f"{place.name} slot", LIMIT)
    closed, gate = os.pipe()
    waits = os.open(place / "waits", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    visitors: dict[int, str] = {}
    try:
        for at in range(many):
            who = f"{place.name}-v{at}"
            history.acked(who)
            visit = partial(_visit, place, history, who, (closed, gate), waits)
            visitors[forked(visit, place / "trouble")] = who
        began = time.monotonic()
        os.close(gate)
        _buried(visitors, place, history)
        _told(place, history, many, time.monotonic() - began)
    finally:
        for visitor in visitors:
            with suppress(ProcessLookupError):
                os.kill(visitor, signal.SIGKILL)
            os.waitpid(visitor, 0)
        os.close(closed)
        os.close(waits)
    if left := [name for one in ("runners", "queue", "live", "bells") for name in os.listdir(place / "state" / one)]:
        history.broken(f"{place.name}: left behind: {left[:5]}")
    check(place / "state")


def _visit(place: Path, history: History, who: str, gate: tuple[int, int], waits: int) -> None:
    ledger, slot = FileLedger(place / "state", patience=PATIENCE), f"{place.name} slot"
    os.close(gate[1])
    os.read(gate[0], 1)  # until the last other end of it is closed
    came = time.monotonic()
    lease = ledger.register(Request(who, limit=LIMIT), wait=True, timeout=PATIENCE)
    served = time.monotonic()
    history.granted(slot, who)
    time.sleep(INSIDE)
    history.ended(slot, who)
    ledger.release(lease)
    history.found(who)
    os.write(waits, _WAIT.pack(came, served))


def _buried(visitors: dict[int, str], place: Path, history: History) -> None:
    deadline = time.monotonic() + PATIENCE
    while visitors and time.monotonic() < deadline:
        child, status = os.waitpid(-1, os.WNOHANG)
        if not child:
            time.sleep(0.005)
            continue
        who, code = visitors.pop(child), os.waitstatus_to_exitcode(status)
        if code:
            why = (place / "trouble").read_text() if (place / "trouble").exists() else ""
            history.broken(f"{who} ended with {code}: {why}")
    if visitors:
        history.broken(f"{place.name}: {len(visitors)} are not served within {PATIENCE:g} s")


def _told(place: Path, history: History, many: int, seconds: float) -> None:
    pairs = list(_WAIT.iter_unpack((place / "waits").read_bytes()))
    waits = sorted(served - came for came, served in pairs)
    came = sorted(came for came, _ in pairs)
    if not waits:
        return
    median, longest = statistics.median(waits), waits[-1]
    history.note(
        f"{many} processes in {seconds:.1f} s: came within {came[-1] - came[0]:.2f} s, waited {median:.2f} s in the "
        f"median, {longest:.2f} s at most ({longest / median:.2f} times)"
    )
    if longest > FAIR * median:
        history.broken(f"{place.name}: the longest wait, {longest:.2f} s, is {longest / median:.1f} times the median")
    history.injected("process", many)


PART = Part(
    f"thousands of processes at one gate at the same moment, at most {LIMIT} inside, all served, the longest wait at "
    f"most {FAIR:g} times the median",
    f"processes, {CROWD} at a time",
    5 * CROWD,
    play,
)
