"""A group of coroutines, functions and programs that run side by side, at most so many at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import Executor
from math import isfinite
from types import TracebackType
from typing import Any

from necrocode import aio, metrics
from necrocode.parallel.carrying import Run
from necrocode.parallel.member import CircuitOpenError, InvalidSettingError, Member, checked_work
from necrocode.parallel.models import ErrorStrategy, ExecutionResult, ParallelEventGroup
from necrocode.parallel.state import ExecutionState
from necrocode.retry import CircuitBreaker, Policy


class ParallelExecutionManager:
    """A group; use it with `async with`. Members are added first, and start with `gather`, `gather_dict` or `stream`,
    or at the end of the body. When the body raises, none starts; after it, nothing of the group runs.

    `timeout` is seconds for the whole group. A member that fails is tried again `max_retries` times, after
    `retry_delay` seconds, doubled each time up to 60; it takes no worker while it waits. After
    `circuit_breaker_threshold` members (not attempts) have failed in a row, those that would start are refused for
    `circuit_breaker_timeout` seconds; None or 0 leaves the breaker out.

    Functions that are not async run in threads, or in `executor`, any of `concurrent.futures`; programs are
    `Command`s. A thread cannot be ended from outside: one that goes on after the group is told in the log and in
    `left`."""

    def __init__(
        self,
        execution_state: ExecutionState,
        max_workers: int = 5,
        error_strategy: ErrorStrategy = ErrorStrategy.FAIL_SLOW,
        timeout: float | None = None,
        name: str | None = None,
        max_retries: int = 0,
        retry_delay: float = 1.0,
        circuit_breaker_threshold: int | None = 5,
        circuit_breaker_timeout: float = 60.0,
        *,
        executor: Executor | None = None,
        grace: float = aio.GRACE,
    ) -> None:
        if not isinstance(execution_state, ExecutionState):
            raise InvalidSettingError(f"{execution_state!r} is no ExecutionState", hint="make one: ExecutionState()")
        _check(max_workers, timeout, name, error_strategy)
        _check_rest(max_retries, retry_delay, circuit_breaker_threshold, circuit_breaker_timeout, executor, grace)
        self.execution_state = execution_state
        self.group = ParallelEventGroup(
            name=name, error_strategy=ErrorStrategy(error_strategy), max_workers=max_workers, timeout=timeout,
            address=execution_state.place_for(name or "group"),
        )  # fmt: skip
        self.tasks: list[Member] = []
        self.left: tuple[str, ...] = ()
        self._policy = Policy(max_retries, base=retry_delay).checked()
        self._breaker = (
            CircuitBreaker(circuit_breaker_threshold, circuit_breaker_timeout) if circuit_breaker_threshold else None
        )
        self._executor, self._grace = executor, grace
        self._names: dict[str, Member] = {}
        self._run: Run | None = None
        self._closed = False

    async def __aenter__(self) -> ParallelExecutionManager:
        if self._closed:
            raise RuntimeError("this group is over; open another")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._run is None and kind is None and not self._closed:
                await self.gather()
            elif not self._closed:
                await self._begun(start=False).leave("the body of the group ended")
        finally:
            self._closed = True

    @property
    def results(self) -> list[ExecutionResult]:
        """What is there by now, in the order of adding."""
        return [member.result for member in self.tasks if member.result is not None]

    def add(self, coro: Any, name: str | None = None) -> None:
        """One more member: a coroutine, or something to call without arguments. Its context variables are those of
        this moment, and its own.

        Raises RuntimeError once the group has started, ValueError for a name that is taken and for a coroutine where
        retries are wanted, TypeError for what cannot be a member."""
        if self._run is not None or self._closed:
            if asyncio.iscoroutine(coro):
                coro.close()
            raise RuntimeError("this group has started: add everything before gather() or stream(), or open another")
        if name is not None and not isinstance(name, str):
            raise TypeError(f"a name is a text, not {name!r}")
        work = checked_work(coro, retries=bool(self._policy.retries))
        member = Member(len(self.tasks), name, self.group.address, work)
        if member.id in self._names:
            member.discard()
            raise ValueError(f"there is a member {member.id!r} already; give each its own name")
        self._names[member.id] = member
        self.tasks.append(member)

    async def gather(self) -> list[ExecutionResult]:
        """Every member's result, in the order of adding. Called again, the same.

        With fail fast, the first failure is raised as it was; when the time is up, TaskTimeoutError (which is
        asyncio.TimeoutError), whose `partial_traces` are the `results` so far."""
        await self._begun().finish()
        return self.results

    async def gather_dict(self) -> dict[str, ExecutionResult]:
        """The same by name; members without one have their number."""
        await self.gather()
        return {member.id: member.result for member in self.tasks if member.result is not None}

    async def stream(self) -> AsyncGenerator[ExecutionResult, None]:
        """Every result as soon as it is there. Raises what `gather` would, after what was there before. Left early,
        the rest is cancelled."""
        run = self._begun()
        try:
            at = 0
            while True:
                while at < len(run.arrived):
                    at += 1
                    result = run.arrived[at - 1].result
                    assert result is not None
                    yield result
                if run.is_over:
                    break
                await run.news()
            await run.finish()
        finally:
            await run.leave("the stream was left early")

    def cancel(self, reason: str = "cancelled") -> None:
        """End the group: nothing more starts, what runs is cancelled; `gather` returns what there is."""
        if self._run is not None:
            self._run.cancel(reason)

    def metrics(self) -> metrics.Metrics:
        """Figures of this group: attempts by their status, seconds, retries."""
        return self.execution_state.metrics(self.group.group_id)

    def _begun(self, *, start: bool = True) -> Run:
        """The group's run; when it is new, what may start does, if `start`."""
        if self._run is None:
            if self._closed:
                raise RuntimeError("this group is over; open another")
            self._run = Run(self, self._names, self._policy, self._breaker, self._executor, self._grace)
            if start:
                self._run.go()
        return self._run


def _check(max_workers: object, timeout: object, name: object, error_strategy: object) -> None:
    if not _is_whole(max_workers, 1):
        raise InvalidSettingError(f"max_workers {max_workers!r} is not possible", hint="give a whole number from 1")
    if timeout is not None and not (_is_seconds(timeout) and timeout):
        raise InvalidSettingError(f"timeout {timeout!r} is not possible", hint="give seconds > 0, or None")
    if name is not None and not isinstance(name, str):
        raise InvalidSettingError(f"name {name!r} is not possible", hint="give a text, or None")
    if error_strategy not in list(ErrorStrategy):
        raise InvalidSettingError(f"error_strategy {error_strategy!r} is not known", hint="FAIL_SLOW or FAIL_FAST")


def _check_rest(
    retries: object, delay: object, threshold: object, recovery: object, executor: object, grace: object
) -> None:
    if not _is_whole(retries):
        raise InvalidSettingError(f"max_retries {retries!r} is not possible", hint="give a whole number from 0")
    if threshold is not None and not _is_whole(threshold):
        raise InvalidSettingError(
            f"circuit_breaker_threshold {threshold!r} is not possible", hint="give a whole number, or None"
        )
    for what, seconds in {"retry_delay": delay, "circuit_breaker_timeout": recovery, "grace": grace}.items():
        if not _is_seconds(seconds):
            raise InvalidSettingError(f"{what} {seconds!r} is not possible", hint="give seconds from 0")
    if executor is not None and not isinstance(executor, Executor):
        raise InvalidSettingError(f"executor {executor!r} is none", hint="give one of concurrent.futures, or None")


def _is_whole(value: object, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and value >= 0


__all__ = ["CircuitOpenError", "InvalidSettingError", "ParallelExecutionManager"]
