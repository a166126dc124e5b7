"""The line before the gate: whoever knocked for too long stands in the kernel's line, and may give up there."""

from __future__ import annotations

import ctypes
import fcntl
import gc
import os
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from necrocode.errors import GateTimeout, StateUnusable
from necrocode.lease import Request
from necrocode.ledger import knock
from necrocode.ledger.files import FileLedger
from necrocode.testing import wait_for
from tests.actors import Puppet, run_clean

MakePuppet = Callable[..., Puppet]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="who waits in the kernel is told by /proc/locks")


@contextmanager
def kept_shut(root: Path, how: int = fcntl.LOCK_EX) -> Iterator[int]:
    """The gate, held by this process as if it were inside."""
    gate = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(gate, how)
    try:
        yield gate
    finally:
        os.close(gate)


def in_line(root: Path) -> list[int]:
    """The processes that wait for the gate inside the kernel, in its order."""
    number = f":{os.stat(root / 'lock').st_ino}"
    lines = (line.split() for line in Path("/proc/locks").read_text().splitlines())
    return [int(words[5]) for words in lines if words[1] == "->" and words[6].endswith(number)]


def waiting(puppet: Puppet, root: Path) -> Puppet:
    """This one, whose next request stands in the line now."""
    puppet.begin("register", Request(f"r{puppet.pid}"))
    wait_for(lambda: puppet.pid in in_line(root))
    return puppet


@pytest.fixture(autouse=True)
def knock_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knock, "_KNOCKING", 0.1)


def test_they_come_in_as_they_came(state_root: Path, puppet: MakePuppet) -> None:
    FileLedger(state_root)
    with kept_shut(state_root):
        line = [waiting(puppet(KNOCKING="0.1"), state_root) for _ in range(5)]
        assert in_line(state_root) == [one.pid for one in line]
    tokens = [one.result().token for one in line]
    assert tokens == sorted(tokens)
    assert in_line(state_root) == []


def test_one_that_is_killed_in_line_holds_nobody_up(state_root: Path, puppet: MakePuppet) -> None:
    FileLedger(state_root)
    with kept_shut(state_root):
        first, second = (waiting(puppet(KNOCKING="0.1"), state_root) for _ in range(2))
        first.kill()
        wait_for(lambda: in_line(state_root) == [second.pid])
    assert second.result().token


def test_one_that_is_stopped_in_line_holds_nobody_up(state_root: Path, puppet: MakePuppet) -> None:
    FileLedger(state_root)
    with kept_shut(state_root):
        first, second = (waiting(puppet(KNOCKING="0.1"), state_root) for _ in range(2))
        os.kill(first.pid, signal.SIGSTOP)
        wait_for(lambda: in_line(state_root) == [second.pid])
    assert second.result().token
    os.kill(first.pid, signal.SIGCONT)
    assert first.result().token > 1


def test_whoever_gives_up_lets_go_of_the_hope_too(state_root: Path) -> None:
    ledger = FileLedger(state_root, patience=3)
    with kept_shut(state_root) as gate:
        os.pwrite(gate, f"held 7 pid={os.getpid()} op=test".encode(), 64)
        with pytest.raises(GateTimeout, match=f"pid={os.getpid()} op=test"):
            ledger.register(Request("a"))
        assert in_line(state_root) == [os.getpid()]  # nothing ends that sleep but the lock itself, ...
    wait_for(lambda: in_line(state_root) == [])
    FileLedger(state_root, patience=5).register(Request("b"))  # ... which is given back at once
    assert ledger.register(Request("a")).token


def test_whoever_gives_up_keeps_nobody_out_while_it_is_busy(state_root: Path) -> None:
    """The lock is given to a call of a process whose threads all wait for the one that has the interpreter."""
    FileLedger(state_root)
    assert run_clean(_busy_after_giving_up, str(state_root)) == b"in"


def _busy_after_giving_up(root: str) -> bytes:
    told, tell = os.pipe()
    gone, go = os.pipe()
    ready, say = os.pipe()
    other = os.fork()
    if not other:
        with kept_shut(Path(root)):
            os.write(say, b"!")
            os.read(gone, 1)
        try:
            with FileLedger(root, patience=3)._door.held("next"):
                os.write(tell, b"in")
        except GateTimeout:
            os.write(tell, b"no")
        os._exit(0)
    os.read(ready, 1)
    knock._KNOCKING = 0.1
    with pytest.raises(GateTimeout):
        FileLedger(root, patience=0.4).register(Request("a"))
    os.write(go, b"!")
    answer = ctypes.create_string_buffer(3)
    ctypes.PyDLL(None).read(told, answer, 2)  # which does not let go of the interpreter
    os.waitpid(other, 0)
    return answer.value


def test_giving_up_again_and_again_costs_one_thread(state_root: Path) -> None:
    ledger = FileLedger(state_root, patience=0.15)
    ledger.sweep()
    gc.collect()  # what earlier tests dropped is closed now, not meanwhile
    before = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
    with kept_shut(state_root):
        for _ in range(5):
            with pytest.raises(GateTimeout):
                ledger.register(Request("a"))
        assert len(os.listdir("/proc/self/task")) <= before[1] + 1
    wait_for(lambda: len(os.listdir("/proc/self/task")) <= before[1])
    assert ledger.register(Request("a")).token
    ledger.release(ledger.find("a"))
    assert len(os.listdir("/proc/self/fd")) <= before[0]


def test_looking_while_another_thread_comes_in_for_the_first_time(state_root: Path) -> None:
    """Whatever the one opens is none of the other's business: the gate is open again afterwards."""
    FileLedger(state_root).sweep()
    for _ in range(100):
        ledger, both = FileLedger(state_root, patience=5), threading.Barrier(2)

        def look(ledger: FileLedger = ledger, both: threading.Barrier = both) -> None:
            both.wait()
            ledger.snapshot()

        looking = threading.Thread(target=look)
        looking.start()
        both.wait()
        ledger.sweep()
        looking.join()
        with kept_shut(state_root, fcntl.LOCK_EX | fcntl.LOCK_NB):
            pass


def test_whoever_is_interrupted_in_line_leaves_it(state_root: Path, puppet: MakePuppet) -> None:
    FileLedger(state_root)
    with kept_shut(state_root):
        one = waiting(puppet(KNOCKING="0.1"), state_root)
        one.interrupt()
        with pytest.raises(KeyboardInterrupt):
            one.result()
    FileLedger(state_root, patience=5).register(Request("next"))
    assert one.do("register", Request("again")).token


def test_without_descriptors_it_knocks_on(state_root: Path) -> None:
    assert run_clean(_knocks_on, str(state_root)) > 0.5


def _knocks_on(root: str) -> float:
    knock._KNOCKING = 0.1
    ledger = FileLedger(root)
    with ledger._door.held("open"):
        pass
    shut = os.open(f"{root}/lock", os.O_RDWR | os.O_CLOEXEC)
    fcntl.flock(shut, fcntl.LOCK_EX)
    spare = os.dup(0)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    signal.signal(signal.SIGALRM, lambda *_: fcntl.flock(shut, fcntl.LOCK_UN))
    signal.setitimer(signal.ITIMER_REAL, 0.6)
    began = time.monotonic()
    with ledger._door.held("knock"):
        return time.monotonic() - began


def test_a_child_has_no_part_in_the_line(state_root: Path) -> None:
    """One is inside by the line, forks, and is killed there; what its child has is not the gate."""
    FileLedger(state_root)
    child = run_clean(_killed_inside, str(state_root))
    try:
        os.kill(child, 0)
        assert FileLedger(state_root, patience=5).register(Request("next")).token
    finally:
        os.kill(child, signal.SIGKILL)


def _killed_inside(root: str) -> int:
    told, tell = os.pipe()
    with kept_shut(Path(root)) as gate:
        one = os.fork()
        if not one:
            os.close(gate)
            with FileLedger(root)._door.held("fork"):
                child = os.fork()
                if not child:
                    time.sleep(60)
                os.write(tell, str(child).encode())
                signal.pause()
        wait_for(lambda: in_line(Path(root)) == [one])
    child = int(os.read(told, 20))
    os.kill(one, signal.SIGKILL)
    os.waitpid(one, 0)
    return child


def test_a_line_before_a_directory_that_was_replaced_is_left(state_root: Path) -> None:
    root = state_root / "s"
    FileLedger(root)
    one = Puppet(root, {"KNOCKING": "0.1"})
    try:
        with kept_shut(root):
            one.begin("register", Request("a"))
            wait_for(lambda: one.pid in in_line(root))
            shutil.move(root, state_root / "old")
            FileLedger(root)
        with pytest.raises(StateUnusable):  # what it had prepared is gone with the old one
            one.result()
        one.do("register", Request("a"))
        assert os.listdir(root / "live") == ["a"]
    finally:
        one.kill()
