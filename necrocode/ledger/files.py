"""The ledger on files: what processes of one machine share."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from necrocode import journal, liveness, process
from necrocode.admission import Standing, View, Waiter
from necrocode.errors import Deadlock, LeaseLost, Refused
from necrocode.event import Event
from necrocode.lease import Lease, Request, RunnerInstance
from necrocode.ledger import lifeline, waiting
from necrocode.ledger.gate import Gate, reset_after_fork
from necrocode.ledger.operations import Operations
from necrocode.ledger.records import (
    _BROKEN,
    Book,
    LeaseName,
    QueueName,
    parse_record,
    read_terms,
    record_of,
    standing_of,
)
from necrocode.ledger.snapshot import Snapshot, take
from necrocode.liveness import Observer, Seen
from necrocode.statedir import StateDir, put, read, to_json, told

_LITTER_AGE = 60.0
"""Seconds after which an unlocked file in tmp/ is taken for what a dead process left."""

_leases: dict[tuple[str, str], Lease] = {}
"""Every lease of this process by (state directory, runner id): leases belong to the process, not to an object."""
_ledgers: weakref.WeakSet[FileLedger] = weakref.WeakSet()


class FileLedger(Operations):
    """The ledger of one state directory. Cheap to make; any number of processes and threads may use one each."""

    def __init__(
        self, state: StateDir | str | os.PathLike[str] | None = None, *, patience: float = 10.0, on_stale: str = "fence"
    ) -> None:
        self.state = state if isinstance(state, StateDir) else StateDir(state)
        self.on_stale = on_stale
        self._door = Gate(self.state, patience)
        self._book = Book(self.state, lambda runner_id: lifeline.is_held(self._life(runner_id)))
        self._observer = Observer()
        self._told: list[Event] = []
        self._to_wake: list[str] = []
        self._litter: list[Path] = []
        self._to_kill: list[RunnerInstance] = []
        self._requests: dict[int, tuple[Path, Path]] = {}
        _ledgers.add(self)

    @property
    def view(self) -> View:  # type: ignore[override]
        return self._book.view

    # ---- questions

    def snapshot(self) -> Snapshot:
        """Everybody who stands and waits, without the gate and without repairing anything."""
        limit, quotas = read_terms(self.state.root / "config.json")
        return take(self.state, limit, quotas, self._door.peek)

    def watch(self, every: float = 0.25) -> Iterator[Snapshot]:
        """A snapshot now, and again whenever something has changed; looks every `every` seconds."""
        last: tuple[Any, ...] | None = None
        while True:
            now = (
                self._door.peek(),
                *(os.stat(self.state.root / f).st_mtime_ns for f in ("runners", "queue", "fenced")),
            )
            if now != last:
                yield self.snapshot()
                last = now
            time.sleep(every)

    def find(self, runner_id: str) -> Lease | None:
        """The lease of that id that this process holds, whichever object registered it."""
        lease = _leases.get((str(self.state.root), runner_id))
        return lease if lease and lease.pid == os.getpid() else None

    def configure(self, *, limit: int | str | None = "keep", quotas: dict[str, int] | None = None) -> None:
        """Change the host's terms; holders stay, those who now fit are admitted at once."""
        with self._gate("configure"):
            known, known_quotas = read_terms(self.state.root / "config.json")
            chosen = known if isinstance(limit, str) else limit
            Request("terms", limit=chosen).checked()
            terms = {"schema": 1, "limit": chosen, "quotas": known_quotas if quotas is None else quotas}
            self.state.write(self.state.root / "config.json", to_json(terms), durable=True)
            self._book.sync()
            self._schedule()

    def has_waiters(self) -> bool:
        return bool(os.listdir(self.state.queue))

    # ---- the gate

    @contextmanager
    def _gate(self, operation: str, *, patience: float | None = None) -> Iterator[bool]:
        try:
            with self._door.held(operation, patience=patience) as gate:
                try:
                    yield self._come_in(gate)
                finally:
                    self._ring()
        except (Refused, LeaseLost, Deadlock):
            raise
        except BaseException:
            self._book.forget()  # a move was cut short: what we believe may differ from the disk
            raise
        finally:
            self._after_gate()

    def _come_in(self, gate: Gate) -> bool:
        self._book.sync()
        for facts in self._book.quarantined:
            self._tell("record.quarantined", "", **facts)
        self._book.quarantined.clear()
        if gate.crashed:
            # The last one in died here: it may have owed somebody a grant, or a ring of the bell.
            self._schedule()
            waiting.ring_all(self.state)
        return gate.crashed

    def _ring(self) -> None:
        # Before the gate is marked free, so that a death here is noticed and made good by the next one in.
        for runner_id in self._to_wake:
            waiting.ring(self.state, runner_id)
        self._to_wake.clear()

    def _after_gate(self) -> None:
        litter, self._litter = self._litter, []
        for path in litter:
            with suppress(OSError):
                os.unlink(path)
        doomed, self._to_kill = self._to_kill, []
        for record in doomed:
            if record.holder:
                process.kill_holder(record.holder)
        self._flush()

    def _next(self) -> int:
        return self._door.next()

    # ---- moves

    def _open(self, request: Request, *, wait: bool) -> Lease:
        with told(self.state.root):
            lease = Lease(record_of(request))
            lease.pid = os.getpid()
            lease.lifeline, life = lifeline.create(self.state, request.runner_id, tree=request.tree)
            draft = self._draft(request.runner_id)
            self._requests[id(lease)] = (life, draft)
            try:
                put(draft, to_json(lease.record.to_dict()), mode=self.state.file_mode)
                lease.bell = waiting.make_bell(self.state, request.runner_id) if wait else None
            except BaseException:
                self._close(lease)
                raise
            return lease

    def _draft(self, runner_id: str) -> Path:
        return self.state.tmp / f"{runner_id}.{os.getpid()}.{threading.get_ident()}.{os.urandom(3).hex()}.json"

    def _show(self, lease: Lease) -> None:
        life, draft = self._requests[id(lease)]
        os.rename(life, self._life(lease.runner_id))
        self._requests[id(lease)] = (self._life(lease.runner_id), draft)

    def _admit(self, lease: Lease, token: int) -> None:
        self._rename_in(self._requests[id(lease)][1], LeaseName(lease.runner_id, token, 0), lease.record)
        lease.token, lease.revision = token, 0
        lease.record = lease.record._replace(token=token)
        _leases[str(self.state.root), lease.runner_id] = lease

    def _rename_in(self, source: Path, name: LeaseName, record: RunnerInstance) -> Standing:
        os.rename(source, self.state.runners / str(name))
        standing = standing_of(name, record, fenced=False)
        self._book.add_lease("runners", name, standing)
        return standing

    def _enqueue(self, lease: Lease, waiter: Waiter) -> None:
        path = self._entry(waiter)
        if waiter.adding:
            wish = lease.record._replace(claims=waiter.wish.claims)
            draft = self._draft(lease.runner_id)
            put(draft, to_json(wish.to_dict()), mode=self.state.file_mode)
            lease.bell = waiting.make_bell(self.state, lease.runner_id)
        else:
            draft = self._requests[id(lease)][1]
        os.rename(draft, path)
        self._book.add_waiter(waiter)

    def _grant(self, waiter: Waiter, token: int) -> None:
        record = self._record(waiter.runner_id)
        if record is None:
            return self._drop(waiter)
        self._rename_in(self._entry(waiter), LeaseName(waiter.runner_id, token, 0), record)
        self._book.drop_waiter(waiter)
        return None

    def _rewrite(self, standing: Standing, record: RunnerInstance) -> Standing:
        old = LeaseName(standing.runner_id, standing.token, standing.revision)
        draft = self._draft(standing.runner_id)
        try:
            put(draft, to_json(record._replace(token=standing.token).to_dict()), mode=self.state.file_mode)
            renewed = self._rename_in(draft, old._replace(revision=old.revision + 1), record)
        except BaseException:
            self._litter.append(draft)
            raise
        os.unlink(self.state.runners / str(old))
        self._book.drop_lease("runners", old)
        return renewed

    def _remove(self, standing: Standing) -> None:
        name = LeaseName(standing.runner_id, standing.token, standing.revision)
        folder = "fenced" if standing.fenced else "runners"
        target = self.state.quarantine_folder if standing.unreadable else self.state.tmp
        gone = target / f"done.{name}"
        os.rename(self.state.root / folder / str(name), gone)
        self._book.drop_lease(folder, name)
        self.view.leave(standing.runner_id)
        if not standing.unreadable:
            self._litter.append(gone)
        if not lifeline.is_held(self._life(standing.runner_id)):
            self._litter += [self._life(standing.runner_id), self.state.bells / standing.runner_id]

    def _revoke(self, standing: Standing) -> None:
        name = LeaseName(standing.runner_id, standing.token, standing.revision)
        record = self._record(standing.runner_id)
        os.rename(self.state.runners / str(name), self.state.fenced / str(name))
        self._book.drop_lease("runners", name)
        self._book.add_lease("fenced", name, standing._replace(fenced=True))
        if self.on_stale == "kill" and record:
            self._to_kill.append(record)

    def _drop(self, waiter: Waiter) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._entry(waiter))
        self._book.drop_waiter(waiter)
        if waiter.runner_id not in self.view.standing and not lifeline.is_held(self._life(waiter.runner_id)):
            self._litter += [self._life(waiter.runner_id), self.state.bells / waiter.runner_id]

    # ---- looks

    def _record(self, runner_id: str) -> RunnerInstance | None:
        standing, waiter = self.view.standing.get(runner_id), self.view.waiter(runner_id, adding=False)
        if standing:
            folder = "fenced" if standing.fenced else "runners"
            path = self.state.root / folder / str(LeaseName(runner_id, standing.token, standing.revision))
        elif waiter:
            path = self._entry(waiter)
        else:
            return None
        try:
            return parse_record(read(path))
        except (OSError, *_BROKEN):
            return None

    def _look(self, runner_id: str) -> Seen:
        seen = lifeline.look(self._life(runner_id), time.monotonic())
        record_namespace = self._foreign_clock(runner_id) if seen.held else False
        if not record_namespace:
            return seen
        stamped = lifeline.last_stamp(self._life(runner_id))
        silent = self._observer.silent(runner_id, stamped[0], time.monotonic()) if stamped else None
        return Seen(seen.held, silent, None)

    def _foreign_clock(self, runner_id: str) -> bool:
        """Whether the holder lives in another time namespace: its monotonic clock says nothing to us then."""
        if process.identity().time_namespace == 0 or (silent := lifeline.last_stamp(self._life(runner_id))) is None:
            return False
        if abs(time.monotonic() - silent[0]) < 60.0:
            return False  # close enough to be our own clock; only an old or a future stamp is worth a read
        record = self._record(runner_id)
        return bool(record and record.holder and record.holder.time_namespace != process.identity().time_namespace)

    def _life(self, runner_id: str) -> Path:
        return self.state.live / runner_id

    def _entry(self, waiter: Waiter) -> Path:
        return self.state.queue / str(QueueName.of(waiter))

    # ---- waiting

    def _wake(self, runner_id: str) -> None:
        self._to_wake.append(runner_id)

    def _sleep(self, lease: Lease, waiter: Waiter, deadline: float | None) -> bool:
        with told(self.state.root):
            wait = waiting.Wait(self.state, lease.runner_id, lease.bell, self._own(lease), self._entry(waiter))
            gone = wait.until_gone(deadline, self._keep_watch)
        if gone:
            self._close_bell(lease)
        return gone

    def _keep_watch(self) -> float:
        """The watchman's round, without the gate unless there is something to put right; seconds until the next."""
        now, tick, undone = time.monotonic(), 2.0, not self._door.peek()[0]
        for folder in ("runners", "fenced", "queue"):
            for name in os.listdir(self.state.root / folder):
                seen = lifeline.look(self._life(_runner_of(folder, name)), now)
                timeout = self._timeout(_runner_of(folder, name)) if folder == "runners" else 0.0
                undone |= not seen.held or (folder == "runners" and liveness.may_fence(seen, timeout))
                tick = min(tick, max(0.05, timeout / 4)) if timeout else tick
        if undone:
            self.sweep()
        return tick

    def _timeout(self, runner_id: str) -> float:
        standing = self._book.view.standing.get(runner_id)
        return standing.timeout if standing else 300.0

    def _close_bell(self, lease: Lease) -> None:
        bell, lease.bell = lease.bell, None
        if bell is not None:
            waiting.close_bell(self.state, lease.runner_id, bell)

    # ---- the handle

    def _own(self, lease: Lease) -> int:
        if lease.lifeline is None or lease.pid != os.getpid():
            raise LeaseLost(lease.runner_id, ours=lease.token, found=None)
        return lease.lifeline

    def _beat(self, lease: Lease) -> None:
        with told(self._life(lease.runner_id)):
            lifeline.stamp(self._own(lease))
            try:
                os.stat(self.state.runners / str(LeaseName(lease.runner_id, lease.token or 0, lease.revision)))
            except FileNotFoundError:
                self._look_again(lease)

    def _look_again(self, lease: Lease) -> None:
        """Our record has another name now: a later revision of ours, or none."""
        found: int | None = None
        for file_name in os.listdir(self.state.runners):
            with suppress(ValueError):
                name = LeaseName.parse(file_name)
                if name.runner_id == lease.runner_id:
                    found = name.token
                    if name.token == lease.token:
                        lease.revision = name.revision
                        return
        raise LeaseLost(lease.runner_id, ours=lease.token, found=found)

    def _publishing(self, lease: Lease, inside: bool) -> None:
        if not inside and lease.lifeline is None:
            return
        lifeline.mark_publishing(self._own(lease), inside)

    def _close(self, lease: Lease) -> None:
        life, draft = self._requests.pop(id(lease), (self._life(lease.runner_id), None))
        if draft:
            with suppress(OSError):
                os.unlink(draft)
        self._close_bell(lease)
        key = (str(self.state.root), lease.runner_id)
        if _leases.get(key) is lease:
            del _leases[key]
        descriptor, lease.lifeline = lease.lifeline, None
        if descriptor is not None:
            with suppress(OSError):
                if os.fstat(descriptor).st_ino == os.stat(life).st_ino:
                    os.unlink(life)
            lifeline.close(descriptor)

    # ---- litter

    def _tidy(self) -> None:
        known = set(self.view.standing) | {waiter.runner_id for waiter in self.view.waiting.values()}
        for folder in ("live", "bells"):
            for runner_id in os.listdir(self.state.root / folder):
                if runner_id not in known and not lifeline.is_held(self._life(runner_id)):
                    self._litter.append(self.state.root / folder / runner_id)
        before = time.time() - _LITTER_AGE
        for name in os.listdir(self.state.tmp):
            path = self.state.tmp / name
            with suppress(OSError):
                if os.stat(path).st_mtime < before and not lifeline.is_held(path):
                    self._litter.append(path)

    # ---- telling

    def _tell(self, kind: str, runner_id: str, **facts: Any) -> None:
        fixed = {key: facts.pop(key) for key in ("task_id", "spec_name", "run_id") if key in facts}
        self._told.append(journal.make(kind, runner_id=runner_id, **fixed, **facts))

    def _flush(self) -> None:
        told_now, self._told = self._told, []
        if told_now:
            journal.append(self.state.events, told_now)


def _runner_of(folder: str, name: str) -> str:
    try:
        return QueueName.parse(name).runner_id if folder == "queue" else LeaseName.parse(name).runner_id
    except ValueError:
        return ""


os.register_at_fork(after_in_child=lambda: reset_after_fork(ledger._door for ledger in _ledgers))
