"""The heartbeat: a thread that renews one lease, and tells when it is lost.

Most leases are given back before their first beat is due. Until then they rest: one thread of the process waits for
all of them, and begins the beating of those whose time has come.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from time import monotonic
from types import TracebackType

from necrocode.errors import LeaseLost, NecrocodeError
from necrocode.lease import Lease
from necrocode.ledger.operations import Operations

_AGAIN = 1.0
"""Seconds until the next attempt at a thread that could not be started."""


class Heartbeat:
    """Renews `lease` every `interval` seconds while its body runs; a context manager.

    Entering raises OSError when the system has no thread left for it: then nothing would keep the lease.
    When the lease is lost, `lost` says how and `on_lost` is called once, from the heartbeat's own thread.
    `on_beat` is called after every renewal, for looks that want a rhythm (resource samples)."""

    def __init__(
        self,
        ledger: Operations,
        lease: Lease,
        interval: float = 5.0,
        *,
        on_lost: Callable[[LeaseLost], None] | None = None,
        on_beat: Callable[[], None] | None = None,
    ) -> None:
        self._ledger, self._lease, self._interval = ledger, lease, interval
        self._on_lost, self._on_beat = on_lost, on_beat
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self.lost: LeaseLost | None = None

    def __enter__(self) -> Heartbeat:
        _resting.add(self, monotonic() + self._interval)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """No more beats after this returns."""
        self._over.set()
        _resting.drop(self)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def check(self) -> None:
        """Raise the LeaseLost that ended this heartbeat, if any."""
        if self.lost:
            raise self.lost

    def begin(self) -> None:
        """The first beat is due, and a thread of its own begins; called by the one that waits for it."""
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat-{self._lease.runner_id}", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        pause = 0.0
        while not self._over.wait(pause):
            pause = self._interval
            try:
                self._ledger.renew(self._lease)
            except LeaseLost as lost:
                self.lost = lost
                if self._on_lost:
                    self._on_lost(lost)
                return
            except NecrocodeError:
                # A disk that cannot be asked proves nothing; the work goes on, the next beat asks again.
                continue
            if self._on_beat:
                self._on_beat()


class _Resting:
    """The heartbeats whose first beat is not due yet, and the thread that waits for them; it ends when there are
    none."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due: dict[Heartbeat, float] = {}
        self._wakes = float("inf")
        self._watched = False

    def add(self, heartbeat: Heartbeat, due: float) -> None:
        with self._changed:
            if not self._watched:
                try:
                    threading.Thread(target=self._watch, name="heartbeats", daemon=True).start()
                except RuntimeError as error:
                    raise OSError(errno.EAGAIN, f"no heartbeat: {error}") from error
                self._watched, self._wakes = True, due
            elif due < self._wakes:
                self._changed.notify()
            self._due[heartbeat] = due

    def drop(self, heartbeat: Heartbeat) -> None:
        with self._changed:
            self._due.pop(heartbeat, None)

    def _watch(self) -> None:
        with self._changed:
            while self._due:
                self._wakes = min(self._due.values())
                self._changed.wait(max(0.0, self._wakes - monotonic()))
                for heartbeat in [one for one, due in self._due.items() if due <= monotonic()]:
                    self._begin(heartbeat)
            self._watched = False

    def _begin(self, heartbeat: Heartbeat) -> None:
        try:
            heartbeat.begin()
            del self._due[heartbeat]
        except RuntimeError:  # no thread can be started now
            self._due[heartbeat] = monotonic() + _AGAIN


_resting = _Resting()


def _forked() -> None:
    """In a forked child: its parent's leases are its parent's, and so is the thread that waited."""
    global _resting
    _resting = _Resting()


os.register_at_fork(after_in_child=_forked)
