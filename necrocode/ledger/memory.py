"""The ledger in memory: for the threads and coroutines of one process, and as the reference in tests."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from necrocode import journal
from necrocode.admission import Standing, View, Waiter
from necrocode.errors import GateTimeout
from necrocode.event import Event
from necrocode.lease import Lease, Request, RunnerInstance
from necrocode.ledger.operations import Operations
from necrocode.ledger.records import record_of
from necrocode.ledger.terms import changed, terms_of
from necrocode.liveness import Seen

_TICK = 1.0
"""Seconds after which every waiter looks for itself: a holder may have fallen silent."""


class MemoryLedger(Operations):
    """Same operations, same order, same refusals as on files; what dies with the process needs no proof of death.

    `tell` is called with every event, after the gate."""

    def __init__(
        self,
        limit: int | None = None,
        quotas: dict[str, int] | None = None,
        *,
        tell: Callable[[Event], None] | None = None,
    ) -> None:
        self.view = View(limit, quotas)
        self._lock = threading.RLock()
        self._counter = 0
        self._records: dict[str, RunnerInstance] = {}
        self._handles: dict[str, Lease] = {}
        self._stamps: dict[str, tuple[float, float | None]] = {}
        self._bells: dict[str, threading.Event] = {}
        self._told: deque[Event] = deque()
        self._listener = tell

    def find(self, runner_id: str) -> Lease | None:
        return self._handles.get(runner_id)

    def configure(
        self,
        *,
        limit: int | str | None = "keep",
        quotas: Mapping[str, int] | None = None,
        quota: Mapping[str, int | None] | None = None,
    ) -> None:
        """Change the terms; holders stay, those who now fit are admitted at once. `quotas` replaces all of them,
        `quota` changes those that it names (None removes one). Raises ConfigError."""
        with self._gate("configure"):
            known = self.view.limit if limit == "keep" else limit
            terms = terms_of(known, changed(self.view.quotas if quotas is None else quotas, quota))
            self.view.limit, self.view.quotas = terms["limit"], terms["quotas"]
            self._schedule()

    @contextmanager
    def _gate(self, operation: str, *, patience: float | None = None) -> Iterator[bool]:
        if not self._lock.acquire(timeout=-1 if patience is None else patience):
            raise GateTimeout("memory", patience or 0.0, operation)
        try:
            yield False
        finally:
            self._lock.release()
            self._flush()

    def _next(self) -> int:
        self._counter += 1
        return self._counter

    def _open(self, request: Request) -> Lease:
        return Lease(record_of(request))

    def _prepare(self, lease: Lease, *, wait: bool) -> None:
        """Nothing to write."""

    def _show(self, lease: Lease) -> None:
        self._stamps[lease.runner_id] = (time.monotonic(), None)
        self._bells[lease.runner_id] = threading.Event()
        self._handles[lease.runner_id] = lease

    def _hide(self, lease: Lease) -> None:
        """Closing does it."""

    def _bury(self, runner_id: str) -> None:
        """What is dead here was closed before."""

    def _owns(self, lease: Lease) -> bool:
        return self._handles.get(lease.runner_id) is lease

    def _admit(self, lease: Lease, token: int) -> None:
        lease.token, lease.record = token, lease.record._replace(token=token)
        self._stand(lease.record, token)

    def _stand(self, record: RunnerInstance, token: int, revision: int = 0) -> Standing:
        user = record.holder.user if record.holder else ""
        standing = Standing(
            record.runner_id,
            record.claims,
            token,
            revision,
            record.spec_name,
            user,
            record.slot,
            timeout=record.heartbeat_timeout,
        )
        self._records[record.runner_id] = record
        self.view.stand(standing)
        return standing

    def _enqueue(self, lease: Lease, waiter: Waiter) -> None:
        self._records.setdefault(lease.runner_id, lease.record)
        self._bells[lease.runner_id].clear()
        self.view.waiting[waiter.key] = waiter

    def _grant(self, waiter: Waiter, token: int) -> None:
        del self.view.waiting[waiter.key]
        self._stand(self._records[waiter.runner_id]._replace(token=token), token)

    def _rewrite(self, standing: Standing, record: RunnerInstance) -> Standing:
        return self._stand(record, standing.token, standing.revision + 1)

    def _remove(self, standing: Standing) -> None:
        self.view.leave(standing.runner_id)
        self._records.pop(standing.runner_id, None)

    def _revoke(self, standing: Standing) -> None:
        self.view.stand(standing._replace(fenced=True))

    def _drop(self, waiter: Waiter) -> None:
        del self.view.waiting[waiter.key]
        if waiter.runner_id not in self.view.standing:
            self._records.pop(waiter.runner_id, None)

    def _record(self, runner_id: str) -> RunnerInstance | None:
        return self._records.get(runner_id)

    def _look(self, runner_id: str) -> Seen:
        if runner_id not in self._stamps:
            return Seen(held=False)
        now, (stamp, since) = time.monotonic(), self._stamps[runner_id]
        return Seen(held=True, silent=now - stamp, publishing=None if since is None else now - since)

    def _wake(self, runner_id: str) -> None:
        if bell := self._bells.get(runner_id):
            bell.set()

    def _sleep(self, lease: Lease, waiter: Waiter, deadline: float | None) -> bool:
        bell = self._bells[lease.runner_id]
        tick = min(_TICK, lease.record.heartbeat_timeout / 3)
        while waiter.key in self.view.waiting:
            with self._lock:
                if self._owns(lease):
                    self._stamps[lease.runner_id] = (time.monotonic(), self._stamps[lease.runner_id][1])
            left = tick if deadline is None else min(tick, deadline - time.monotonic())
            if left <= 0:
                return False
            if not bell.wait(left):
                self.sweep()  # a holder may have fallen silent
            bell.clear()
        return True

    def _close(self, lease: Lease) -> None:
        if self._handles.get(lease.runner_id) is lease:
            del self._handles[lease.runner_id], self._stamps[lease.runner_id], self._bells[lease.runner_id]

    def _publishing(self, lease: Lease, inside: bool) -> None:
        with self._lock:
            lease.windows += 1 if inside else -1
            if self._owns(lease) and lease.windows == int(inside):
                now = time.monotonic()
                self._stamps[lease.runner_id] = (now, now if inside else None)

    def _beat(self, lease: Lease) -> None:
        with self._lock:
            standing = self._mine(lease)
            lease.revision = standing.revision
            self._stamps[lease.runner_id] = (time.monotonic(), self._stamps[lease.runner_id][1])

    def _tell(self, kind: str, runner_id: str, **facts: Any) -> None:
        self._told.append(journal.make(kind, runner_id=runner_id, **facts))

    def _flush(self) -> None:
        while self._told:
            try:
                event = self._told.popleft()
            except IndexError:
                return  # another thread was quicker
            if self._listener:
                self._listener(event)
