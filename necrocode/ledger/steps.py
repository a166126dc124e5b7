"""The steps of the operations inside the gate: arrive, settle, schedule, extend, fence, reap; and their telling."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from necrocode import admission, liveness
from necrocode.admission import Obstacle, Standing, Waiter, Wish
from necrocode.claim import Claim
from necrocode.errors import (
    Deadlock,
    LeaseLost,
    Refused,
    ResourceConflictError,
    ResourceLimitError,
)
from necrocode.lease import Holder, Lease, Request, RunnerInstance
from necrocode.ledger.store import Store

_LAST = 1 << 62
"""The ticket of one that has not got its own yet: it comes after everybody."""
_TOLD_IN_FULL = 32
"""Blockers of one refusal whose records are read for their facts; of the rest the id and token are told."""


class Steps(Store):
    """Everything that is decided and moved while nobody else can."""

    def _arrive(self, lease: Lease, request: Request, wait: bool) -> tuple[Waiter | None, Refused | None]:
        self._refuse_duplicate(request.runner_id)
        if request.slot:
            self._check_terms()
        wish = Wish(lease.claims, request.spec_name, _user(lease), request.heartbeat_timeout)
        # Its number is drawn when all are served who come before it: tokens grow with every grant.
        waiter = Waiter(
            request.runner_id, _LAST, request.priority,
            needs_slot=request.slot, limit=request.limit, read=admission.known(wish),
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
            waiter.ticket = self._next()
            self._enqueue(lease, waiter)
            return waiter, self._refusal(waiter, found)
        self._show(lease)
        token = self._next()
        self._admit(lease, token)
        self._enter(lease)
        self._tell_granted(lease.record, token, 0.0)
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
        elif (
            not standing.fenced
            and liveness.may_fence(seen, standing.timeout)
            and not self._is_orphaned(standing.runner_id)
        ):
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

    def _extend(
        self, lease: Lease, wanted: tuple[Claim, ...], unwanted: Callable[[Claim], bool], wait: bool
    ) -> Waiter | None:
        standing = self._mine(lease)
        wish = Wish(tuple(claim for claim in wanted if claim not in standing.claims))
        waiter = Waiter(lease.runner_id, self._next() if wish.claims else 0, adding=True, read=admission.known(wish))
        found = self._settle(waiter) if wish.claims else None
        if found and not wait:
            self._tell_obstacle("lease.refused", waiter, found)
            raise self._refusal(waiter, found)
        standing = self._apply(lease, self._mine(lease), () if found else wish.claims, unwanted)
        if found is None:
            return None
        if self.view.waiter(lease.runner_id, adding=True):
            raise ResourceConflictError(lease.runner_id, [self._holder(lease.runner_id, None)], reason="waiting")
        if circle := admission.cycle(self.view, waiter):
            self._tell("deadlock.found", lease.runner_id, cycle=circle)
            raise Deadlock(circle)
        self._tell_obstacle("lease.queued", waiter, found)
        self._enqueue(lease, waiter)
        self._schedule()  # what was given back may have been all that was in the way
        return waiter

    def _apply(
        self, lease: Lease, standing: Standing, wanted: tuple[Claim, ...], unwanted: Callable[[Claim], bool]
    ) -> Standing:
        dropped = frozenset(filter(unwanted, standing.claims))
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
        held = time.monotonic() - (lease.record.mono or 0.0)
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
