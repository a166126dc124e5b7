"""The six mistakes of the ledger's prototype, each found by a test then and kept away by one here."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from actors import Puppet, run_clean

from necrocode.errors import Refused
from necrocode.lease import Request
from necrocode.ledger import book, records, waiting, watchman
from necrocode.ledger import files as ledger_files
from necrocode.ledger.files import FileLedger
from necrocode.testing import check, wait_for

MakePuppet = Callable[..., Puppet]
NEVER = 300.0


def in_line(state_root: Path, count: int) -> None:
    wait_for(lambda: len(os.listdir(state_root / "queue")) == count)


def test_1_a_dead_first_in_line_does_not_leave_the_holder_unwatched(state_root: Path, puppet: MakePuppet) -> None:
    """Who watches is not the first in line, but whoever has no live waiter ahead."""
    holder, dead, alive = (puppet(TICK=str(NEVER)) for _ in range(3))
    holder.do("register", Request("holder", limit=1))
    dead.begin("register", Request("dead", limit=1), wait=True)
    in_line(state_root, 1)
    alive.begin("register", Request("alive", limit=1), wait=True)
    in_line(state_root, 2)
    dead.kill()
    holder.kill()
    assert alive.result().runner_id == "alive"


@pytest.mark.parametrize("moment", ["_schedule", "_ring", "_close"])
def test_2_a_releaser_that_dies_after_its_commit_leaves_nobody_waiting(state_root: Path, moment: str) -> None:
    """Nothing dead is to be seen then: the record is gone. And nobody else comes by who could repair."""
    assert run_clean(_die_releasing, str(state_root), moment) == "served"


def _die_releasing(root: str, moment: str) -> str:
    waiting._TICK = watchman._ROUND = NEVER
    ours, theirs = os.pipe()
    releaser = os.fork()
    if releaser == 0:
        ledger = FileLedger(root)
        lease = ledger.register(Request("holder", limit=1))
        os.write(theirs, b"!")
        while not ledger.has_waiters():
            time.sleep(0.001)
        time.sleep(0.02)
        setattr(ledger, moment, lambda *args: _die(root))
        ledger.release(lease)
        os._exit(1)
    os.read(ours, 1)
    waiter = os.fork()
    if waiter == 0:
        FileLedger(root).register(Request("w", limit=1), wait=True, timeout=20)
        os._exit(0)
    assert os.waitpid(releaser, 0)[1] == signal.SIGKILL
    return "served" if os.waitpid(waiter, 0)[1] == 0 else "forgotten"


def _die(root: str) -> None:
    assert "holder" not in "".join(os.listdir(f"{root}/runners")), "too early"
    os.kill(os.getpid(), signal.SIGKILL)


def watches() -> list[str]:
    names = []
    for number in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:
            continue
    return [name for name in names if "inotify" in name]


def test_3_a_watch_is_kept_for_the_next_wait_not_closed(state_root: Path) -> None:
    """Closing one takes the kernel up to 14 ms, on the way to the work."""
    ledger = FileLedger(state_root)
    ledger.register(Request("holder", limit=1))
    before = len(watches())
    for _ in range(5):
        with pytest.raises(Refused):
            ledger.register(Request("w", limit=1), wait=True, timeout=0.01)
        assert len(watches()) == before + 1


def test_4_a_dying_process_lets_go_of_its_lifeline_first(state_root: Path) -> None:
    """What has a higher number is let go of first: lifelines and bells lie above everything else."""
    assert run_clean(_numbers, str(state_root)) == "above"


def _numbers(root: str) -> str:
    ledger = FileLedger(root)
    lease = ledger.register(Request("holder", limit=1))
    seen: dict[str, int] = {}

    def look(self: Any, tick: float, deadline: float | None) -> None:
        for number in map(int, os.listdir("/proc/self/fd")):
            try:
                seen[os.readlink(f"/proc/self/fd/{number}")] = number
            except FileNotFoundError:
                continue
        raise KeyboardInterrupt

    waiting.Wait._sleep = look  # type: ignore[method-assign]
    try:
        ledger.register(Request("w", limit=1), wait=True)
    except KeyboardInterrupt:
        pass
    lifelines = [number for name, number in seen.items() if "/live/" in name or "/bells/" in name]
    others = [number for name, number in seen.items() if "/live/" not in name and "/bells/" not in name]
    assert len(lifelines) == 3 and lease.lifeline in lifelines
    assert any("inotify" in name for name in seen)
    return "above" if min(lifelines) > max(others) else f"{lifelines} {others}"


def test_5_death_is_not_atomic(state_root: Path) -> None:
    """The bell of a dying waiter may go before its lifeline: whoever it woke looks again soon."""
    assert run_clean(_die_slowly, str(state_root)) < 15


def _die_slowly(root: str) -> float:
    """The first in line lets go of its bell, and of its life only 20 ms later; the holder is dead already."""
    waiting._TICK = watchman._ROUND = NEVER
    FileLedger(root)
    holder = _forked(lambda: FileLedger(root).register(Request("holder", limit=1)) and time.sleep(60))
    wait_for(lambda: os.listdir(f"{root}/runners"))

    def die_slowly() -> None:
        def fall(self: Any, tick: float, deadline: float | None) -> None:
            while len(os.listdir(f"{root}/queue")) < 2 or os.path.exists(f"/proc/{holder}"):
                time.sleep(0.001)
            time.sleep(0.05)
            os.close(self._bell)
            time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGKILL)

        waiting.Wait._sleep = fall  # type: ignore[method-assign]
        FileLedger(root).register(Request("dying", limit=1), wait=True)

    dying = _forked(die_slowly)
    wait_for(lambda: len(os.listdir(f"{root}/queue")) == 1)
    waiter = _forked(lambda: FileLedger(root).register(Request("w", limit=1), wait=True, timeout=20))
    wait_for(lambda: len(os.listdir(f"{root}/queue")) == 2)
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    os.waitpid(dying, 0)
    began = time.monotonic()
    assert os.waitpid(waiter, 0)[1] == 0
    return time.monotonic() - began


def _forked(play: Callable[[], Any]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            play()
            code = 0
        finally:
            os._exit(code)
    return child


def test_6_a_hand_over_does_not_read_the_whole_queue(state_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = FileLedger(state_root)
    holder = ledger.register(Request("holder", limit=1))
    assert run_clean(_queue_up, str(state_root), 40) == 40
    read: list[str] = []
    real = records.read_record
    for module in (records, book, ledger_files):
        monkeypatch.setattr(module, "read_record", lambda path: (read.append(str(path)), real(path))[1])
    fresh = FileLedger(state_root)
    fresh.release(holder)
    assert check(state_root)
    assert len([path for path in read if "/queue/" in path]) <= 2


def _queue_up(root: str, count: int) -> int:
    """Waiters that stay in line for as long as this test needs."""
    children = [
        _forked(lambda at=at: FileLedger(root).register(Request(f"w{at}", limit=1), wait=True) and time.sleep(60))
        for at in range(count)
    ]
    wait_for(lambda: len(os.listdir(f"{root}/queue")) == count, within=30)
    if os.fork() == 0:  # they end with the test, whatever becomes of it
        os.setsid()
        deadline = time.monotonic() + 30
        while os.path.exists(root) and time.monotonic() < deadline:
            time.sleep(0.05)
        for child in children:
            os.kill(child, signal.SIGKILL)
        os._exit(0)
    return count
