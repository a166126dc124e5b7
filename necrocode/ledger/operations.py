"""The operations of the protocol, written once, over whatever stores the state.

Each is: enter the gate, look, decide (admission), make moves that are each whole by themselves, leave, wake whom
it concerns. A store (files, memory) supplies the moves; nothing here knows a file.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from necrocode import admission, liveness
from necrocode.admission import Obstacle, Standing, View, Waiter, Wish
from necrocode.claim import Claim
from necrocode.errors import (
    Deadlock,
    LeaseLost,
    NecrocodeError,
    Refused,
    ResourceConflictError,
    ResourceLimitError,
)
from necrocode.lease import Holder, Lease, Request, RunnerInstance
from necrocode.liveness import Seen

_TOLD_IN_FULL = 32
"""Blockers of one refusal whose records are read for their facts; of the rest the id and token are told."""


class Operations(ABC):
    """Register, claim, drop, renew, release, publish, fence, sweep. Safe for threads; each call is atomic."""

    view: View

    # ---- what a store supplies

    @abstractmethod
    def _gate(self, operation: str, *, patience: float | None = None) -> AbstractContextManager[bool]:
        """Enter, bring `view` up to date; the value says whether the last one in died inside."""

    @abstractmethod
    def _next(self) -> int: ...

    def _check_terms(self) -> None:
        """Raise when the host's terms cannot be read. Only admission needs them."""

    @abstractmethod
    def _open(self, request: Request) -> Lease:
        """A handle whose lifeline is locked but not visible yet."""

    @abstractmethod
    def _prepare(self, lease: Lease, *, wait: bool) -> None:
        """Write the request to where one rename puts it in place, and make the bell if it may have to wait."""

    @abstractmethod
    def _show(self, lease: Lease) -> None:
        """Make the lifeline visible. Before any record of this id is."""

    @abstractmethod
    def _hide(self, lease: Lease) -> None:
        """The reverse, at the end of the gate: only inside is it certain whose name that is, and the death of a
        process whose lifeline is hidden goes unnoticed, so everybody has to be served first."""

    @abstractmethod
    def _bury(self, runner_id: str) -> None:
        """Remove the lifeline and bell that a dead process left."""

    @abstractmethod
    def _owns(self, lease: Lease) -> bool:
        """Whether the visible lifeline of this id is this handle's, and the handle this process's."""

    @abstractmethod
    def _admit(self, lease: Lease, token: int) -> None: ...

    @abstractmethod
    def _enqueue(self, lease: Lease, waiter: Waiter) -> None: ...

    @abstractmethod
    def _grant(self, waiter: Waiter, token: int) -> None: ...

    @abstractmethod
    def _rewrite(self, standing: Standing, record: RunnerInstance) -> Standing: ...

    @abstractmethod
    def _remove(self, standing: Standing) -> None: ...

    @abstractmethod
    def _revoke(self, standing: Standing) -> None: ...

    @abstractmethod
    def _drop(self, waiter: Waiter) -> None: ...

    @abstractmethod
    def _record(self, runner_id: str) -> RunnerInstance | None:
        """The record of a lease or registration, for its facts."""

    @abstractmethod
    def _look(self, runner_id: str) -> Seen: ...

    @abstractmethod
    def _wake(self, runner_id: str) -> None: ...

    @abstractmethod
    def _sleep(self, lease: Lease, waiter: Waiter, deadline: float | None) -> bool:
        """Until the waiter has left the queue (True) or the deadline is over (False)."""

    @abstractmethod
    def _close(self, lease: Lease) -> None:
        """Let go of everything the handle holds outside the records. Never raises."""

    @abstractmethod
    def _publishing(self, lease: Lease, inside: bool) -> None: ...

    @abstractmethod
    def _beat(self, lease: Lease) -> None:
        """Stamp, and notice without the gate when the record has changed or gone (LeaseLost)."""

    @abstractmethod
    def _tell(self, kind: str, runner_id: str, **facts: Any) -> None: ...

    # ---- operations

    def register(
        self,
        request: Request,
        *,
        wait: bool = False,
        timeout: float | None = None,
        on_wait: Callable[[Refused], None] | None = None,
    ) -> Lease:
        """Grant all of the request's claims and one slot, or nothing.

        With `wait` it queues, strictly in order of priority and arrival, for at most `timeout` seconds (None: for
        ever); `on_wait` is told what would have been the refusal, before the wait begins, and may raise to prevent
        it. Raises ResourceLimitError or ResourceConflictError, both naming reason and blockers, ConfigError for
        a request that cannot be meant, StateUnreadable when the host's limit cannot be read, and StateUnusable;
        nothing of the request is left then."""
        request.checked()
        started = time.monotonic()
        deadline = None if timeout is None else started + timeout
        lease = self._open(request)
        try:
            while True:
                self._prepare(lease, wait=wait)
                with self._gate("register"):
                    waiter, why = self._arrive(lease, request, wait)
                if waiter is None:
                    return lease
                if why and on_wait:
                    on_wait(why)
                if not self._sleep(lease, waiter, deadline):
                    self._give_up(waiter, time.monotonic() - started)
                if self._take_over(lease, time.monotonic() - started):
                    return lease
        except BaseException:
            self._abandon(lease)
            raise

    def claim(
        self,
        lease: Lease,
        claims: Iterable[Claim] = (),
        *,
        drop: Iterable[Claim] = (),
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Add claims to a lease, all or none, and give back those of `drop`, in one step.

        Without `wait` a conflict raises ResourceConflictError. With it, the lease gives back at once, and waits
        ahead of all registrations; Deadlock is raised instead of starting a wait that could never end. One wait
        for each lease at a time. Raises LeaseLost."""
        wanted, dropped, before = tuple(dict.fromkeys(claims)), frozenset(drop), frozenset(lease.claims)
        started = time.monotonic()
        deadline = None if timeout is None else started + timeout
        try:
            while True:
                with self._gate("claim"):
                    waiter = self._extend(lease, wanted, dropped, wait)
                if waiter is None:
                    return
                if not self._sleep(lease, waiter, deadline):
                    self._give_up(waiter, time.monotonic() - started)
                if self._refresh(lease, waiter.wish.claims, time.monotonic() - started):
                    return
        except (Refused, Deadlock, LeaseLost):
            raise
        except BaseException:
            self._stop_waiting(lease, frozenset(wanted) - before)
            raise

    def drop(self, lease: Lease, claims: Iterable[Claim]) -> None:
        """Give claims back; others may have them at once. Raises LeaseLost."""
        self.claim(lease, drop=claims)

    def renew(self, lease: Lease) -> None:
        """The heartbeat, without the gate: some microseconds. Raises LeaseLost when the lease is no longer ours.

        A record that somebody else damaged or changed is published anew, from memory."""
        self._beat(lease)

    def release(self, lease: Lease) -> None:
        """End the lease; whoever waited for what it held is served in the same step. Raises LeaseLost when it was
        already lost; the handle is closed either way."""
        try:
            with self._gate("release"):
                standing = self.view.standing.get(lease.runner_id)
                if standing is None or standing.token != lease.token or not self._owns(lease):
                    raise LeaseLost(lease.runner_id, ours=lease.token, found=standing.token if standing else None)
                self._drop_all(lease.runner_id)
                self._wake(lease.runner_id)  # another thread may wait for more
                self._remove(standing)
                self._tell_released(lease)
                self._schedule()
                self._hide(lease)
                if standing.fenced:
                    raise LeaseLost(lease.runner_id, ours=lease.token)
        finally:
            self._close(lease)

    def withdraw(self, runner_id: str) -> bool:
        """Take the waiting registration of this id out of the queue, from another thread than the one that waits.

        That one asks again, so its `on_wait` has to raise then. False when nobody of that id waits."""
        with self._gate("withdraw"):
            waiter = self.view.waiter(runner_id, adding=False)
            if waiter is None:
                return False
            self._drop(waiter)
            self._tell("lease.abandoned", runner_id, reason="cancelled")
            self._schedule()
            self._wake_first()
            self._wake(runner_id)
            return True

    @contextmanager
    def publishing(self, lease: Lease) -> Iterator[int]:
        """A window in which the lease cannot be fenced (for 60 s at most); the value is its token.

        For moving refs, pushing and writing results, nothing longer. Raises LeaseLost instead of opening."""
        with self._gate("publish"):
            self._mine(lease)
            self._publishing(lease, True)
        started = time.monotonic()
        try:
            yield lease.token or 0
        finally:
            self._publishing(lease, False)
            self._tell("lease.published", lease.runner_id, token=lease.token, seconds=time.monotonic() - started)
            self._flush()

    def sweep(self, *, patience: float | None = None) -> int:
        """Remove what the dead left, fence the silent, serve the waiting; the number of leases and waiters ended.

        Raises GateTimeout when the gate stays shut for `patience` seconds."""
        with self._gate("sweep", patience=patience):
            ended = self._clear_all()
            self._tidy()
        return ended

    def fence(self, runner_id: str) -> bool:
        """Revoke a lease now, whatever its heartbeat says; its workspace and branch stay held until it is dead.

        False when there is nothing to revoke, and inside a publishing window (for 60 s at most)."""
        with self._gate("fence"):
            standing = self.view.standing.get(runner_id)
            if standing is None or standing.fenced:
                return False
            seen = self._look(runner_id)
            if not seen.held:
                self._reap(standing)
            elif liveness.may_publish(seen):
                return False
            else:
                self._fence(standing, seen.silent)
            self._schedule()
            return True

    # ---- steps, all inside the gate

    def _arrive(self, lease: Lease, request: Request, wait: bool) -> tuple[Waiter | None, Refused | None]:
        self._refuse_duplicate(request.runner_id)
        if request.slot:
            self._check_terms()
        wish = Wish(request.claims, request.spec_name, _user(lease))
        waiter = Waiter(
            request.runner_id, self._next(), request.priority,
            needs_slot=request.slot, limit=request.limit, read=lambda: wish,
        )  # fmt: skip
        found = self._settle(waiter)
        if found is None and self.view.waiting:
            # Somebody may have changed files by hand: a newcomer must not pass those who could be served.
            self._schedule()
            found = self._settle(waiter)
        if found:
            self._tell_obstacle("lease.queued" if wait else "lease.refused", waiter, found)
            if not wait:
                raise self._refusal(waiter, found)
            self._show(lease)
            self._enqueue(lease, waiter)
            return waiter, self._refusal(waiter, found)
        self._show(lease)
        self._admit(lease, waiter.ticket)
        self._enter(lease)
        self._tell_granted(lease.record, waiter.ticket, 0.0)
        return None, None

    def _refuse_duplicate(self, runner_id: str) -> None:
        standing, waiter = self.view.standing.get(runner_id), self.view.waiter(runner_id)
        if not standing and not waiter:
            return
        if self._look(runner_id).held:
            raise ResourceConflictError(runner_id, [self._holder(runner_id, None)], reason="duplicate")
        if standing:
            self._reap(standing)
        self._drop_all(runner_id)
        self._schedule()  # those who waited for what the dead one held come first

    def _settle(self, waiter: Waiter) -> Obstacle | None:
        """What is in the way once everybody who is dead or silent has been put out of it."""
        while found := admission.obstacle(self.view, waiter):
            # Behind a waiter somebody else's dead holder may be the cause: look at all of them then.
            suspects = set(found.blockers) if found.reason != "queue" else {*self.view.standing, *found.blockers}
            if not self._clear(suspects):
                return found
            self._schedule()
        return None

    def _clear(self, suspects: set[str]) -> int:
        ended = sum(self._end_if_gone(self.view.standing[one]) for one in sorted(suspects) if one in self.view.standing)
        waiting = [waiter for waiter in self.view.waiting.values() if waiter.runner_id in suspects]
        return ended + sum(map(self._drop_if_gone, waiting))

    def _clear_all(self) -> int:
        ended = sum(map(self._end_if_gone, list(self.view.standing.values())))
        ended += sum(map(self._drop_if_gone, list(self.view.waiting.values())))
        self._schedule()
        return ended

    def _end_if_gone(self, standing: Standing) -> bool:
        seen = self._look(standing.runner_id)
        if not seen.held:
            self._reap(standing)
        elif not standing.fenced and liveness.may_fence(seen, standing.timeout):
            self._fence(standing, seen.silent)
        else:
            return False
        return True

    def _drop_if_gone(self, waiter: Waiter) -> bool:
        if self._look(waiter.runner_id).held:
            return False
        self._drop(waiter)
        self._tell("lease.abandoned", waiter.runner_id, reason="dead")
        if waiter.runner_id not in self.view.standing:
            self._bury(waiter.runner_id)
        return True

    def _drop_all(self, runner_id: str) -> None:
        for waiter in [waiter for waiter in self.view.waiting.values() if waiter.runner_id == runner_id]:
            self._drop(waiter)

    def _reap(self, standing: Standing) -> None:
        record = self._record(standing.runner_id)
        self._drop_all(standing.runner_id)
        self._remove(standing)
        self._bury(standing.runner_id)
        self._tell("lease.reaped", standing.runner_id, token=standing.token, live=self.view.live, **_whom(record))

    def _fence(self, standing: Standing, silent: float | None) -> None:
        record = self._record(standing.runner_id)
        self._revoke(standing)
        self._drop_all(standing.runner_id)
        self._wake(standing.runner_id)
        facts = {"token": standing.token, "silent": silent, "live": self.view.live}
        self._tell("lease.fenced", standing.runner_id, **facts, **_whom(record))

    def _schedule(self) -> None:
        """Give to those in the queue what they can have now."""
        if not self.view.waiting:
            return
        head = min(self.view.waiting)
        for waiter in admission.grantable(self.view):
            if self._drop_if_gone(waiter):
                continue
            if waiter.adding:
                self._grant_more(waiter)
            else:
                self._grant(waiter, self._next())
            self._wake(waiter.runner_id)
        if self.view.waiting and min(self.view.waiting) != head:
            self._wake_first()

    def _wake_first(self) -> None:
        # Whoever is first in line now has to watch over the holders.
        if self.view.waiting:
            self._wake(self.view.waiting[min(self.view.waiting)].runner_id)

    def _grant_more(self, waiter: Waiter) -> None:
        standing, record = self.view.standing.get(waiter.runner_id), self._record(waiter.runner_id)
        if standing and record and not standing.fenced:
            # The claims go into the record before the entry goes: a death between leaves an entry that asks for
            # what it has, which the next pass drops.
            missing = tuple(claim for claim in waiter.wish.claims if claim not in standing.claims)
            if missing:
                self._rewrite(standing, record.with_claims(standing.claims + missing))
        self._drop(waiter)

    def _extend(self, lease: Lease, wanted: tuple[Claim, ...], dropped: frozenset[Claim], wait: bool) -> Waiter | None:
        standing = self._mine(lease)
        wish = Wish(tuple(claim for claim in wanted if claim not in standing.claims))
        waiter = Waiter(lease.runner_id, self._next() if wish.claims else 0, adding=True, read=lambda: wish)
        found = self._settle(waiter) if wish.claims else None
        if found and not wait:
            self._tell_obstacle("lease.refused", waiter, found)
            raise self._refusal(waiter, found)
        standing = self._apply(lease, self._mine(lease), () if found else wish.claims, dropped)
        if found is None:
            return None
        if self.view.waiter(lease.runner_id, adding=True):
            raise ResourceConflictError(lease.runner_id, [self._holder(lease.runner_id, None)], reason="duplicate")
        if circle := admission.cycle(self.view, waiter):
            self._tell("deadlock.found", lease.runner_id, cycle=circle)
            raise Deadlock(circle)
        self._tell_obstacle("lease.queued", waiter, found)
        self._enqueue(lease, waiter)
        self._schedule()  # what was given back may have been all that was in the way
        return waiter

    def _apply(
        self, lease: Lease, standing: Standing, wanted: tuple[Claim, ...], dropped: frozenset[Claim]
    ) -> Standing:
        kept = tuple(claim for claim in standing.claims if claim not in dropped) + wanted
        if kept == standing.claims:
            return standing
        standing = self._renewed(lease, standing, lease.record.with_claims(kept))
        if wanted:
            self._tell("lease.extended", lease.runner_id, claims=[str(claim) for claim in wanted])
        if dropped:
            self._tell("lease.reduced", lease.runner_id, claims=[str(claim) for claim in dropped])
            self._schedule()
        return standing

    def _renewed(self, lease: Lease, standing: Standing, record: RunnerInstance) -> Standing:
        """Publish the next revision of our own record."""
        record = record._replace(token=lease.token, last_heartbeat=datetime.now(UTC))
        standing = self._rewrite(standing, record)
        lease.revision, lease.record = standing.revision, record
        return standing

    def _mine(self, lease: Lease) -> Standing:
        standing = self.view.standing.get(lease.runner_id)
        if standing is None or standing.fenced or standing.token != lease.token or not self._owns(lease):
            raise LeaseLost(lease.runner_id, ours=lease.token, found=standing.token if standing else None)
        if standing.unreadable:
            standing = self._renewed(lease, standing, lease.record)
            self._schedule()
        return standing

    # ---- steps around waiting, each entering the gate itself

    def _take_over(self, lease: Lease, waited: float) -> bool:
        """A granted waiter writes into its record what belongs to the grant. False when it was not granted: somebody
        damaged or removed its entry, so it has to ask again."""
        with self._gate("take over"):
            standing = self.view.standing.get(lease.runner_id)
            if standing is None:
                return False
            if standing.fenced or not self._owns(lease):
                raise LeaseLost(lease.runner_id, ours=lease.token, found=standing.token)
            lease.token = standing.token
            self._enter(lease)
            self._renewed(lease, standing, lease.record._replace(waited_seconds=waited, start_time=datetime.now(UTC)))
            self._tell_granted(lease.record, standing.token, waited)
            return True

    def _refresh(self, lease: Lease, wanted: tuple[Claim, ...], waited: float) -> bool:
        """Take note of what was added to our record; False when it was not, and we have to ask again."""
        with self._gate("claim"):
            standing = self._mine(lease)
            lease.revision, lease.record = standing.revision, lease.record.with_claims(standing.claims)
            if not set(wanted) <= set(standing.claims):
                return False
            claims = [str(claim) for claim in wanted]
            self._tell("lease.extended", lease.runner_id, claims=claims, waited=round(waited, 6))
            return True

    def _give_up(self, waiter: Waiter, waited: float) -> None:
        """Leave the queue, unless the grant came at the same moment. Raises the refusal."""
        with self._gate("give up"):
            if waiter.key not in self.view.waiting:
                return
            found = self._settle(waiter)
            self._schedule()
            if waiter.key not in self.view.waiting:
                return
            self._drop(waiter)
            self._tell("lease.abandoned", waiter.runner_id, reason="timeout", waited=waited)
            self._schedule()
            self._wake_first()
            raise self._refusal(waiter, found or Obstacle("queue", {}), waited)

    def _abandon(self, lease: Lease) -> None:
        """Whatever went wrong while registering: leave nothing, also when the grant came at the same moment."""
        try:
            # When not even this works, what stays is a dead process's, which stands in nobody's way.
            with suppress(NecrocodeError):
                if self._owns(lease):
                    self._leave(lease)
        finally:
            self._close(lease)

    def _leave(self, lease: Lease) -> None:
        with self._gate("abandon"):
            if not self._owns(lease):
                return
            if self.view.waiter(lease.runner_id):
                self._tell("lease.abandoned", lease.runner_id, reason="cancelled")
            self._drop_all(lease.runner_id)
            if standing := self.view.standing.get(lease.runner_id):
                self._remove(standing)
            self._schedule()
            self._wake_first()
            self._hide(lease)

    def _stop_waiting(self, lease: Lease, unwanted: frozenset[Claim]) -> None:
        """Whatever went wrong while claiming: as if it had not been asked, also when the grant came just now."""
        with suppress(NecrocodeError), self._gate("abandon"):
            if self._owns(lease) and self.view.waiter(lease.runner_id, adding=True):
                self._drop_all(lease.runner_id)
                self._tell("lease.abandoned", lease.runner_id, reason="cancelled")
            standing = self._mine(lease)
            self._apply(lease, standing, (), unwanted)
            self._schedule()
            self._wake_first()
        self._hush(lease)

    def _hush(self, lease: Lease) -> None:
        """Let go of the bell of a wait that never began. Never raises."""

    def _enter(self, lease: Lease) -> None:
        """This handle holds its lease now."""

    def _tidy(self) -> None:
        """Remove litter that is neither true nor needed. Nothing by default."""

    def _flush(self) -> None:
        """Write out what was told."""

    # ---- telling

    def _tell_granted(self, record: RunnerInstance, token: int, waited: float) -> None:
        limits = [limit for limit in (record.limit, self.view.limit) if limit is not None]
        facts = {
            "token": token,
            "waited": round(waited, 6),
            "live": self.view.live,
            "limit": min(limits, default=None),
            "slot": record.slot,
        }
        self._tell("lease.granted", record.runner_id, **facts, **_whom(record))

    def _tell_released(self, lease: Lease) -> None:
        held = (datetime.now(UTC) - lease.record.start_time).total_seconds()
        facts = {"token": lease.token, "held": round(held, 6), "live": self.view.live, "slot": lease.record.slot}
        self._tell("lease.released", lease.runner_id, **facts, **_whom(lease.record))

    def _tell_obstacle(self, kind: str, waiter: Waiter, found: Obstacle) -> None:
        claims = sorted({str(pair[0]) for pair in found.blockers.values() if pair})
        self._tell(kind, waiter.runner_id, reason=found.reason, blockers=sorted(found.blockers)[:8], claims=claims[:8])

    def _refusal(self, waiter: Waiter, found: Obstacle, waited: float = 0.0) -> Refused:
        pairs = enumerate(sorted(found.blockers.items()))
        holders = tuple(self._holder(one, pair, told=at < _TOLD_IN_FULL) for at, (one, pair) in pairs)
        if found.reason in ("limit", "quota"):
            return ResourceLimitError(
                waiter.runner_id, found.live, found.limit, holders, reason=found.reason, waited=waited
            )
        return ResourceConflictError(waiter.runner_id, holders, reason=found.reason, waited=waited)

    def _holder(self, runner_id: str, pair: tuple[Claim, Claim] | None, *, told: bool = True) -> Holder:
        record = self._record(runner_id) if told else None
        return admission.holder_of(runner_id, pair, self.view.standing.get(runner_id), record)


def _whom(record: RunnerInstance | None) -> Mapping[str, str]:
    return {"task_id": record.task_id, "spec_name": record.spec_name} if record else {}


def _user(lease: Lease) -> str:
    return lease.record.holder.user if lease.record.holder else ""
