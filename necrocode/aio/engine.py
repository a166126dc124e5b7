"""Carries out the orders of a schedule: one asyncio future per running attempt, cancelled to stop it.

Whoever uses the engine says how an attempt begins and hears how each task ended (`Work`); order, limit, retries,
deadlines and dependencies are the schedule's.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from typing import Any, Protocol

from necrocode.life import Entry, GiveUp, Start, Stop
from necrocode.outcome import DONE, Status
from necrocode.schedule import Schedule
from necrocode.turns import Behind

GRACE = 10.0
"""Seconds that what was cancelled is waited for."""
_AGAIN = 1.0
"""Seconds after which a coroutine that goes on in spite of a cancellation is cancelled once more."""


class Work(Protocol):
    """What the engine asks of whoever uses it. None of these may raise."""

    def begin(self, task_id: str, attempt: int) -> asyncio.Future[Any]:
        """Start an attempt; cancelling the future must end it."""

    def may_retry(self, task_id: str, error: BaseException) -> bool:
        """Whether this failure is worth another attempt, as far as tries are left."""

    def retrying(self, task_id: str, error: BaseException) -> None:
        """The attempt failed, and there will be another."""

    def behind(self, order: Behind) -> None:
        """It could go but for another task, which holds or will hold first what it claims."""

    def ended(self, task_id: str, status: Status, value: Any, error: BaseException | None, reason: str) -> None:
        """The task came to its end; told once for each."""


class Engine:
    """Carries out the orders of `schedule` for `work`, from the first `go` on.

    An attempt that goes on `grace` seconds after it was cancelled is given up: it is not heard of any more."""

    def __init__(self, schedule: Schedule, work: Work, grace: float = GRACE) -> None:
        self.schedule, self._work = schedule, work
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._running: dict[str, asyncio.Future[Any]] = {}
        self._ids: dict[asyncio.Future[Any], str] = {}
        self._alarm: asyncio.TimerHandle | None = None
        self._turning = False
        self._tell_end = self._over  # bound once, not for each attempt
        self._returning: deque[tuple[str, asyncio.Future[None]]] = deque()
        self.grace = grace
        self.now = self._loop.time()
        """The moment, on the loop's clock, of the end or the turn that the engine is about."""
        self.deaf: list[str] = []
        """Tasks whose last attempt went on in spite of being cancelled, and was given up."""

    @property
    def running(self) -> tuple[str, ...]:
        return tuple(self._running)

    @property
    def is_over(self) -> bool:
        """Whether all tasks came to their end, and nothing of them runs."""
        return not self._running and self.schedule.is_over

    def add(self, entry: Entry) -> None:
        """One more task, started as soon as it is its turn."""
        self.schedule.add(entry)
        self.go()

    def cancel(self, task_id: str, reason: str = "cancelled") -> None:
        """Take a waiting task out, stop a running one; nothing for one that has ended."""
        self.schedule.cancel(task_id, self._loop.time(), reason)
        self.go()

    def interrupt(self, task_id: str) -> None:
        """Cancel the running attempt alone; how it ends is its own matter."""
        if attempt := self._running.get(task_id):
            attempt.cancel()

    def abort(self, reason: str) -> None:
        """Start nothing more and stop what runs."""
        self.schedule.abort(self._loop.time(), reason)
        self.go()

    def admitted(self, task_id: str) -> None:
        """The attempt, which was not blocked, has all it wants."""
        self.schedule.admitted(task_id, self._loop.time())

    def blocked(self, task_id: str) -> None:
        """The attempt waits for somebody outside; another may start in its place."""
        self.schedule.blocked(task_id)
        self.go()

    async def unblocked(self, task_id: str) -> None:
        """The attempt need not wait any more; returns when there is a slot for it to work."""
        future = self._loop.create_future()
        self._returning.append((task_id, future))
        self.go()
        await future

    def go(self) -> None:
        """Look for orders as soon as the loop comes to it."""
        if not self._turning:
            self._turning = True
            self._loop.call_soon(self._turn, context=self._context)

    async def close(self, reason: str) -> None:
        """Start nothing more, stop what runs, and wait until it has ended or was given up."""
        self.schedule.abort(self._loop.time(), reason)
        self._turn()
        while self._running:
            await asyncio.wait(set(self._running.values()), timeout=_AGAIN)
            await asyncio.sleep(0)  # their ends are told by callbacks
        self._set_alarm(None)

    def _turn(self) -> None:
        self._turning = False
        self.now = now = self._loop.time()
        while self._returning and self.schedule.has_slot:
            task_id, future = self._returning.popleft()
            if not future.done():
                self.schedule.admitted(task_id, now)
                future.set_result(None)
        orders = deque(self.schedule.orders(now))
        while orders:
            order = orders.popleft()  # and dropped: the fewer objects at once, the fewer collections of garbage
            if isinstance(order, Start):
                attempt = self._work.begin(order.task_id, order.attempt)
                self._running[order.task_id] = attempt
                self._ids[attempt] = order.task_id
                attempt.add_done_callback(self._tell_end, context=self._context)
            elif isinstance(order, Stop):
                self._stop(order.task_id, self._running.get(order.task_id), now + self.grace)
            elif isinstance(order, GiveUp):
                self._work.ended(order.task_id, Status.CANCELLED, None, None, order.reason)
            else:
                self._work.behind(order)
        self._set_alarm(self.schedule.next_wake(now))

    def _stop(self, task_id: str, attempt: asyncio.Future[Any] | None, until: float) -> None:
        if attempt is None or self._running.get(task_id) is not attempt:
            return  # it has ended
        self.now = now = self._loop.time()
        if now < until:
            attempt.cancel()
            soon = min(_AGAIN, until - now)
            self._loop.call_later(soon, self._stop, task_id, attempt, until, context=self._context)
            return
        self.deaf.append(task_id)
        del self._ids[attempt]
        del self._running[task_id]
        self._failed(task_id, asyncio.CancelledError())
        self.go()

    def _set_alarm(self, seconds: float | None) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if seconds is not None:
            self._alarm = self._loop.call_later(seconds, self.go, context=self._context)

    def _over(self, future: asyncio.Future[Any]) -> None:
        task_id = self._ids.pop(future, None)
        if task_id is None:
            return  # given up as deaf
        del self._running[task_id]
        self.now = now = self._loop.time()
        error = asyncio.CancelledError() if future.cancelled() else future.exception()
        if error is None:
            status = self.schedule.finished(task_id, None, now)
            self._end(task_id, status, future.result(), None)
        else:
            self._failed(task_id, error)
        if not self._turning:
            self.go()

    def _failed(self, task_id: str, error: BaseException) -> None:
        now, schedule = self.now, self.schedule
        if isinstance(error, asyncio.CancelledError):
            schedule.cancel(task_id, now, "it cancelled itself")  # nothing when it was we who stopped it
        status = schedule.failed(task_id, type(error).__name__, now, retry=self._work.may_retry(task_id, error))
        if status is Status.WAITING:
            self._work.retrying(task_id, error)
        else:
            self._end(task_id, status, None, error)

    def _end(self, task_id: str, status: Status, value: Any, error: BaseException | None) -> None:
        reason = "" if status is DONE else self.schedule.standing(task_id).reason
        self._work.ended(task_id, status, value, error, reason)
