"""The one run of a group: what its engine asks for and tells, from the first start to the last end."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Executor
from itertools import islice
from typing import TYPE_CHECKING, Any

from necrocode import aio
from necrocode.errors import TaskTimeoutError
from necrocode.life import Entry
from necrocode.outcome import DONE, Status
from necrocode.parallel.member import CircuitOpenError, Member, told
from necrocode.parallel.models import ErrorStrategy, ExecutionResult
from necrocode.parallel.state import here
from necrocode.parallel.telling import Teller
from necrocode.retry import CircuitBreaker, Policy
from necrocode.schedule import Behind, Schedule

if TYPE_CHECKING:
    from necrocode.parallel.groups import ParallelExecutionManager

logger = logging.getLogger(__name__)

_SETTLE = 5.0
"""Seconds that subscribers may take to hear of a group's end before they are cancelled."""


class Run:
    """The one run of a group; what the engine works for."""

    def __init__(
        self, manager: ParallelExecutionManager, members: dict[str, Member], policy: Policy,
        breaker: CircuitBreaker | None, executor: Executor | None, grace: float,
    ) -> None:  # fmt: skip
        self._manager, self._group = manager, manager.group
        self._breaker, self._executor = breaker, executor
        self._fail_fast = self._group.error_strategy is ErrorStrategy.FAIL_FAST
        self._loop = asyncio.get_running_loop()
        self._threads = aio.Threads()
        self._tell = Teller(manager.execution_state, self._group)
        self._bus = manager.execution_state.event_bus
        self._members = members
        self._left = len(self._members)
        self._failure: BaseException | None = None
        self._troubled = self._loop.create_future()
        self._streams: list[asyncio.Future[None]] = []
        self._gathering: list[asyncio.Future[None]] = []
        self._leaving: asyncio.Task[None] | None = None
        self.arrived: list[Member] = []
        self._engine = aio.Engine(Schedule(limit=self._group.max_workers), self, grace)
        self._policy = policy
        self._coming = iter(self._begin())
        self._let_come(self._group.max_workers)

    def _begin(self) -> list[Member]:
        """The members that have to be carried out; those that a restored state tells of have ended with it."""
        self._group.total = self._left
        self._group.mark_started()
        self._tell.group_started()
        self._alarm = self._group.timeout and self._loop.call_later(self._group.timeout, self._time_is_up)
        if not self._tell.replaying:
            return self._manager.tasks
        return [member for member in self._manager.tasks if not self._replayed(member)]

    def _replayed(self, member: Member) -> bool:
        stored = self._tell.stored(member)
        if stored is not None:
            member.discard()
            self._group.count("completed")
            self._group.count("replayed")
            self._note(member, stored)
        return stored is not None

    def _let_come(self, count: int | None) -> None:
        """So many more members, in order (None: all), into the schedule: it has no more of them than may have to start
        when a worker gets free, since each costs memory there."""
        for member in islice(self._coming, count):
            self._engine.schedule.add(Entry(member.id, 0, (), (), None, self._policy))

    def go(self) -> None:
        """Start what may start; before, nothing does."""
        self._engine.go()

    @property
    def is_over(self) -> bool:
        """Whether no more results will come."""
        return not self._left or self._troubled.done()

    async def news(self) -> None:
        """Until another member has ended, or all is over."""
        future = self._loop.create_future()
        self._streams.append(future)
        await future

    async def finish(self) -> None:
        try:
            if not self.is_over:
                future = self._loop.create_future()
                self._gathering.append(future)
                await future
        except asyncio.CancelledError:
            await self.leave("whoever waited for the group was cancelled")
            raise
        await self.leave("the group is over")
        if self._failure is not None:
            raise self._failure

    async def leave(self, reason: str) -> None:
        """Stop what still runs, and wait until it has ended and everybody heard of it. Harmless when all is over."""
        if self._leaving is None:
            self._leaving = self._loop.create_task(self._leave(reason))
        await aio.to_the_end(self._leaving)

    async def _leave(self, reason: str) -> None:
        if self._alarm:
            self._alarm.cancel()
        try:
            self._let_come(None)
            await self._engine.close(reason)
            self._manager.left = (*self._engine.deaf, *await self._threads.ended(min(1.0, self._engine.grace)))
        finally:
            self._conclude(reason)
        await self._bus.settled(_SETTLE)

    def _conclude(self, reason: str) -> None:
        if self._manager.left:
            logger.warning("group %s is over, but these go on: %s", self._group.address, ", ".join(self._manager.left))
        if self._failure is not None:
            self._group.mark_failed(told(self._failure))
        elif self._group.cancelled:
            self._group.mark_cancelled()
        else:
            self._group.mark_completed()
        self._tell.group_ended()
        self._wake()

    def cancel(self, reason: str) -> None:
        self._let_come(None)  # to be told that they will not start
        self._engine.abort(reason)

    def _time_is_up(self) -> None:
        timeout = self._group.timeout or 0.0
        elapsed = self._group.execution_time or 0.0
        self._trouble(TaskTimeoutError(elapsed, timeout, self._manager.results), f"the group's {timeout:g} s are over")

    def _trouble(self, error: BaseException, reason: str) -> None:
        if self._failure is None and self._leaving is None:
            self._failure = error
            self.cancel(reason)
            self._troubled.set_result(None)
            self._wake()

    # what the engine asks for and tells

    def begin(self, task_id: str, attempt: int) -> asyncio.Future[Any]:
        member = self._members[task_id]
        now, breaker = self._loop.time(), self._breaker
        if attempt == 1 and breaker is not None and breaker.failures and not breaker.allows(now):
            refused = self._loop.create_future()
            refused.set_exception(
                CircuitOpenError(f"Circuit breaker is open after {breaker.failures} failures in a row")
            )
            return refused
        member.attempts, member.since = attempt, now
        context = member.context if attempt == 1 else member.context.copy()
        context.run(here.set, member.address)
        if self._bus.is_heard:
            self._tell.started(member)
        return self._loop.create_task(member.begin(self._threads, self._executor), context=context)

    def may_retry(self, task_id: str, error: BaseException) -> bool:
        return isinstance(error, Exception) and not isinstance(error, CircuitOpenError)

    def retrying(self, task_id: str, error: BaseException) -> None:
        member = self._members[task_id]
        member.ends(self._engine.now)
        self._tell.retrying(member, told(error))
        self._let_come(1)  # it waits without a worker

    def behind(self, order: Behind) -> None:
        """Members claim nothing."""

    def ended(self, task_id: str, status: Status, value: Any, error: BaseException | None, reason: str) -> None:
        member = self._members[task_id]
        self._engine.schedule.forget(task_id)
        self._let_come(1)
        seconds = member.ends(self._engine.now)
        if status is DONE:
            self._succeeded(member, value, seconds)
        elif status is Status.CANCELLED:
            if not member.attempts:
                member.discard()
            self._cancelled(member, reason)
        else:
            assert error is not None
            self._failed(member, error, seconds)

    def _succeeded(self, member: Member, value: Any, seconds: float) -> None:
        if self._breaker is not None and self._breaker.failures:
            self._breaker.succeeded()
        self._group.count("completed")
        result = ExecutionResult(
            result=value, execution_time=seconds, name=member.id, index=member.index, attempts=member.attempts
        )
        self._note(member, result)

    def _failed(self, member: Member, error: BaseException, seconds: float) -> None:
        refused = isinstance(error, CircuitOpenError) and not member.attempts
        if self._breaker is not None and not refused:
            self._breaker.failed(self._loop.time())
        if refused:
            member.discard()
        text = told(error)
        self._group.count("failed")
        self._group.errors.append(text)
        if self._fail_fast:
            self._trouble(error, f"{member.id} failed, and the group fails fast")
        result = ExecutionResult(
            ok=False, erro_message=text, error=error, execution_time=seconds, name=member.id, index=member.index,
            attempts=member.attempts,
        )  # fmt: skip
        self._note(member, result)

    def _cancelled(self, member: Member, reason: str) -> None:
        self._group.count("cancelled")
        result = ExecutionResult(
            ok=False, erro_message=f"cancelled: {reason}", cancelled=True, execution_time=member.spent, name=member.id,
            index=member.index, attempts=member.attempts,
        )  # fmt: skip
        self._note(member, result)

    def _note(self, member: Member, result: ExecutionResult) -> None:
        member.over(result)
        self._left -= 1
        if not self._troubled.done():
            self.arrived.append(member)
        self._tell.ended(member, result)
        if self._streams or not self._left:
            self._wake()

    def _wake(self) -> None:
        if self._streams:
            _set(self._streams)
        if self._gathering and self.is_over:
            _set(self._gathering)


def _set(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
    futures.clear()
