"""The engine: one schedule, one thread that drives it, and workers that do as it orders."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any, TypeVar

from necrocode import clock
from necrocode.errors import NecrocodeError, TaskTimeoutError
from necrocode.event import Event
from necrocode.futures.slots import Held, Slots
from necrocode.futures.workload import Call, Caught, PoolClosed, Work, Workers, attempt, has_ended, timeout_of, told
from necrocode.outcome import Status
from necrocode.schedule import GiveUp, Schedule, Start, Stop

_T = TypeVar("_T")
_BATCH = 256  # facts that are taken in before orders are asked for again
_LONGEST = 3600.0  # seconds of one sleep


class Engine:
    """Carries calls under a limit, in order of priority and arrival, with retries and deadlines.

    `limit` attempts work at once. `tell` gets every event, in order, one at a time, from threads of the engine: it
    must be quick and may not call back, like the `settled` of a call. With `slots` each attempt also needs a lease of
    the ledger; waiting for it keeps a place of the limit, and its clock stands still."""

    def __init__(
        self,
        workers: Workers,
        limit: int,
        *,
        tell: Callable[[Event], None] | None = None,
        slots: Slots | None = None,
        name: str = "necrocode",
    ) -> None:
        self._schedule = Schedule(limit=limit if workers.most is None else min(limit, workers.most))
        self._workers, self._tell, self._slots, self._name = workers, tell, slots, name
        self._facts: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._lock, self._door, self._bell = threading.Lock(), threading.Lock(), threading.Lock()
        self._bell.acquire()
        self._asleep = self._freed = self._closing = self._over = False
        self._wake_at = self._now = self._wall = 0.0
        self._calls: dict[str, Call] = {}
        self._works: dict[str, Work] = {}
        self._waiting: dict[int, Callable[[], None]] = {}
        self._taken: set[int] = set()
        self._left: dict[int, Work] = {}
        self._thread: threading.Thread | None = None
        self._take_on, self._hear_end = self._add, self._ended  # bound once, not for each call
        workers.serve(self._tell_end)

    # from any thread

    def submit(self, call: Call) -> None:
        """Take the call on; its `settled` is told of its end, exactly once. Raises PoolClosed."""
        with self._door:
            if self._closing:
                raise PoolClosed(self._name)
            self._post(self._take_on, call)
            if self._thread is None:
                self._thread = threading.Thread(target=self._drive, name=f"{self._name}-engine", daemon=True)
                self._thread.start()

    def ask(self, question: Callable[[], _T]) -> _T:
        """What `question()` returns when the engine's thread asks it, after all that was told before."""
        answer: Future[_T] = Future()

        def reply() -> None:
            caught = attempt(question, (), {})
            (answer.set_result if caught.ok else answer.set_exception)(caught.value)

        with self._door:
            if self._thread is None or self._over:
                return question()
            self._post(reply)
        return answer.result()

    def cancel_waiting(self, reason: str) -> int:
        """Take out all that wait, also for another try or a lease; how many. Those that run go on."""
        return self.ask(lambda: self._cancel_waiting(reason))

    def stop_all(self, reason: str) -> None:
        """Take out all that wait, and end what runs."""
        self.ask(lambda: self._stop_all(reason))

    def deaf(self) -> list[Work]:
        """The attempts that were given up and have not returned yet."""
        return self.ask(lambda: list(self._left.values()))

    def close(self, *, wait: bool = True) -> None:
        """Take nothing more on, let the rest end, let the workers go. From inside one of its calls it never waits."""
        with self._door:
            self._closing = True
            thread = self._thread
            self._ring()
        if thread is None:
            self._over = True
        elif wait and threading.current_thread() is not thread and not self._workers.owns_this_thread():
            clock.until(lambda seconds: has_ended(thread, seconds))

    def _post(self, method: Callable[..., None], *facts: Any) -> None:
        """A fact for the engine's thread: what to call, and with what."""
        self._facts.append((method, facts))
        self._ring()

    def _has_slot(self, work: Work, held: Held) -> None:
        """From the thread that asked for it."""
        with self._door:  # whoever says that all is over takes in afterwards what was posted before
            if not self._over:
                return self._post(self._granted, work, held)
        assert self._slots is not None
        return self._slots.give_back(held)

    def _ring(self) -> None:
        if self._asleep:
            self._asleep = False  # one ring wakes it
            with suppress(RuntimeError):  # somebody else rang at the same moment
                self._bell.release()

    def _tell_end(self, work: Work, caught: Caught) -> None:
        # Who has told of an end drives on, if nobody else does: the next attempt is its own, in the same thread.
        self._facts.append((self._hear_end, (work, caught)))
        while self._facts and self._lock.acquire(blocking=False):
            try:
                self._turn()
            finally:
                self._lock.release()

    # under the lock; never in a caller's thread

    def _drive(self) -> None:
        try:
            while not self._drive_once():
                pass
        finally:
            with self._door:
                self._closing = self._over = True
            with self._lock:
                while self._facts:
                    self._take_facts()
            self._workers.close()

    def _drive_once(self) -> bool:
        """One turn and the sleep after it; True when all is over."""
        with self._lock:
            self._turn()
            pause = self._schedule.next_wake(now := clock.monotonic())
            self._wake_at = math.inf if pause is None else now + pause
            if self._closing and not self._calls and not self._facts:
                return True
            # Said under the lock: whoever makes the next wake earlier from now on has to ring.
            self._asleep = True
        if not self._facts and not (self._closing and not self._calls):
            self._bell.acquire(timeout=-1 if pause is None else min(pause, _LONGEST))
        self._asleep = False
        return False

    def _turn(self) -> None:
        """Take facts in, carry orders out."""
        self._take_facts()
        if self._now >= self._wake_at:
            self._set_clocks()
        self._freed = True
        while self._freed:
            self._freed = False
            self._obey_orders()

    def _wake_by(self, moment: float) -> None:
        """Have the engine's own thread awake by then; what a worker drives may be due earlier than it sleeps for."""
        if moment < self._wake_at:
            self._wake_at = moment
            self._ring()

    def _set_clocks(self) -> None:
        """Time counts from when an attempt began, not from when it was handed over."""
        for task_id, work in self._works.items():
            if id(work) not in self._waiting:
                self._schedule.admitted(task_id, work.began or self._now)

    def _take_facts(self) -> None:
        count = min(len(self._facts), _BATCH)
        # One moment for all of them, none of which is later.
        self._now, self._wall = clock.monotonic(), clock.wall()
        for _ in range(count):
            method, facts = self._facts.popleft()
            method(*facts)

    def _add(self, call: Call) -> None:
        self._schedule.add(call.entry)
        self._calls[call.entry.id] = call

    def _cancel_waiting(self, reason: str) -> int:
        count = self._schedule.cancel_waiting(self._now, reason)
        for task_id in [task_id for task_id, work in self._works.items() if id(work) in self._waiting]:
            self._schedule.cancel(task_id, self._now, reason)
            count += 1
        self._obey_orders()  # at once, so that whoever asked finds them cancelled
        return count

    def _stop_all(self, reason: str) -> None:
        self._cancel_waiting(reason)
        for task_id in list(self._works):
            self._schedule.cancel(task_id, self._now, reason)

    def _obey_orders(self) -> None:
        for order in self._schedule.orders(self._now):
            if isinstance(order, Start):
                self._start(order)
            elif isinstance(order, Stop):
                self._stop(order)
            elif isinstance(order, GiveUp):
                self._give_up(order.task_id, order.reason)

    def _start(self, order: Start) -> None:
        work = Work(self._calls[order.task_id], order.attempt)
        self._works[order.task_id] = work
        if self._slots is None:
            return self._begin(work)
        self._schedule.blocked(order.task_id, keeps_slot=True)
        self._waiting[id(work)] = self._slots.ask(
            work,
            lambda held: self._has_slot(work, held),
            lambda error: self._post(self._refused, work, error),
            lambda error: self._post(self._lost, work, error),
        )
        return None

    def _begin(self, work: Work) -> None:
        entry = work.call.entry
        self._event("attempt.started", entry.id, attempt=work.attempt)
        if entry.timeout is not None and self._now + entry.timeout < self._wake_at:
            self._wake_by(self._now + entry.timeout)
        self._workers.start(work)

    def _granted(self, work: Work, held: Held) -> None:
        assert self._slots is not None
        if self._waiting.pop(id(work), None) is None:
            return self._slots.give_back(held)
        work.hold = held
        self._schedule.admitted(work.call.entry.id, self._now)
        return self._begin(work)

    def _refused(self, work: Work, error: NecrocodeError) -> None:
        if self._waiting.pop(id(work), None) is not None:
            self._judge(work, Caught(False, error))

    def _lost(self, work: Work, error: NecrocodeError) -> None:
        if self._works.get(work.call.entry.id) is work:
            self._schedule.cancel(work.call.entry.id, self._now, str(error))

    def _stop(self, order: Stop) -> None:
        if (work := self._works.get(order.task_id)) is None:
            return  # it ended by itself since
        work.context.stop(order.reason)
        if withdraw := self._waiting.pop(id(work), None):
            withdraw()
            self._freed = True
            self._schedule.failed(order.task_id, order.reason, self._now)
            self._give_up(order.task_id, order.reason)
            return
        place = self._workers.stop(work)
        if place == "ending":
            return
        self._left[id(work)] = work
        if place == "taken":
            self._taken.add(id(work))
            assert self._schedule.limit is not None
            self._schedule.limit -= 1
        self._freed = True  # the place of what was given up may be somebody's at once
        work.ended = clock.monotonic()
        self._judge(work, Caught(False, timeout_of(work)))

    def _ended(self, work: Work, caught: Caught) -> None:
        if self._left.pop(id(work), None) is not None:
            if id(work) in self._taken:
                self._taken.remove(id(work))
                assert self._schedule.limit is not None
                self._schedule.limit += 1
            return
        self._workers.freed()
        self._judge(work, caught)

    def _judge(self, work: Work, caught: Caught) -> None:
        """What the end of an attempt means for its task."""
        call, task_id, now = work.call, work.call.entry.id, self._now
        del self._works[task_id]
        if work.hold is not None and self._slots is not None:
            self._slots.give_back(work.hold)
        if caught.ok:
            status = self._schedule.finished(task_id, None, now)
        elif isinstance(caught.value, TaskTimeoutError) and work.context.is_expired:
            status = self._schedule.timed_out(task_id, told(caught.value), now)
        else:
            retry = call.retry is None or call.retry(caught.value)
            status = self._schedule.failed(task_id, told(caught.value), now, retry=retry)
        if status is Status.TIMED_OUT and not isinstance(caught.value, TaskTimeoutError):
            caught = Caught(False, timeout_of(work))
        self._event(
            "attempt.finished", task_id, attempt=work.attempt, status=str(status), worker=work.worker,
            seconds=work.ended - work.began if work.began else 0.0, error="" if caught.ok else told(caught.value),
        )  # fmt: skip
        if status is Status.WAITING:
            delay = call.entry.policy._replace(jitter=0.0).delay(work.attempt - 1)
            self._event("attempt.retried", task_id, attempt=work.attempt, delay=delay, error=told(caught.value))
            self._wake_by(now)
            return
        self._settle(task_id, status, caught)

    def _give_up(self, task_id: str, reason: str) -> None:
        """The task ends without having begun, or without another attempt."""
        self._works.pop(task_id, None)
        self._event("task.cancelled", task_id, reason=reason)
        self._settle(task_id, Status.CANCELLED, Caught(False, CancelledError(reason)))

    def _settle(self, task_id: str, status: Status, caught: Caught) -> None:
        """The task is over: nobody here needs it any more."""
        self._schedule.forget(task_id)
        (call := self._calls.pop(task_id)).settled(call, status, caught)
        if self._closing and not self._calls:
            self._ring()

    def _event(self, kind: str, task_id: str, **facts: Any) -> None:
        if self._tell:
            self._tell(Event(kind, self._wall, self._now, task_id=task_id, facts=facts))
