"""The operations of the protocol, written once, over whatever stores the state.

Each is: enter the gate, look, decide (admission), make moves that are each whole by themselves, leave, wake whom
it concerns. A store (files, memory) supplies the moves; nothing here knows a file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from necrocode import liveness
from necrocode.admission import Obstacle, Waiter
from necrocode.claim import Claim
from necrocode.errors import (
    Deadlock,
    LeaseLost,
    NecrocodeError,
    Refused,
)
from necrocode.lease import Lease, Request
from necrocode.ledger.steps import Steps


class Operations(Steps):
    """Register, claim, drop, renew, release, publish, fence, sweep. Safe for threads; each call is atomic."""

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
        drop: Iterable[Claim] | Callable[[Claim], bool] = (),
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Add claims to a lease, all or none, and give back those of `drop` (or all that it is true of), in one step.

        Without `wait` a conflict raises ResourceConflictError. With it, the lease gives back at once, and waits
        ahead of all registrations; Deadlock is raised instead of starting a wait that could never end. One wait
        for each lease at a time. Raises LeaseLost."""
        wanted, before = tuple(dict.fromkeys(claims)), frozenset(lease.claims)
        unwanted = drop if callable(drop) else frozenset(drop).__contains__
        started = time.monotonic()
        deadline = None if timeout is None else started + timeout
        try:
            while True:
                with self._gate("claim"):
                    waiter = self._extend(lease, wanted, unwanted, wait)
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
                if self.view.waiter(lease.runner_id):  # another thread waits for more
                    self._drop_all(lease.runner_id)
                    self._wake(lease.runner_id)
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
            granted = lease.record._replace(waited_seconds=waited, start_time=datetime.now(UTC), mono=time.monotonic())
            self._renewed(lease, standing, granted)
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
            self._apply(lease, standing, (), unwanted.__contains__)
            self._schedule()
            self._wake_first()
        self._hush(lease)
