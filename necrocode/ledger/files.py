"""The ledger on files: what processes of one machine share."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from necrocode import journal, process
from necrocode.admission import View, Waiter
from necrocode.errors import GateTimeout, StateUnreadable, StateUnusable
from necrocode.event import Event
from necrocode.lease import Lease, RunnerInstance
from necrocode.ledger import lifeline, waiting
from necrocode.ledger.book import Book
from necrocode.ledger.gate import DECIDED, Gate, reset_after_fork
from necrocode.ledger.placing import LEASES, Placing, record_at
from necrocode.ledger.records import Damaged, is_orphaned, read_record, runner_of
from necrocode.ledger.snapshot import Snapshot, take
from necrocode.ledger.terms import changed, read_terms, terms_of
from necrocode.liveness import PUBLISHING_BOUND, Observer, may_publish
from necrocode.statedir import StateDir, refused, to_json, told

Taken = TypeVar("Taken")

_LITTER_AGE = 60.0
"""Seconds after which an unlocked file in tmp/ is taken for what a dead process left."""
_ROUND = 2.0
"""Seconds between two rounds of the watchman in which nothing happened."""
_AGAIN = 0.02
"""Seconds after which the watchman looks again at the soonest."""
_HURRY = 1.0
"""Seconds that the watchman waits for the gate; when it stays shut, the next round will do."""

_ledgers: weakref.WeakSet[FileLedger] = weakref.WeakSet()
_windows = threading.Lock()
"""Guards the counts of open publishing windows."""


class FileLedger(Placing):
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
        seen = self._seen(self._door.peek)
        if patience is not None and not seen.consistent:
            with suppress(GateTimeout), self._gate("look", patience=patience):
                return self._seen(lambda: (True, 0))  # nothing moves in here
        return seen

    def _seen(self, peek: Callable[[], tuple[bool, int]]) -> Snapshot:
        with told(self._root):
            try:
                limit, quotas = read_terms(self.state.root / "config.json")
            except StateUnreadable:
                seen = take(self.state, None, {}, peek)
                return seen._replace(unreadable=("config.json", *seen.unreadable))
            return take(self.state, limit, quotas, peek)

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

    def _keep_watch(self, first: bool) -> float:
        """The watchman's round; seconds until the next. A folder that somebody removed is made again: nobody who waits
        shall lose its place for that."""
        try:
            return self._round(first)
        except (FileNotFoundError, StateUnusable) as error:
            missing = isinstance(error.__cause__ or error, FileNotFoundError)
            if not (missing and os.path.exists(f"{self._root}/VERSION")):
                raise
            self.state.make_folders()
            return _AGAIN

    def _round(self, first: bool) -> float:
        """Without the gate unless there is something to put right.

        In the first, those who wait are not looked at: in a long line everybody would read all of it once."""
        left = [_ROUND, *map(self._seconds_left, os.listdir(f"{self._root}/runners"))]
        for folder in ("fenced",) if first else ("fenced", "queue"):
            names = os.listdir(f"{self._root}/{folder}")
            left += [0.0 for name in names if not lifeline.is_held(self._life(runner_of(folder, name)))]
        seen = self._changes()
        if min(left) <= 0 or self.view.unreadable or not self._is_settled(seen):
            with suppress(GateTimeout), self._gate("watch", patience=_HURRY):
                self._clear_all() if min(left) <= 0 else self._schedule()
                self._watched = seen
        return max(_AGAIN, min(left))

    def _seconds_left(self, file_name: str) -> float:
        """Until this lease may be ended: 0 for a dead holder, and for one that is silent for too long."""
        path, runner_id = f"{self._root}/runners/{file_name}", runner_of("runners", file_name)
        seen = self._judged(runner_id, lambda: record_at(path))
        if not seen.held:
            return 0.0
        left = self._timeout(file_name, path) - (seen.silent or 0.0)
        if left <= 0 and is_orphaned(record_at(path)):
            return _ROUND
        return max(left, PUBLISHING_BOUND - (seen.publishing or 0.0)) if may_publish(seen) else left

    def _timeout(self, file_name: str, path: str) -> float:
        if file_name not in self._timeouts:
            if len(self._timeouts) > 10_000:
                self._timeouts.clear()
            record = record_at(path)
            self._timeouts[file_name] = record.heartbeat_timeout if record else 300.0
        return self._timeouts[file_name]

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
