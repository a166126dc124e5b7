"""The ledger on files: what processes of one machine share."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from necrocode import journal, process
from necrocode.admission import View, Waiter
from necrocode.errors import GateTimeout
from necrocode.event import Event
from necrocode.lease import Lease, RunnerInstance
from necrocode.ledger import lifeline, waiting
from necrocode.ledger.book import Book
from necrocode.ledger.gate import DECIDED, Gate, reset_after_fork
from necrocode.ledger.placing import LEASES
from necrocode.ledger.records import Damaged, read_record
from necrocode.ledger.snapshot import Snapshot, take
from necrocode.ledger.terms import changed, terms_of
from necrocode.ledger.watchman import Watchman
from necrocode.liveness import Observer
from necrocode.statedir import StateDir, refused, to_json, told

Taken = TypeVar("Taken")

_LITTER_AGE = 60.0
"""Seconds after which an unlocked file in tmp/ is taken for what a dead process left."""

_ledgers: weakref.WeakSet[FileLedger] = weakref.WeakSet()
_windows = threading.Lock()
"""Guards the counts of open publishing windows."""


class FileLedger(Watchman):
    """The ledger of one state directory. Cheap to make; any number of processes and threads may use one each."""

    def __init__(
        self, state: StateDir | str | os.PathLike[str] | None = None, *, patience: float = 10.0, on_stale: str = "fence"
    ) -> None:
        self.state = state if isinstance(state, StateDir) else StateDir(state)
        self.on_stale = on_stale
        self._root = str(self.state.root)
        self._real = os.path.realpath(self._root)
        self._door = Gate(self.state, patience)
        self._observer = Observer()
        self._start_anew()
        _ledgers.add(self)

    def _start_anew(self) -> None:
        """Nothing read, nothing owed to anybody: at first, and in a forked child."""
        self._book = Book(self.state, self._door.ring, lambda runner_id: lifeline.is_held(self._life(runner_id)))
        self._told: deque[Event] = deque()
        self._to_kill: deque[RunnerInstance] = deque()
        self._to_wake: list[str] = []
        self._to_hide: list[str] = []
        self._places: dict[Lease, tuple[str, str]] = {}
        self._timeouts: dict[str, float] = {}
        self._watched: tuple[int, ...] = ()

    @property
    def view(self) -> View:  # type: ignore[override]
        return self._book.view

    # ---- questions

    def snapshot(self, *, patience: float | None = None) -> Snapshot:
        """Everybody who stands and waits, without the gate and without repairing anything.

        With `patience`, when all that moves too fast to be seen at one moment, it is looked at inside the gate, which
        is waited for so many seconds; `consistent` says whether either was possible."""
        with told(self._root):
            seen = take(self.state, self._door.peek)
        if patience is not None and not seen.consistent:
            with suppress(GateTimeout), self._gate("look", patience=patience):
                return take(self.state, lambda: (True, 0))  # nothing moves in here
        return seen

    def watch(self, every: float = 0.25) -> Iterator[Snapshot]:
        """A snapshot now, and again whenever something has changed; looks every `every` seconds."""
        last: tuple[Any, ...] | None = None
        while True:
            with told(self._root):
                folders = (os.stat(f"{self._root}/{folder}").st_mtime_ns for folder in ("runners", "queue", "fenced"))
                now = (self._door.peek(), *folders)
            if now != last:
                yield self.snapshot()
                last = now
            time.sleep(every)

    def find(self, runner_id: str) -> Lease | None:
        """The lease of that id that this process holds, whichever object registered it."""
        lease = LEASES.get((self._real, runner_id))
        return lease if lease and lease.pid == os.getpid() else None

    def configure(
        self,
        *,
        limit: int | str | None = "keep",
        quotas: Mapping[str, int] | None = None,
        quota: Mapping[str, int | None] | None = None,
    ) -> None:
        """Change the host's terms; holders stay, those who now fit are admitted at once. `quotas` replaces all of
        them, `quota` changes those that it names (None removes one), whatever others change at the same moment.

        Terms that cannot be read are replaced, when both are given or the unreadable ones held none worth keeping:
        `limit` must be given then; quotas become none. Raises ConfigError, StateUnreadable, StateUnusable."""
        terms_of(None if limit == "keep" else limit, changed(quotas or {}, quota))
        with self._gate("configure"):
            if self._book.trouble and limit == "keep":
                raise self._book.trouble
            known = self.view.limit if limit == "keep" else limit
            kept = {} if self._book.trouble else self.view.quotas
            path = self.state.root / "config.json"
            if self._book.trouble:
                self._book.set_aside("config.json", self._book.trouble.reason)
            new = changed(kept if quotas is None else quotas, quota)
            self.state.write(path, to_json(terms_of(known, new)), durable=True)
            self._book.sync_terms()
            self._schedule()

    def has_waiters(self) -> bool:
        with told(self._root):
            return bool(os.listdir(f"{self._root}/queue"))

    # ---- the gate

    @contextmanager
    def _gate(self, operation: str, *, patience: float | None = None) -> Iterator[bool]:
        try:
            with self._door.held(operation, patience=patience) as gate:
                try:
                    self._come_in(gate)
                    yield gate.crashed
                except DECIDED:
                    raise
                except BaseException:
                    self._book.forget()  # a move was cut short: what we believe may differ from the disk
                    raise
                finally:
                    gate.make_ready()
                    self._ring()
        finally:
            self._after_gate()

    def _come_in(self, gate: Gate) -> None:
        if gate.moved:
            self._book.forget()
        if self._book.sync() or gate.crashed:
            self._schedule()
        if gate.crashed:
            # The last one in died here: it may have owed somebody a grant, or a ring of the bell.
            waiting.ring_all(self.state)

    def _check_terms(self) -> None:
        if self._book.trouble:
            raise self._book.trouble

    def _ring(self) -> None:
        # Before the gate is marked free, so that a death here is noticed and made good by the next one in.
        unheard = [runner_id for runner_id in self._to_wake if not waiting.ring(self._bell(runner_id))]
        if unheard:
            # As if we had died here: a lifeline that closes in plain sight wakes the watchman, who rings all.
            self._door.owes = True
        else:
            self._unlink(*self._to_hide)
        self._to_wake.clear()
        self._to_hide.clear()

    def _after_gate(self) -> None:
        while record := _taken(self._to_kill):
            if record.holder:
                process.kill_holder(record.holder)
        self._flush()

    def _next(self) -> int:
        return self._door.next()

    # ---- waiting

    def _wake(self, runner_id: str) -> None:
        self._to_wake.append(runner_id)

    def _sleep(self, lease: Lease, waiter: Waiter, deadline: float | None) -> bool:
        with told(self._root):
            try:
                entry, often = self._entry(waiter), lease.record.heartbeat_timeout / 3
                wait = waiting.Wait(self.state, lease.runner_id, lease.bell, lambda: self._stamp(lease), entry, often)
                return wait.until_gone(deadline, self._keep_watch)
            finally:
                self._hush(lease)

    # ---- the handle

    def _stamp(self, lease: Lease) -> None:
        lifeline.stamp(self._own(lease))

    def _beat(self, lease: Lease) -> None:
        try:
            lifeline.stamp(self._own(lease))
            found = os.stat(f"{self._root}/runners/{lease.runner_id}.{lease.token}.{lease.revision}.json")
        except FileNotFoundError:
            return self._look_again(lease)
        except OSError as error:
            raise refused(error, self._life(lease.runner_id)) from error
        if lease.mark != (lease.revision, found.st_ino, found.st_size, found.st_mtime_ns):
            self._look_closer(lease, found)
        return None

    def _look_closer(self, lease: Lease, found: os.stat_result) -> None:
        """Our record is a later revision than we knew, or somebody touched it: see whether it is whole."""
        path, known = f"{self._root}/runners/{lease.runner_id}.{lease.token}.{lease.revision}.json", lease.revision
        with told(path), suppress(FileNotFoundError, Damaged):
            record = read_record(path)
            if self._owns(lease) and (lease.mark[:1] != (known,) or record.claims == lease.claims):
                lease.mark = (known, found.st_ino, found.st_size, found.st_mtime_ns)
                return
        with self._gate("renew"):
            standing = self._mine(lease)
            if standing.revision == known:
                standing = self._renewed(lease, standing._replace(unreadable=True), lease.record)
            lease.revision = standing.revision

    def _publishing(self, lease: Lease, inside: bool) -> None:
        with _windows:
            lease.windows += 1 if inside else -1
            if lease.lifeline is not None and lease.pid == os.getpid() and lease.windows == int(inside):
                with told(self._life(lease.runner_id)):
                    lifeline.mark_publishing(lease.lifeline, inside)

    # ---- litter

    def _tidy(self) -> None:
        known = set(self.view.standing) | {waiter.runner_id for waiter in self.view.waiting.values()}
        for folder in ("live", "bells"):
            for runner_id in set(os.listdir(f"{self._root}/{folder}")) - known:
                if not lifeline.is_held(self._life(runner_id)):
                    self._unlink(f"{self._root}/{folder}/{runner_id}")
        before = time.time() - _LITTER_AGE
        for name in os.listdir(f"{self._root}/tmp"):
            path = f"{self._root}/tmp/{name}"
            with suppress(OSError):
                if os.stat(path, follow_symlinks=False).st_mtime < before and not lifeline.is_held(_keeper(path)):
                    os.unlink(path)

    # ---- telling

    def _tell(self, kind: str, runner_id: str, **facts: Any) -> None:
        self._told.append(journal.make(kind, runner_id=runner_id, **facts))

    def _flush(self) -> None:
        for facts in self._book.take_quarantined():
            self._tell("record.quarantined", "", **facts)
        if events := [*iter(lambda: _taken(self._told), None)]:
            journal.append(self.state.events, events)


def _taken(queue: deque[Taken]) -> Taken | None:
    try:
        return queue.popleft()
    except IndexError:
        return None


def _keeper(path: str) -> str:
    """A request's draft lies beside its lifeline, and lives as long."""
    return path.removesuffix(".json")


def _after_fork() -> None:
    """In a forked child: another thread may have been anywhere, and what was owed is the parent's to pay."""
    global _windows
    _windows = threading.Lock()
    reset_after_fork(ledger._door for ledger in _ledgers)
    for ledger in _ledgers:
        ledger._start_anew()


os.register_at_fork(after_in_child=_after_fork)
