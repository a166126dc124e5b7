"""Waiting without polling: a waiter sleeps on its bell until it is handed its lease.

A bell is a FIFO that only its waiter reads; whoever grants rings it. So that no death goes unnoticed, each waiter
holds the write end of its nearest live predecessor's bell (the kernel tells when the last reader goes), and the
first that has no live, beating waiter ahead of it is the watchman: it watches the lifelines of the holders.
"""

from __future__ import annotations

import errno
import os
import random
import select
import time
from bisect import bisect_left
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any

from necrocode.ledger import lifeline
from necrocode.ledger.records import QueueName
from necrocode.statedir import UNSHARED, StateDir, share

_TICK = 5.0
"""Seconds after which every waiter looks by itself; a safety net, nothing is handed over by it."""
_FAR, _DOZE = 100, 12
"""Whoever has more than so many ahead, of whom the nearest lives, looks around in one tick of thirteen only."""
_QUIET_WAITER = 15.0
"""Seconds without a stamp after which a waiter is not trusted to keep watch (it may be stopped)."""
_SHORT_WAIT = 0.05
"""Seconds after which a waiter makes ready to watch; nobody who is served sooner has to pay for that."""
_AFTER_YOU = 0.002
"""Seconds that one who is called to watch leaves the processor to the one who was served before it. Should that one
die meanwhile, its lifeline tells so afterwards."""
_SETTLING = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512)
"""Death is not atomic: a dying process lets go of its files one by one, and on a busy machine it waits for its turn
to do so. Look again after each of these seconds."""
_CLOSE_WRITE = 0x8
_EXCL_UNLINK = 0x4000000
"""No event for a lifeline that was unlinked first: whoever releases in peace has served the waiting already."""
_idle_watches: list[tuple[int, tuple[int, int]]] = []
"""Inotify descriptors that nobody uses now. Closing one can take 10 ms, so they are kept for the next watch."""


def make_bell(path: str, mode: int) -> int | None:
    """The read end of a new bell; None where there are no FIFOs (then only the slow tick wakes its waiter)."""
    low = -1
    lifeline.making.acquire()
    try:
        os.mkfifo(path, mode)
        low = os.open(path, os.O_RDWR | os.O_NONBLOCK | UNSHARED)
        share(low, mode)
        return lifeline.raised(low)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(path)
        if isinstance(error, OSError) and error.errno in (errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP):
            return None
        raise
    finally:
        lifeline.making.release()
        if low >= 0:
            with suppress(OSError):
                os.close(low)


def close_bell(bell: int, *paths: str) -> None:
    """Remove it, under whichever of its names it goes, and let go of it."""
    for path in paths:
        with suppress(OSError):
            if os.path.samestat(os.fstat(bell), os.stat(path)):
                os.unlink(path)
    lifeline.close(bell)


def ring(path: str) -> bool:
    """Wake a waiter; False when that failed. One without a bell looks by itself, one that died needs no waking, and
    a bell that nobody has answered yet is full of rings."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | UNSHARED)
        try:
            os.write(descriptor, b"!")
        finally:
            os.close(descriptor)
    except OSError as error:
        return error.errno in (errno.ENXIO, errno.ENOENT, errno.EAGAIN, errno.EPIPE)
    return True


def ring_all(state: StateDir) -> None:
    for runner_id in os.listdir(state.bells):
        ring(f"{state.root}/bells/{runner_id}")


class Wait:
    """One waiter's sleep."""

    def __init__(
        self,
        state: StateDir,
        runner_id: str,
        bell: int | None,
        stamp: Callable[[], None],
        entry: str,
        often: float = _TICK,
    ) -> None:
        self._runner_id, self._bell, self._stamp, self._entry = runner_id, bell, stamp, entry
        self._live, self._bells, self._queue = (f"{state.root}/{folder}" for folder in ("live", "bells", "queue"))
        self._name = os.path.basename(entry)
        self._tick = min(_TICK, often)
        self._poll = select.poll()
        self._predecessor: tuple[str, int] | None = None
        self._dying = ""
        self._watch: int | None = None
        self._naps: list[float] = []
        self._called = self._ready = self._watching = False
        self._doze = 0
        if bell is not None:
            self._poll.register(bell, select.POLLIN)

    def until_gone(self, deadline: float | None, keep_watch: Callable[[bool], float]) -> bool:
        """True when the entry has left the queue, False when the deadline is over. The watchman calls `keep_watch`,
        which puts right what it sees undone and says after how many seconds to look again; it is told whether this
        is the watchman's first round."""
        try:
            while self._entry_exists():
                if self._called and not self._watching:
                    self._sleep(_AFTER_YOU, deadline)  # the bell was for watching over whoever is served just now
                    continue
                self._stamp()
                tick = self._tick if self._may_doze() else self._look_around(keep_watch)
                if self._watching and not self._entry_exists():
                    break
                if deadline is not None and time.monotonic() >= deadline:
                    return False
                self._sleep(tick, deadline)
            return True
        finally:
            self._end()

    def _look_around(self, keep_watch: Callable[[bool], float]) -> float:
        """See who is ahead, and whether to watch; seconds until the next look."""
        queue = sorted(os.listdir(self._queue))
        self._follow_predecessor(queue)
        self._doze = _DOZE if bisect_left(queue, self._name) > _FAR else 0
        if not self._is_watchman(queue):
            return self._tick
        new, self._watching = not self._watching, True
        self._start_watch()
        return min(self._tick, keep_watch(new))

    def _may_doze(self) -> bool:
        """Whether this look can be spared: of thousands in line each would read the whole line."""
        if self._called or self._predecessor is None or self._doze == 0:
            return False
        self._doze -= 1
        return True

    def _entry_exists(self) -> bool:
        try:
            os.stat(self._entry)
        except FileNotFoundError:
            return False
        return True

    def _sleep(self, tick: float, deadline: float | None) -> None:
        nap = tick * random.uniform(0.75, 1.0)
        if self._naps:
            nap = min(nap, self._naps.pop(0))
        if deadline is not None:
            nap = min(nap, max(0.0, deadline - time.monotonic()))
        events = self._events(nap)
        self._called = {descriptor for descriptor, _ in events} == {self._bell}
        if any(descriptor != self._bell for descriptor, _ in events):
            self._naps = list(_SETTLING)
        for descriptor, _ in events:
            self._drain(descriptor)

    def _events(self, nap: float) -> list[tuple[int, int]]:
        if not self._ready and nap > _SHORT_WAIT:
            if events := self._poll.poll(int(_SHORT_WAIT * 1000)):
                return events
            nap, self._ready = nap - _SHORT_WAIT, True
            _libc()
        return self._poll.poll(max(1, int(nap * 1000 + 0.999)))

    def _drain(self, descriptor: int) -> None:
        if self._predecessor and descriptor == self._predecessor[1]:
            return self._leave_predecessor()
        with suppress(BlockingIOError):
            os.read(descriptor, 4096)
        return None

    def _follow_predecessor(self, queue: list[str]) -> None:
        """Hold the write end of the nearest live waiter's bell: the kernel tells us when its reader is gone."""
        nearest = self._nearest_alive(queue)
        if self._predecessor and self._predecessor[0] == nearest:
            return
        self._leave_predecessor()
        if nearest is None:
            return
        try:
            descriptor = os.open(f"{self._bells}/{nearest}", os.O_WRONLY | os.O_NONBLOCK | UNSHARED)
        except OSError as error:
            if error.errno in (errno.ENXIO, errno.ENOENT) and nearest != self._dying:
                self._dying = nearest  # or leaving the queue: look again soon, but not for ever
                self._naps = list(_SETTLING)
            return
        self._predecessor = (nearest, descriptor)
        self._poll.register(descriptor, 0)

    def _leave_predecessor(self) -> None:
        if self._predecessor:
            self._poll.unregister(self._predecessor[1])
            os.close(self._predecessor[1])
            self._predecessor = None

    def _nearest_alive(self, queue: list[str]) -> str | None:
        for name in reversed(queue[: bisect_left(queue, self._name)]):
            runner_id = _owner(name)
            if runner_id != self._runner_id and lifeline.is_held(f"{self._live}/{runner_id}"):
                return runner_id
        return None

    def _is_watchman(self, queue: list[str]) -> bool:
        """Whether no live, beating waiter is ahead of us."""
        now = time.monotonic()
        for name in queue:
            if name == self._name:
                return True
            seen = lifeline.look(f"{self._live}/{_owner(name)}", now)
            if seen.held and (seen.silent or 0.0) < _QUIET_WAITER:
                return False
        return True

    def _start_watch(self) -> None:
        if self._watch is None and (watch := _new_watch(self._live)) is not None:
            self._watch = watch
            self._poll.register(watch, select.POLLIN)

    def _end(self) -> None:
        self._leave_predecessor()
        watch, self._watch = self._watch, None
        if watch is not None:
            try:
                _idle_watches.append((watch, _place(self._live)))
            except OSError:
                os.close(watch)


def _owner(name: str) -> str:
    try:
        return QueueName.parse(name).runner_id
    except ValueError:
        return ""


def _place(folder: str) -> tuple[int, int]:
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def _new_watch(folder: str) -> int | None:
    """A descriptor that is readable when a lifeline is closed; None where inotify is missing or used up."""
    place = _place(folder)
    for idle in list(_idle_watches):
        if idle[1] == place:
            with suppress(ValueError):  # another thread took it
                _idle_watches.remove(idle)
                return idle[0]
    libc = _libc()
    try:
        descriptor = int(libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
    except AttributeError:
        return None
    if descriptor < 0:
        return None
    if libc.inotify_add_watch(descriptor, os.fsencode(folder), _CLOSE_WRITE | _EXCL_UNLINK) < 0:
        os.close(descriptor)
        return None
    return descriptor


@lru_cache(1)
def _libc() -> Any:
    """The C library; None without one. Some ms the first time, which whoever is called to watch should not spend."""
    try:
        import ctypes

        return ctypes.CDLL(None, use_errno=True)
    except (ImportError, OSError):
        return None


os.register_at_fork(after_in_child=_idle_watches.clear)
