"""May this request stand beside those who hold leases and those ahead in the queue? Names every blocker.

One rule for every ledger: the file ledger, the memory ledger and the tests' model all ask here. Nothing in this
room knows a disk, a clock or a process; whether a blocker is dead is for the caller to find out and to remove.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from necrocode.claim import Claim, ClaimIndex, conflict
from necrocode.lease import Holder, RunnerInstance


class Standing(NamedTuple):
    """One lease as admission sees it. A fenced one keeps only its sticky claims, and no slot; an unreadable one may
    hold anything."""

    runner_id: str
    claims: tuple[Claim, ...]
    token: int
    revision: int = 0
    spec_name: str = ""
    user: str = ""
    slot: bool = True
    fenced: bool = False
    unreadable: bool = False
    timeout: float = 300.0

    @property
    def name(self) -> tuple[str, int, int]:
        """Runner, token and revision: what tells this record from all others."""
        return (self.runner_id, self.token, self.revision)

    @property
    def effective(self) -> tuple[Claim, ...]:
        return tuple(claim for claim in self.claims if claim.sticky) if self.fenced else self.claims

    @property
    def counts(self) -> bool:
        return self.slot and not self.fenced

    @property
    def quotas(self) -> tuple[str, str]:
        return quotas_of(self.spec_name, self.user)


class Wish(NamedTuple):
    """What a waiter wants, besides a slot, for whom, and the seconds without renewal that its lease will allow."""

    claims: tuple[Claim, ...] = ()
    spec_name: str = ""
    user: str = ""
    timeout: float = 300.0


class Waiter:
    """One entry of the queue. `adding` marks a lease holder that waits for more claims; those are served first.

    The wish is read when it is first needed: a hand-over must not cost a read of the whole queue."""

    __slots__ = ("_read", "_wish", "adding", "limit", "needs_slot", "priority", "runner_id", "ticket")

    def __init__(
        self,
        runner_id: str,
        ticket: int,
        priority: int = 0,
        *,
        adding: bool = False,
        needs_slot: bool = True,
        limit: int | None = None,
        read: Callable[[Waiter], Wish] | None = None,
    ) -> None:
        self.runner_id, self.ticket, self.priority, self.adding = runner_id, ticket, priority, adding
        self.needs_slot, self.limit = needs_slot and not adding, limit
        self._read = read or known(Wish())
        self._wish: Wish | None = None

    @property
    def key(self) -> tuple[int, int, int]:
        """Sorts in service order."""
        return (0 if self.adding else 1, -self.priority, self.ticket)

    @property
    def wish(self) -> Wish:
        if self._wish is None:
            self._wish = self._read(self)
        return self._wish


def known(wish: Wish) -> Callable[[Waiter], Wish]:
    """For a wish that need not be read."""
    return lambda waiter: wish


def quotas_of(spec_name: str, user: str) -> tuple[str, str]:
    """The names of the quotas that a slot of theirs counts against."""
    return (f"spec:{spec_name}", f"user:{user}")


class Obstacle(NamedTuple):
    """Why not now. `reason` is limit, quota, queue, unreadable or the family of the first claim in the way;
    `blockers` maps each holder or waiter in the way to (the claim wanted, the claim it meets), None for slots."""

    reason: str
    blockers: Mapping[str, tuple[Claim, Claim] | None]
    live: int = 0
    limit: int = 0


class View:
    """Who stands and who waits, as the holder of the gate sees it, and the host's own terms."""

    def __init__(self, limit: int | None = None, quotas: Mapping[str, int] | None = None) -> None:
        self.limit = limit
        self.quotas: Mapping[str, int] = quotas or {}
        self.standing: dict[str, Standing] = {}
        self.waiting: dict[tuple[int, int, int], Waiter] = {}
        self.unreadable: set[str] = set()
        self.index = ClaimIndex()
        self.live = 0
        self.within: dict[str, dict[str, None]] = {}
        """The runners with a slot, by the names of the quotas that they count against; in the order of their grants."""

    def stand(self, standing: Standing) -> None:
        """Enter a lease, in place of what the same runner had before."""
        self.leave(standing.runner_id)
        self.standing[standing.runner_id] = standing
        self.index.add(standing.runner_id, standing.effective)
        self.live += standing.counts
        for quota in standing.quotas if standing.counts else ():
            self.within.setdefault(quota, {})[standing.runner_id] = None
        if standing.unreadable:
            self.unreadable.add(standing.runner_id)

    def leave(self, runner_id: str) -> None:
        standing = self.standing.pop(runner_id, None)
        if standing:
            self.index.remove(runner_id, standing.effective)
            self.live -= standing.counts
            self.unreadable.discard(runner_id)
            for quota in standing.quotas if standing.counts else ():
                del self.within[quota][runner_id]
                if not self.within[quota]:
                    del self.within[quota]

    def in_order(self) -> list[Waiter]:
        return [self.waiting[key] for key in sorted(self.waiting)]

    def waiter(self, runner_id: str, *, adding: bool | None = None) -> Waiter | None:
        found = (waiter for waiter in self.waiting.values() if waiter.runner_id == runner_id)
        return next((waiter for waiter in found if adding is None or waiter.adding == adding), None)

    def room(self, limit: int | None) -> tuple[int, int] | None:
        """None while a request with this limit of its own may have a slot, else how many live and what limits."""
        limits = [one for one in (limit, self.limit) if one is not None]
        return (self.live, min(limits)) if limits and self.live >= min(limits) else None

    def ahead_of(self, waiter: Waiter) -> ClaimIndex:
        """What those ahead in the queue wait for."""
        ahead = ClaimIndex()
        for key, other in self.waiting.items():
            if key < waiter.key and other.runner_id != waiter.runner_id:
                ahead.add(other.runner_id, other.wish.claims)
        return ahead


def obstacle(view: View, waiter: Waiter, ahead: ClaimIndex | None = None) -> Obstacle | None:
    """What keeps this waiter from standing now, or None. `ahead` is what those before it in line wait for, and is
    looked up when it is not given and matters."""
    wish = waiter.wish
    if wish.claims and (unreadable := view.unreadable - {waiter.runner_id}):
        return Obstacle("unreadable", dict.fromkeys(sorted(unreadable)))
    if blockers := view.index.blockers(waiter.runner_id, wish.claims):
        return Obstacle(next(iter(blockers.values()))[0].family, blockers)
    if waiter.needs_slot and (full := _no_slot(view, waiter)):
        return full
    if not wish.claims or not view.waiting:
        return None
    ahead = view.ahead_of(waiter) if ahead is None else ahead
    if blockers := ahead.blockers(waiter.runner_id, wish.claims):
        return Obstacle("queue", blockers)
    return None


def _no_slot(view: View, waiter: Waiter) -> Obstacle | None:
    if full := view.room(waiter.limit):
        holders = (standing.runner_id for standing in view.standing.values() if standing.counts)
        return Obstacle("limit", dict.fromkeys(holders), *full)
    for quota in quotas_of(waiter.wish.spec_name, waiter.wish.user) if view.quotas else ():
        taken, limit = view.within.get(quota, {}), view.quotas.get(quota)
        if limit is not None and len(taken) >= limit:
            return Obstacle("quota", dict.fromkeys(taken), len(taken), limit)
    return None


def grantable(view: View) -> Iterator[Waiter]:
    """Those who may have what they wait for now, in service order.

    Whoever takes one must grant or drop it before asking for the next: each answer looks at the view anew. A waiter
    that has to go on waiting reserves its claims against those behind it, so nobody who wants the same overtakes;
    others may pass. What those without a slot want is only read when somebody behind them could have a slot."""
    reserved, passed = ClaimIndex(), list[Waiter]()
    for waiter in view.in_order():
        if waiter.needs_slot and view.room(waiter.limit):
            passed.append(waiter)
            continue
        if waiter.wish.claims:
            for other in passed:
                reserved.add(other.runner_id, other.wish.claims)
            passed.clear()
        if obstacle(view, waiter, reserved):
            passed.append(waiter)
        else:
            yield waiter


def cycle(view: View, waiter: Waiter) -> list[str] | None:
    """The circle that would close if this lease holder waited, as ids from itself back to itself, or None.

    Only holders that wait for more claims have edges: to whoever holds what they want, and to those ahead of them
    that want the same. Later grants add no edges, so looking once, before waiting, is enough."""
    pending = [other for other in view.in_order() if other.adding and other.runner_id != waiter.runner_id] + [waiter]
    edges = {other.runner_id: _waits_for(view, other, pending) for other in pending}
    trails = [[waiter.runner_id, other] for other in edges[waiter.runner_id]]
    seen: set[str] = set()
    while trails:
        trail = trails.pop()
        if trail[-1] == waiter.runner_id:
            return trail
        if trail[-1] not in seen:
            seen.add(trail[-1])
            trails += [[*trail, other] for other in edges.get(trail[-1], ())]
    return None


def _waits_for(view: View, waiter: Waiter, pending: list[Waiter]) -> set[str]:
    ahead = {
        other.runner_id
        for other in pending
        if other.key < waiter.key
        and any(conflict(ours, theirs) for ours in waiter.wish.claims for theirs in other.wish.claims)
    }
    return (set(view.index.blockers(waiter.runner_id, waiter.wish.claims)) | ahead) - {waiter.runner_id}


def holder_of(
    runner_id: str, pair: tuple[Claim, Claim] | None, standing: Standing | None, record: RunnerInstance | None
) -> Holder:
    """The facts about one blocker of an Obstacle, from its record when that is at hand."""
    state = "waiting" if standing is None else "fenced" if standing.fenced else "running"
    wanted, held = pair or (None, None)
    return Holder(
        runner_id, state, held, wanted, standing.token if standing else None,
        record.task_id if record else "", record.holder.pid if record and record.holder else None,
        record.start_time if record else None,
    )  # fmt: skip
