"""One task's life in a run: what is known of it, where it stands, and which moves are legal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from heapq import heappop, heappush
from math import inf
from typing import Any, NamedTuple

from necrocode.claim import Claim
from necrocode.errors import NecrocodeError
from necrocode.outcome import CANCELLED, WAITING, Status
from necrocode.retry import Policy
from necrocode.task import Task

MOVES: Mapping[Status, frozenset[Status]] = {
    Status.WAITING: frozenset({Status.RUNNING, Status.CANCELLED}),
    Status.RUNNING: frozenset({Status.DONE, Status.FAILED, Status.WAITING, Status.STOPPING, Status.LOST}),
    Status.STOPPING: frozenset({Status.TIMED_OUT, Status.CANCELLED, Status.WAITING}),
    Status.LOST: frozenset({Status.WAITING, Status.FAILED}),
    Status.DONE: frozenset(),
    Status.FAILED: frozenset(),
    Status.TIMED_OUT: frozenset(),
    Status.CANCELLED: frozenset(),
}
"""Every legal move. STOPPING to WAITING is for tasks that ask for another try after a timeout, LOST to FAILED for
those whose process died too often."""

ENDED_AS = {Status.FAILED: "failed", Status.TIMED_OUT: "timed out", Status.CANCELLED: "was cancelled"}
"""How an end that was no success is told of."""

ACTIVE = frozenset({Status.RUNNING, Status.STOPPING})
"""Where a task is while an attempt of it may still do something."""


ONCE = Policy()


class InvalidMove(NecrocodeError):
    """A driver told of something that cannot follow from where the task stands; `story` is how it got there."""

    def __init__(self, task_id: str, status: Status, to: Status, story: Iterable[str] = ()) -> None:
        told = tuple(story)
        super().__init__(
            f"{task_id} cannot go from {status} to {to}; its story: {'; '.join(told) or 'it was added'}",
            hint="this is a mistake in the program that drives the schedule, please report it",
        )
        self.task_id, self.status, self.to, self.story = task_id, status, to, told


class Entry(NamedTuple):
    """What the schedule knows of one task. `after` names tasks that must be done first; `claims` keep tasks of one run
    apart; `timeout` is seconds for one attempt; `policy` says how often to try again and after how long. With
    `retry_timeouts` an attempt whose clock ran out may be tried again too."""

    id: str
    priority: int = 0
    after: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()
    timeout: float | None = None
    policy: Policy = ONCE
    retry_timeouts: bool = False

    @classmethod
    def of(cls, task: Task, repository: str = "", policy: Policy = ONCE) -> Entry:
        """The entry for a task; its retries take the place of the policy's. Raises ConfigError for a bad claim."""
        policy = policy._replace(retries=task.retries)
        return cls(task.id, task.priority, task.after, task.wanted(repository), task.timeout, policy)


class Start(NamedTuple):
    """Start this attempt (the first is 1)."""

    task_id: str
    attempt: int


class Stop(NamedTuple):
    """End the running attempt, because of `reason`; how it ended is still to be told."""

    task_id: str
    reason: str


class GiveUp(NamedTuple):
    """This task was cancelled while it waited; there is nothing to do but to tell."""

    task_id: str
    reason: str


class Standing(NamedTuple):
    """Where a task stands: attempts begun, how many failed or were lost, why it is there, what came of it."""

    task_id: str
    status: Status
    attempt: int
    failures: int
    losses: int
    reason: str
    value: Any
    error: Any


class Life:
    """One task's life so far. `stage` is where a running attempt is: starting, working, or blocked; `stopped_as` is
    what it will have been once a stopping attempt has ended."""

    # With slots: an instance whose attributes come later than its making gets a dict besides.
    __slots__ = (
        "attempt", "entry", "error", "failures", "id", "key", "losses", "moves", "reason", "stage", "status",
        "stopped_as", "value",
    )  # fmt: skip

    def __init__(self, entry: Entry, position: int) -> None:
        self.id, self.entry, self.key = entry.id, entry, (-entry.priority, position)
        self.status, self.stopped_as = WAITING, CANCELLED
        self.reason = self.stage = ""
        self.attempt = self.failures = self.losses = 0
        self.value: Any = None
        self.error: Any = None
        self.moves: tuple[Any, ...] = ()
        """Moment, status and reason of each, one after the other."""

    @property
    def story(self) -> tuple[str, ...]:
        """Every move, in words."""
        told = iter(self.moves)
        return tuple(
            f"{at:.3f} {to}" + (f" ({why})" if why else "") for at, to, why in zip(told, told, told, strict=True)
        )

    @property
    def is_active(self) -> bool:
        return self.status in ACTIVE

    @property
    def has_tries_left(self) -> bool:
        return self.failures < self.entry.policy.retries

    def move(self, to: Status, now: float, why: str) -> None:
        """Raises InvalidMove, and changes nothing, when there is no such move."""
        if to not in MOVES[self.status]:
            raise InvalidMove(self.id, self.status, to, self.story)
        self.moves += (now, to, why)
        self.status, self.reason = to, why

    def standing(self, needs: tuple[str, ...] = ()) -> Standing:
        reason = "comes after " + ", ".join(needs) if needs else self.reason
        counts = self.attempt, self.failures, self.losses
        return Standing(self.id, self.status, *counts, reason, self.value, self.error)


class Stages:
    """How many attempts there are at each stage."""

    def __init__(self) -> None:
        self._counts = {"": 0, "starting": 0, "working": 0, "blocked": 0}

    def enter(self, life: Life, stage: str) -> bool:
        """Whether that could be. "" is none of them."""
        # What a runner tells of its waiting may arrive after its end; then it is of no interest any more.
        if stage and life.status not in ACTIVE:
            return False
        self._counts[life.stage] -= 1
        self._counts[stage] += 1
        life.stage = stage
        return True

    def room(self, limit: int | None, most_blocked: int | None = None) -> float:
        """How many may start while at most `limit` start or work, and `most_blocked` start or wait for strangers."""
        starting, working, blocked = self._counts["starting"], self._counts["working"], self._counts["blocked"]
        room = inf if limit is None else limit - starting - working
        return room if most_blocked is None else min(room, most_blocked - starting - blocked)


class Alarms:
    """At most one moment for each task, and which moment is next."""

    def __init__(self) -> None:
        self._moments: dict[str, float] = {}
        self._order: list[tuple[float, str]] = []
        self.none_before = inf
        """None is due before; asked first, since mostly none is."""

    def set(self, task_id: str, moment: float) -> None:
        self._moments[task_id] = moment
        heappush(self._order, (moment, task_id))
        self.none_before = min(moment, self.none_before)
        if len(self._order) > 1000 and len(self._order) > 4 * len(self._moments):
            # Most were cleared, behind one that is still to come.
            self._order = sorted((at, one) for one, at in self._moments.items())

    def clear(self, task_id: str) -> None:
        self._moments.pop(task_id, None)

    def next(self) -> float | None:
        order = self._order
        while order and self._moments.get(order[0][1]) != order[0][0]:
            heappop(order)
        return order[0][0] if order else None

    def due(self, now: float) -> list[str]:
        """Those whose moment has come, earliest first; each is cleared."""
        rung: list[str] = []
        while (moment := self.next()) is not None and moment <= now:
            rung.append(heappop(self._order)[1])
            del self._moments[rung[-1]]
        self.none_before = inf if moment is None else moment
        return rung
