"""The gate: one short flock around every change, with a counter and the name of who is inside.

The lock file is never unlinked and never replaced. Line 1 is the counter and the boot it belongs to; line 2, at a
fixed offset, says `free <generation>` or `held <generation> pid=.. op=..`. A `held` that nobody holds was left by
a process that died inside: the next one in finishes what it may have left undone. Line 3 and all that follow are the
ring: what was changed last.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from necrocode import process
from necrocode.errors import Deadlock, GateTimeout, LeaseLost, Refused, StateUnreadable, StateUnusable
from necrocode.ledger.knock import Place, knock
from necrocode.ledger.records import LeaseName, QueueName
from necrocode.ledger.ring import START, WIDTH, Header, Ring
from necrocode.statedir import UNSHARED, StateDir, refused, share, told

_COUNTER = 64
"""Bytes of the counter's line."""
_LENGTH = START - WIDTH
"""Bytes of the counter and of who is inside; the ring follows."""
_LARGEST = 1 << 53
DECIDED = (Refused, LeaseLost, Deadlock, StateUnreadable)
"""Answers: everything is as it should be. After any other error a move may have been cut short."""


class Gate:
    """One process's way into one state directory; safe for its threads, and after a fork."""

    def __init__(self, state: StateDir, patience: float = 10.0) -> None:
        self._state, self._patience = state, patience
        self._path = str(state.lock)
        self._descriptor: int | None = None
        self._line: Place | None = None
        self._ours = (0, 0)
        self._place: tuple[int, int] | None = None
        self._threads = threading.Lock()
        self._pid = 0
        self._inside = -1
        self.ring = Ring(str(state.root))
        self._header = b""
        self.counter = 0
        self.generation = 0
        self.crashed = False
        self.moved = False
        self.owes = False

    @contextmanager
    def held(self, operation: str, *, patience: float | None = None) -> Iterator[Gate]:
        """Inside, nobody else changes the state. `crashed` tells whether the last one in died there, `moved` whether
        the directory is another one than last time. Whoever sets `owes` leaves as if it had died.

        Raises GateTimeout after `patience` seconds (naming who is inside), StateUnusable for what the system
        refuses, here or in the body."""
        patience = self._patience if patience is None else patience
        if not self._threads.acquire(timeout=patience):
            raise GateTimeout(self._path, patience, f"another thread of pid {os.getpid()}")
        try:
            self._enter(operation, patience)
            try:
                yield self
            except DECIDED:
                self._leave()
                raise
            self._leave()
        except OSError as error:
            raise refused(error, self._path) from error
        finally:
            try:
                self._unlock()
            finally:
                self._threads.release()

    def peek(self) -> tuple[bool, int]:
        """Whether the gate is marked free, and its generation, without entering."""
        return _parse_state(self._read(_LENGTH - _COUNTER))

    def explains(self, stamps: tuple[int, ...]) -> bool:
        """Whether the gate is free, and the last one out left the folders of leases at these times: what happened there
        happened in here, and was followed up. Without entering."""
        text = self._read(START - _COUNTER)
        free, generation = _parse_state(text[: _LENGTH - _COUNTER])
        left = Header.parse(text[_LENGTH - _COUNTER :])
        return free and left is not None and left.through == generation and left.stamps[:2] == stamps

    def _read(self, size: int) -> bytes:
        """What stands there after the counter, by a descriptor of its own: ours is for the thread that is inside."""
        with told(self._path):
            try:
                descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | UNSHARED)
            except FileNotFoundError:
                self._must_exist()
                return b""
            try:
                return os.pread(descriptor, size, _COUNTER)
            finally:
                os.close(descriptor)

    def next(self) -> int:
        """The next number of the counter, on disk before it is used. Only inside."""
        self.counter += 1
        self._write_counter()
        return self.counter

    def _enter(self, operation: str, patience: float) -> None:
        self._lock(patience)
        text = os.pread(self._inside, START, 0)
        known = self._take_counter(text[:_COUNTER])
        free, generation = _parse_state(text[_COUNTER:_LENGTH])
        self.crashed, self.generation, self.owes, self._header = not free, generation + 1, False, b""
        self._write_state(
            f"held {self.generation} pid={os.getpid()} op={operation.replace(' ', '-')} mono={time.monotonic():.3f}"
        )
        self.ring.open(self._inside, text[_LENGTH:], generation if known else 0)

    def make_ready(self) -> None:
        """Do what is left to be done but to say that the gate is free: whoever is woken now, and wants to come in,
        must not find us in here, put aside by the system in its favour. Nothing may be changed after it."""
        self._header = self.ring.close(self.generation)

    def _leave(self) -> None:
        if not self.owes:
            self._write_state(f"free {self.generation}", self._header)

    def _unlock(self) -> None:
        self._leave_line()
        if self._descriptor is not None and self._pid == os.getpid():
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            except OSError:
                self._close()  # closing it lets go too, and a gate that stays shut would stop everybody
        self._inside = -1

    def _lock(self, patience: float) -> None:
        deadline = time.monotonic() + patience
        while True:
            if self._take(deadline, patience) and self._is_current():
                return
            # Somebody removed or replaced the directory; what we locked protects nothing.
            self._close()

    def _take(self, deadline: float, patience: float) -> bool:
        """Lock the file that is there now; False while that file is being replaced. Raises GateTimeout."""
        self._leave_line()
        self._inside = descriptor = self._open()
        # Who gave up once may still stand in the line: one place is enough, and is left by nobody but the kernel.
        if knock(descriptor, self._path, deadline, stay=self._line is not None):
            return True
        try:
            taken = self._stand_in_line(deadline)
        except FileNotFoundError:
            return False
        except (OSError, RuntimeError, MemoryError):  # out of descriptors or of threads
            taken = knock(descriptor, self._path, deadline, stay=True)
        if taken:
            return os.path.sameopenfile(descriptor, self._inside)
        raise GateTimeout(self._path, patience, self._who_is_inside())

    def _stand_in_line(self, deadline: float) -> bool:
        if time.monotonic() > deadline:
            return False
        self._line = Place(self._path)
        if taken := self._line.reached(deadline):
            self._inside = self._line.descriptor
        return taken

    def _who_is_inside(self) -> str:
        raw = self._read(_LENGTH - _COUNTER)
        return "" if _parse_state(raw)[0] else raw.decode(errors="replace").strip(" \n\0")

    def _leave_line(self) -> None:
        if self._line is not None:
            self._line.leave()
            if self._line.empty:
                self._line = None

    def _is_current(self) -> bool:
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            return False
        place = (there.st_dev, there.st_ino)
        if place != self._ours:
            return False
        self.moved = self._place is not None and place != self._place
        self._place = place
        return True

    def _open(self) -> int:
        if self._descriptor is not None and self._pid == os.getpid():
            return self._descriptor
        # An inherited descriptor shares its lock with the parent: a forked child needs one of its own.
        self._close()
        self._must_exist()
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | UNSHARED, self._state.file_mode)
        found = os.fstat(descriptor)
        if found.st_uid == os.geteuid():
            share(descriptor, self._state.file_mode)
        self._ours = found.st_dev, found.st_ino
        self._descriptor, self._pid = descriptor, os.getpid()
        return descriptor

    def _must_exist(self) -> None:
        if not os.path.isdir(self._state.root):
            raise StateUnusable(str(self._state.root), "the state directory is gone")

    def __del__(self) -> None:
        self._close()

    def _close(self) -> None:
        self._leave_line()
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with suppress(OSError):
                os.close(descriptor)

    def _take_counter(self, line: bytes) -> bool:
        """Read it; False when it was damaged, or belongs to an earlier boot."""
        words = line.split()
        intact = len(words) == 2 and len(words[0]) == 20 and words[0].isdigit() and int(words[0]) < _LARGEST
        self.counter = int(words[0]) if intact else self._largest_in_use()
        if intact and words[1] == _boot().encode():
            return True
        # A token must outgrow every earlier one, also those that a power cut took off the disk.
        self.counter = ((self.counter >> 32) + 1) << 32
        self._write_counter()
        os.fsync(self._inside)
        return False

    def _largest_in_use(self) -> int:
        """For a fresh lock file, or a damaged one: no token that anybody has may be given out again."""
        numbers = [0]
        for folder in ("runners", "fenced", "queue"):
            for name in os.listdir(self._state.root / folder):
                with suppress(ValueError):
                    numbers.append(QueueName.parse(name).ticket if folder == "queue" else LeaseName.parse(name).token)
        return max(number for number in numbers if number < _LARGEST)

    def _write_counter(self) -> None:
        line = f"{self.counter:020d} {_boot():<42}\n".encode()
        os.pwrite(self._inside, line, 0)

    def _write_state(self, text: str, header: bytes = b"") -> None:
        # In one write, and in this order: what is cut short never names a ring of more than was done.
        width = _LENGTH - _COUNTER - 1
        os.pwrite(self._inside, f"{text:<{width}.{width}}\n".encode() + header, _COUNTER)


def _parse_state(raw: bytes) -> tuple[bool, int]:
    words = raw.split()
    if not words:
        return True, 0  # a fresh lock file
    number = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
    return words[0] == b"free", number % _LARGEST


def _boot() -> str:
    return (process.boot_id() or "unknown")[:42]


def reset_after_fork(gates: Iterable[Gate]) -> None:
    """In a forked child: a gate that another thread held at the fork would never open again there."""
    for gate in gates:
        gate._threads, gate._line = threading.Lock(), None
        gate._inside = -1  # who was inside is so no more
        gate.ring.shut()
        gate._close()
