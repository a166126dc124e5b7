"""Other processes for tests: clean ones, forked from a server that has no threads and has imported the ledger."""

from __future__ import annotations

import contextlib
import ctypes  # noqa: F401 - as whoever has waited before
import fcntl
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from necrocode.errors import LeaseLost
from necrocode.lease import Lease
from necrocode.ledger import knock, waiting, watchman
from necrocode.ledger.files import FileLedger

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["actors"])


class Failed(AssertionError):
    """What went wrong in the other process, with its traceback."""


def run_clean(play: Callable[..., Any], *args: Any, within: float = 100.0) -> Any:
    """The value of `play(*args)` in a process of its own, which has one thread and may fork as it likes."""
    ours, theirs = _context.Pipe()
    process = _context.Process(target=_perform, args=(theirs, play, args))
    process.start()
    theirs.close()
    try:
        if not ours.poll(within):
            raise Failed(f"{play.__name__} did not end within {within:g} s")
        good, value = ours.recv()
        process.join(5)
    except EOFError:
        raise Failed(f"{play.__name__} died") from None
    finally:
        if process.is_alive() and process.pid:
            os.kill(process.pid, signal.SIGKILL)
            process.join(5)
    if not good:
        raise Failed(value)
    return value


def _perform(stage: Connection, play: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        answer = (True, play(*args))
    except BaseException:  # noqa: BLE001 - told to the test
        answer = (False, traceback.format_exc())
    stage.send(answer)


class Puppet:
    """A process with a ledger of its own that does what it is told.

    `do("register", request, wait=True)` waits for the answer: a copy of the lease (`renew`, `release`, `claim` and
    the like take its id then), or the error, raised here too. `begin` and `result` are its two halves."""

    def __init__(self, root: Path, environment: dict[str, str] | None = None) -> None:
        self._root = root
        self._strings, theirs = _context.Pipe()
        self._process = _context.Process(target=_dance, args=(theirs, str(root), environment or {}), daemon=True)
        self._process.start()
        theirs.close()
        self.pid: int = self._process.pid or 0

    def do(self, what: str, *args: Any, within: float = 30.0, **options: Any) -> Any:
        self.begin(what, *args, **options)
        return self.result(within)

    def begin(self, what: str, *args: Any, **options: Any) -> None:
        self._strings.send((what, args, options))

    def answered(self, within: float = 0.0) -> bool:
        return self._strings.poll(within)

    def result(self, within: float = 30.0) -> Any:
        if not self._strings.poll(within):
            raise Failed(f"no answer within {within:g} s")
        value = self._strings.recv()
        if isinstance(value, BaseException):
            raise value
        return value

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def stop(self) -> None:
        """SIGSTOP, outside the gate, and until the kernel says that it stands still."""
        deadline = time.monotonic() + 10
        while True:
            self.signal(signal.SIGSTOP)
            while Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] not in "Tt":
                assert time.monotonic() < deadline
                time.sleep(0.001)
            if f"pid={self.pid} ".encode() not in (self._root / "lock").read_bytes() and self._gate_opens():
                return
            self.go()
            time.sleep(0.001)

    def _gate_opens(self) -> bool:
        """Before a pass writes who is inside, and after it has said that it is over, the lock alone tells."""
        with open(self._root / "lock", "rb") as lock, contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False

    def interrupt(self) -> None:
        """SIGINT, again if need be: Python forgets one that comes while it runs a callback of its own."""
        for _ in range(6):
            self.signal(signal.SIGINT)
            if self.answered(5.0):
                return

    def go(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """kill -9, and until it is dead."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._process.join(10)


def _dance(stage: Connection, root: str, environment: dict[str, str]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(environment)
    time.tzset()
    if seconds := environment.get("TICK"):
        waiting._TICK = watchman._ROUND = float(seconds)
    if seconds := environment.get("KNOCKING"):
        knock._KNOCKING = float(seconds)
    ledger = FileLedger(root)
    leases: dict[str, Lease] = {}
    with contextlib.suppress(EOFError, OSError):
        while True:
            what, args, options = stage.recv()
            try:
                answer = _step(ledger, leases, what, args, options)
            except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - raised again in the test
                answer = error
            stage.send(answer)


def _step(ledger: FileLedger, leases: dict[str, Lease], what: str, args: tuple[Any, ...], options: Any) -> Any:
    if what == "register":
        lease = ledger.register(*args, **options)
        leases[lease.runner_id] = lease
        return lease.record
    if what == "publish":
        return _publish(ledger, leases[args[0]])
    if what == "fork":
        return _fork(*args)
    if what == "snapshot":
        return ledger.snapshot()
    if args and isinstance(args[0], str) and args[0] in leases:
        args = (leases[args[0]], *args[1:])
    value = getattr(ledger, what)(*args, **options)
    return value if isinstance(value, (bool, int, str, type(None))) else None


def _publish(ledger: FileLedger, lease: Lease) -> str:
    try:
        with ledger.publishing(lease) as token:
            return f"token {token}"
    except LeaseLost:
        return "lost"


def _fork(seconds: float) -> int:
    """A child that sleeps."""
    child = os.fork()
    if child == 0:
        time.sleep(seconds)
        os._exit(0)
    return child
