"""Taking the gate's lock: knock for a while, then stand in the kernel's line.

Whoever finds the gate shut looks again and again, after naps in proportion to the time it has waited: nothing is
quicker while a few come. Thousands who look leave no processor to the one inside, and the first of them has no better
chance than the last. So whoever has knocked for a while sleeps in flock(2) itself, in a thread, which wakes one at a
time, in the order in which they came (Linux since 5.0: fs/locks.c, __locks_insert_block).
"""

from __future__ import annotations

import _thread
import fcntl
import os
import random
import signal
import sys
import threading
import time
from contextlib import suppress

from necrocode.errors import NecrocodeError
from necrocode.ledger import lifeline
from necrocode.statedir import UNSHARED, flock

_SHORTEST_NAP = 2e-5
_LONGEST_NAP = 0.05
_KNOCKING = 1.0
"""Seconds. Sixty-four who do nothing else each come in sooner, and three times as often as if they took turns: in the
line, each turn waits for the next one to wake."""


def knock(descriptor: int, path: str, deadline: float, *, stay: bool = False) -> bool:
    """Whether the lock could be taken within some time, or, with `stay`, before the deadline."""
    attempt, since = 0, time.monotonic()
    while True:
        try:
            flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, path)
            return True
        except BlockingIOError:
            if (now := time.monotonic()) > deadline:
                return False
        attempt += 1
        if attempt < 4:
            os.sched_yield() if hasattr(os, "sched_yield") else time.sleep(0)
            continue
        if now - since > _KNOCKING and not stay:
            return False
        nap = min(_LONGEST_NAP, max(_SHORTEST_NAP, (now - since) / 4))
        time.sleep(nap * random.uniform(0.5, 1.5))


class Place:
    """A place in the kernel's line before one lock. A thread stands there, so that its process may give up.

    Raises FileNotFoundError when there is no such file."""

    def __init__(self, path: str) -> None:
        self._path = path
        with lifeline.making:
            low = os.open(path, os.O_RDWR | UNSHARED)
            try:
                # A descriptor of its own: whoever gives up must not let go of what another call took meanwhile.
                self.descriptor = lifeline.raised(low)
            finally:
                os.close(low)
        self._deciding, self._over = threading.Lock(), threading.Event()
        self._taken = self._locked = self._left = False
        self._trouble: OSError | NecrocodeError | None = None

    @property
    def empty(self) -> bool:
        """Whether nobody stands here any more."""
        return self._over.is_set() or not self._taken

    def reached(self, deadline: float) -> bool:
        """Whether the lock was ours before the deadline. Whatever happens here, `leave` is to be called.

        Raises RuntimeError when the system gives no thread, and what it answers to flock."""
        self._taken = True
        try:
            _thread.start_new_thread(self._stand, ())
        except (RuntimeError, MemoryError):
            self._taken = False
            raise
        if self._over.wait(max(0.0, deadline - time.monotonic())) and self._trouble:
            raise self._trouble
        return self._locked

    def leave(self) -> None:
        """Let go of the lock, or of the hope for it. May be called again."""
        with self._deciding:
            if self.empty:
                self._let_go()
            elif not self._left:
                self._left = True
                self._disown()

    def _stand(self) -> None:
        try:
            # Signals are for the other threads: one that came here would cost the place in the line.
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            flock(self.descriptor, fcntl.LOCK_EX, self._path)
            self._locked = True
        except (OSError, NecrocodeError) as error:
            self._trouble = error
        finally:
            with self._deciding:
                self._over.set()
                if self._left:
                    self._let_go()

    def _disown(self) -> None:
        """Put something else under the number. Only the sleeping call has the file then, and when it is given the lock
        the kernel drops both: a thread that has to wait for its turn in this process would keep everybody out."""
        if sys.platform != "linux":
            return  # elsewhere the call might be waited for
        with suppress(OSError):
            reading, writing = os.pipe()
            os.dup2(reading, self.descriptor, inheritable=False)
            os.close(reading)
            os.close(writing)

    def _let_go(self) -> None:
        descriptor = self.descriptor
        if descriptor < 0:
            return
        # Unlocked by name: a child that is being forked may have a copy of the descriptor yet.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        self.descriptor = -1
        lifeline.close(descriptor)
