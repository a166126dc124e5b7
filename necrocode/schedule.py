"""Which task starts, waits, is tried again or stops next. Facts in, orders out: no clock, no thread, no loop.

A driver tells what happened (`finished`, `failed`, `lost`, ...), asks for `orders(now)`, carries them out, and sleeps
for `next_wake(now)` seconds or until the next fact. Each decision costs O(log n). `now` is seconds on any clock that
does not go back.

How many start: `limit` tasks work at once. A task whose runner waits for a stranger (`blocked`) does not work and
leaves its slot to another, but nothing starts while that could make more than `limit` tasks wait like this. Once
strangers leave, the ledger, which counts lease holders, keeps the number of those that work within the limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from necrocode.dependencies import Dependencies
from necrocode.errors import ConfigError
from necrocode.life import ENDED_AS, MOVES, Alarms, Entry, GiveUp, InvalidMove, Life, Stages, Standing, Start, Stop
from necrocode.outcome import DONE, FINAL, RUNNING, STOPPING, WAITING, Status
from necrocode.retry import POISON_LIMIT
from necrocode.turns import Behind, Turns

__all__ = ["MOVES", "Behind", "Entry", "GiveUp", "Instruction", "InvalidMove", "Schedule", "Standing", "Start", "Stop"]

Instruction = Start | Stop | GiveUp | Behind


class Schedule:
    """The tasks of one run. `limit` (None: no limit) may be changed at any time; `poison_limit` is how often a task's
    process may die before the task counts as failed; with `fail_fast` the first failure ends the starting of others;
    `random` is what jitter is drawn from; `most_blocked` is how many may wait for strangers at once (None: `limit`)."""

    def __init__(
        self,
        entries: Iterable[Entry] = (),
        limit: int | None = None,
        *,
        fail_fast: bool = False,
        poison_limit: int = POISON_LIMIT,
        random: Callable[[], float] | None = None,
        most_blocked: int | None = None,
    ) -> None:
        if limit is not None and limit < 1:
            raise ConfigError(f"a limit of {limit!r} is not possible", hint="give a whole number from 1, or None")
        self.limit, self.fail_fast, self.poison_limit = limit, fail_fast, poison_limit
        self.most_blocked = most_blocked
        self._drained_for: str | None = None
        self._random = random
        self._lives: dict[str, Life] = {}
        self._turns = Turns()
        self._dependencies = Dependencies()
        self._unchecked: dict[str, None] = {}
        self._delays, self._deadlines = Alarms(), Alarms()
        self._orders: list[Instruction] = []
        self._told: set[tuple[str, str]] = set()
        self._counts = dict.fromkeys(Status, 0)
        self._stages = Stages()
        self._added = 0
        for entry in entries:
            self.add(entry)

    def __contains__(self, task_id: str) -> bool:
        return task_id in self._lives

    @property
    def is_over(self) -> bool:
        """Whether every task came to its end."""
        return not any(count for status, count in self._counts.items() if not status.is_final)

    def count(self, status: Status) -> int:
        return self._counts[status]

    def standing(self, task_id: str) -> Standing:
        """Raises KeyError for a task that was never added."""
        return self._lives[task_id].standing(self._dependencies.of(task_id))

    def story(self, task_id: str) -> tuple[str, ...]:
        """Every move of one task, in order."""
        return self._lives[task_id].story

    def add(self, entry: Entry) -> None:
        """One more task. Those it comes `after` may be added later, but before the next orders."""
        if entry.id in self._lives:
            raise ConfigError(f"task {entry.id!r} is there twice", hint="give each task its own id")
        life = self._lives[entry.id] = Life(entry, self._added)
        self._added += 1
        self._counts[WAITING] += 1
        if not entry.after or self._is_free(life):
            self._make_ready(life)

    def _is_free(self, life: Life) -> bool:
        known = self._lives
        needs = [other for other in life.entry.after if other not in known or known[other].status is not DONE]
        for other in needs:
            self._unchecked[other] = None
        return not needs or self._dependencies.add(life.id, needs)

    def forget(self, task_id: str) -> None:
        """Drop a task that has ended: its id is free, and what is added to come after it will be given up."""
        if self._lives[task_id].status in FINAL:
            del self._lives[task_id]

    def adopt(self, task_id: str, attempt: int, now: float) -> None:
        """An attempt is found that was started elsewhere; limit and order are not asked. What became of it is told
        like that of any other."""
        life = self._lives[task_id]
        self._begin(life, attempt, now)
        self._delays.clear(task_id)
        self._dependencies.drop(task_id)
        self._turns.withdraw(task_id)
        self._turns.hold(task_id, life.entry.claims)

    def admitted(self, task_id: str, now: float) -> None:
        """The runner of this attempt has all that it claims; the attempt's clock starts now."""
        life = self._lives[task_id]
        timed = self._stages.enter(life, "working") and life.status is RUNNING
        if timed and life.entry.timeout is not None:
            self._deadlines.set(task_id, now + life.entry.timeout)

    def blocked(self, task_id: str, *, keeps_slot: bool = False) -> None:
        """The runner of this attempt waits for somebody outside this run; the attempt's clock stands still."""
        if keeps_slot or self._stages.enter(self._lives[task_id], "blocked"):
            self._deadlines.clear(task_id)

    def finished(self, task_id: str, value: Any, now: float) -> Status:
        """The attempt ended well: DONE, unless it was already being stopped."""
        life = self._lives[task_id]
        self._end(life, DONE, "", now)
        life.value = value
        return life.status

    def failed(self, task_id: str, error: Any, now: float, *, retry: bool = True) -> Status:
        """The attempt ended badly: WAITING if tries are left and `retry` agrees, else FAILED."""
        life = self._lives[task_id]
        self._went_wrong(life, Status.FAILED, error, now, retry=retry)
        return life.status

    def timed_out(self, task_id: str, error: Any, now: float) -> Status:
        """The runner's own clock ended the attempt: TIMED_OUT, or WAITING if the task retries timeouts."""
        life = self._lives[task_id]
        if life.status is not STOPPING:
            self._move(life, STOPPING, now, "its clock ran out")
            life.stopped_as = Status.TIMED_OUT
        self._went_wrong(life, Status.TIMED_OUT, error, now, retry=True)
        return life.status

    def lost(self, task_id: str, now: float) -> Status:
        """The process that carried the attempt died: WAITING for another, or FAILED at the poison limit."""
        life = self._lives[task_id]
        if life.status is STOPPING:
            self._end(life, life.stopped_as, life.reason, now)
            return life.status
        self._move(life, Status.LOST, now, "its process died")
        life.losses += 1
        if life.losses >= self.poison_limit:
            self._end(life, Status.FAILED, f"its process died {life.losses} times", now)
        else:
            self._again(life, "its process died", 0.0, now)
        return life.status

    def cancel(self, task_id: str, now: float, reason: str = "cancelled") -> Status:
        """Take a waiting task out, ask a running one to stop; nothing for one that has ended."""
        life = self._lives[task_id]
        if life.status is WAITING:
            self._end(life, Status.CANCELLED, reason, now)
        elif life.status is RUNNING:
            self._stop(life, Status.CANCELLED, reason, now)
        return life.status

    def cancel_waiting(self, now: float, reason: str = "cancelled") -> int:
        """Take out all that wait, also for another try; returns how many. What is added later does start."""
        waiting = [life for life in self._lives.values() if life.status is WAITING]
        for life in waiting:
            self._move(life, Status.CANCELLED, now, reason)
        return len(waiting)

    def stop_starting(self, now: float, reason: str = "the run is stopping") -> None:
        """Start nothing more and let the running ones end; none of them is tried again."""
        self._drained_for = reason
        self.cancel_waiting(now, reason)

    def abort(self, now: float, reason: str = "the run was stopped") -> None:
        """Start nothing more, and stop what runs."""
        self.stop_starting(now, reason)
        for life in self._lives.values():
            if life.status is RUNNING:
                self._stop(life, Status.CANCELLED, reason, now)

    def orders(self, now: float) -> list[Instruction]:
        """What is to be done now, in this order; each order is given once."""
        if self._drained_for is not None and self._counts[WAITING]:
            self.cancel_waiting(now, self._drained_for)
        if self._unchecked:
            self._give_up_unmeetable(now)
        for task_id in self._deadlines.due(now) if now >= self._deadlines.none_before else ():
            self._stop(self._lives[task_id], Status.TIMED_OUT, "its clock ran out", now)
        for task_id in self._delays.due(now) if now >= self._delays.none_before else ():
            self._make_ready(self._lives[task_id])
        room = self._stages.room(self.limit, self.most_blocked or self.limit)
        while room > 0 and (turn := self._turns.next()) is not None:
            if isinstance(turn, str):
                self._start(self._lives[turn], now)
                room -= 1
            else:
                self._put_behind(turn)
        if self._counts[WAITING]:
            self._break_circles(now)
        orders, self._orders = self._orders, []
        return orders

    def next_wake(self, now: float) -> float | None:
        """Seconds until there may be orders though nothing happens; None: only a fact can bring any."""
        if self._orders:
            return 0.0
        moments = [at for at in (self._delays.next(), self._deadlines.next()) if at is not None]
        return max(0.0, min(moments) - now) if moments else None

    @property
    def has_slot(self) -> bool:
        """Whether fewer than `limit` tasks start or work."""
        return self._stages.room(self.limit) > 0

    def _start(self, life: Life, now: float) -> None:
        self._begin(life, life.attempt + 1, now)
        self._orders.append(Start(life.id, life.attempt))

    def _put_behind(self, behind: Behind) -> None:
        self._lives[behind.task_id].reason = f"comes after {behind.after}, which has {behind.held}"
        if behind[:2] not in self._told:
            self._told.add(behind[:2])
            self._orders.append(behind)

    def _give_up_unmeetable(self, now: float) -> None:
        unchecked, self._unchecked = self._unchecked, {}
        for other in unchecked:
            found = self._lives.get(other)
            if found is None:
                for task_id in self._dependencies.unmeetable(other):
                    self._end(self._lives[task_id], Status.CANCELLED, f"comes after {other!r}, which is not there", now)
            elif found.status.is_final:
                self._settle(found, now)

    def _break_circles(self, now: float) -> None:
        """When nothing runs, nothing is ready and nothing is delayed, those that wait do so for each other."""
        while self._counts[WAITING] and not (self._counts[RUNNING] or self._counts[STOPPING]):
            if self._delays.next() is not None:
                return
            circle = self._dependencies.circle()
            if not circle:
                return
            for task_id in circle:
                self.cancel(task_id, now, "comes after itself: " + " -> ".join([*circle, circle[0]]))

    def _begin(self, life: Life, attempt: int, now: float) -> None:
        life.move(RUNNING, now, f"attempt {attempt}")
        self._counts[WAITING] -= 1
        self._counts[RUNNING] += 1
        life.attempt = attempt
        self._stages.enter(life, "starting")
        if life.entry.timeout is not None:
            self._deadlines.set(life.id, now + life.entry.timeout)

    def _stop(self, life: Life, stopped_as: Status, reason: str, now: float) -> None:
        self._move(life, STOPPING, now, reason)
        life.stopped_as = stopped_as
        self._deadlines.clear(life.id)
        self._orders.append(Stop(life.id, reason))

    def _went_wrong(self, life: Life, to: Status, error: Any, now: float, *, retry: bool) -> None:
        if life.status is STOPPING:
            retry = life.stopped_as is Status.TIMED_OUT and life.entry.retry_timeouts
        if retry and life.has_tries_left and self._drained_for is None:
            self._again(life, str(error), life.entry.policy.delay(life.failures, self._random), now)
        else:
            self._end(life, to, str(error), now)
        life.failures += 1
        life.error = error

    def _again(self, life: Life, why: str, delay: float, now: float) -> None:
        self._move(life, WAITING, now, why)
        if self._drained_for is not None:
            self._end(life, Status.CANCELLED, self._drained_for, now)
        elif delay > 0:
            self._delays.set(life.id, now + delay)
        else:
            self._make_ready(life)

    def _end(self, life: Life, to: Status, why: str, now: float) -> None:
        if life.status is STOPPING:
            to, why = life.stopped_as, life.reason
        self._move(life, to, now, why)
        if life.id in self._dependencies:
            self._settle(life, now)
        if self.fail_fast and self._drained_for is None and to in (Status.FAILED, Status.TIMED_OUT):
            self.stop_starting(now, f"{life.id} {ENDED_AS[to]}, and the run fails fast")

    def _settle(self, life: Life, now: float) -> None:
        """What comes after a task that ended is free to start when that was done, and given up when it was not."""
        if life.status is DONE:
            for task_id in self._dependencies.met(life.id):
                self._make_ready(self._lives[task_id])
            return
        ended = [life]
        while ended:
            first = ended.pop()
            for task_id in self._dependencies.unmeetable(first.id):
                why = f"comes after {first.id}, which {ENDED_AS[first.status]}"
                self._move(self._lives[task_id], Status.CANCELLED, now, why)
                ended.append(self._lives[task_id])

    def _make_ready(self, life: Life) -> None:
        self._turns.ready(life.id, life.key, life.entry.claims)

    def _move(self, life: Life, to: Status, now: float, why: str) -> None:
        was = life.status
        life.move(to, now, why)
        self._counts[was] -= 1
        self._counts[to] += 1
        if life.stage and to is not STOPPING:
            self._stages.enter(life, "")
            if life.entry.timeout is not None:
                self._deadlines.clear(life.id)
            if life.entry.claims:
                self._turns.release(life.id)
        elif to is Status.CANCELLED:
            self._delays.clear(life.id)
            self._dependencies.drop(life.id)
            self._turns.withdraw(life.id)
            self._orders.append(GiveUp(life.id, why))
