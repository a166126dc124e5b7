"""Whose turn it is among the ready tasks of one run, when some of them may not run side by side.

A task may go when nothing it claims meets a claim of a task that runs, or of a ready task ahead of it. So
those that want the same go in order, none is passed by for ever, and the others do not wait.

Tasks in the way of each other are not asked again and again. One that cannot go is parked at the claim that
stopped it; when that claim is no longer in anybody's hands, the first one parked there is looked at, then the
next. An answer costs O(log n) plus the number of different claims it meets, and O(1) for tasks that claim nothing
and became ready in their order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from heapq import heappop, heappush
from typing import NamedTuple

from necrocode.claim import Claim, ClaimIndex

Key = tuple[int, int]
"""Where a task stands in the order: smaller goes first; no two tasks have the same."""


class Behind(NamedTuple):
    """`task_id` could go but for `after`, because what it wants meets what that one holds or will hold first."""

    task_id: str
    after: str
    wanted: Claim
    held: Claim


class _Place:
    """One claim: who runs with it, who waits and will want it (a heap), and who is parked because of it (a heap).

    The heaps keep entries that are no longer true; whoever looks at their top throws those away."""

    __slots__ = ("parked", "running", "wanted_by", "wants")

    def __init__(self) -> None:
        self.running: dict[str, None] = {}
        self.wanted_by: list[tuple[Key, str]] = []
        self.wants = 0
        self.parked: list[tuple[Key, str]] = []


class Turns:
    """The ready tasks, in order, and the claims of the running ones."""

    def __init__(self) -> None:
        self._claims: dict[str, tuple[Claim, ...]] = {}
        self._ready: dict[str, Key] = {}
        self._reserving: dict[str, Key] = {}
        self._line: deque[tuple[Key, str]] = deque()
        self._order: list[tuple[Key, int, str, Claim | None]] = []
        self._asked = 0
        self._reserved_order: list[tuple[Key, str]] = []
        self._places: dict[Claim, _Place] = {}
        self._running = ClaimIndex()
        self._reserved = ClaimIndex()

    def ready(self, task_id: str, key: Key, claims: Iterable[Claim] = ()) -> None:
        """This task may go as soon as it is its turn."""
        self._ready[task_id] = key
        if claims:
            self._claims[task_id] = tuple(dict.fromkeys(claims))
        elif not self._line or key > self._line[-1][0]:
            self._line.append((key, task_id))
            return
        self._ask(key, task_id)

    def hold(self, task_id: str, claims: Iterable[Claim] = ()) -> None:
        """This task runs already, whoever let it."""
        if claims:
            self._claims[task_id] = tuple(dict.fromkeys(claims))
            self._run(task_id, self._claims[task_id])

    def release(self, task_id: str) -> None:
        """This task runs no longer."""
        claims = self._claims.pop(task_id, None)
        if claims is None:
            return
        self._running.remove(task_id, claims)
        for claim in claims:
            self._places[claim].running.pop(task_id, None)
            self._reopen(claim)

    def withdraw(self, task_id: str) -> None:
        """This task is not ready any more, and did not start."""
        if self._ready.pop(task_id, None) is None:
            return
        claims = self._claims.pop(task_id, ())
        self._unreserve(task_id, claims)
        for claim in claims:
            self._reopen(claim)

    def next(self) -> str | Behind | None:
        """Decide about the next task in order: it goes (its id), or it is parked. None when nobody is left to ask."""
        line, order = self._line, self._order
        while line or order:
            if line and (not order or line[0][0] < order[0][0]):
                key, task_id = line.popleft()
                if self._ready.get(task_id) == key:
                    del self._ready[task_id]
                    return task_id
                continue
            key, _, task_id, parked_at = heappop(order)
            turn = self._decide(task_id, key) if self._ready.get(task_id) == key else None
            if parked_at is not None:
                self._reopen(parked_at)
            if turn:
                return turn
        return None

    def _ask(self, key: Key, task_id: str, parked_at: Claim | None = None) -> None:
        self._asked += 1  # keeps two entries of one task from being compared any further
        heappush(self._order, (key, self._asked, task_id, parked_at))

    def _decide(self, task_id: str, key: Key) -> str | Behind:
        claims = self._claims.get(task_id, ())
        behind = self._obstacle(task_id, key, claims)
        if behind is None:
            del self._ready[task_id]
            self._unreserve(task_id, claims)
            self._run(task_id, claims)
            return task_id
        self._reserve(task_id, key, claims)
        heappush(self._place(behind.held).parked, (key, task_id))
        return behind

    def _obstacle(self, task_id: str, key: Key, claims: tuple[Claim, ...]) -> Behind | None:
        for wanted in claims:
            for other, held in self._running.conflicts(task_id, wanted):
                return Behind(task_id, other, wanted, held)
        first = self._first(self._reserved_order)
        if first is None or first[0] >= key:
            return None
        for wanted in claims:
            for _, held in self._reserved.conflicts(task_id, wanted):
                ahead = self._first(self._places[held].wanted_by)
                if ahead is not None and ahead[0] < key:
                    return Behind(task_id, ahead[1], wanted, held)
        return None

    def _first(self, heap: list[tuple[Key, str]]) -> tuple[Key, str] | None:
        while heap and self._reserving.get(heap[0][1]) != heap[0][0]:
            heappop(heap)
        return heap[0] if heap else None

    def _run(self, task_id: str, claims: tuple[Claim, ...]) -> None:
        self._running.add(task_id, claims)
        for claim in claims:
            self._place(claim).running[task_id] = None

    def _reserve(self, task_id: str, key: Key, claims: tuple[Claim, ...]) -> None:
        if task_id in self._reserving:
            return
        self._reserving[task_id] = key
        heappush(self._reserved_order, (key, task_id))
        for claim in claims:
            place = self._place(claim)
            heappush(place.wanted_by, (key, task_id))
            place.wants += 1
            if place.wants == 1:
                self._reserved.add("", (claim,))

    def _unreserve(self, task_id: str, claims: tuple[Claim, ...]) -> None:
        if self._reserving.pop(task_id, None) is None:
            return
        for claim in claims:
            place = self._places[claim]
            place.wants -= 1
            if place.wants == 0:
                self._reserved.remove("", (claim,))

    def _place(self, claim: Claim) -> _Place:
        return self._places.setdefault(claim, _Place())

    def _reopen(self, claim: Claim) -> None:
        """If nobody runs with this claim and nobody ahead wants it, the first one parked here is asked again."""
        place = self._places.get(claim)
        if place is None or place.running:
            return
        parked = place.parked
        while parked and self._ready.get(parked[0][1]) != parked[0][0]:
            heappop(parked)
        if parked:
            ahead = self._first(place.wanted_by)
            if ahead is None or ahead[0] >= parked[0][0]:
                self._ask(*heappop(parked), claim)
        elif not place.wants:
            del self._places[claim]
