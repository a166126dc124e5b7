"""One member of a group: what it does, in which context, how often it began, and what came of it."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import traceback
from collections.abc import Coroutine
from concurrent.futures import Executor
from functools import partial
from types import CoroutineType
from typing import Any

from necrocode import aio
from necrocode.errors import ConfigError
from necrocode.parallel.models import ExecutionResult


class InvalidSettingError(ConfigError, ValueError):
    """An argument of a group cannot be meant."""


class CircuitOpenError(RuntimeError):
    """The group's circuit breaker is open: so many members failed in a row that this one was not started."""


class Member:
    """`work` is a coroutine, a future, or something to call; coroutines and futures can be used once only. Once it has
    a `result` it has neither `work` nor `context` any more."""

    __slots__ = ("address", "attempts", "context", "id", "index", "name", "result", "since", "spent", "work")

    def __init__(self, index: int, name: str | None, group: str, work: Any) -> None:
        self.index, self.name, self.work = index, name, work
        self.id = str(index) if name is None else name
        self.context: Any = contextvars.copy_context()
        self.address = f"{group}/{self.id}"
        self.attempts = 0
        self.since: float | None = None
        self.spent = 0.0
        self.result: ExecutionResult | None = None

    def begin(self, threads: aio.Threads, executor: Executor | None) -> Coroutine[Any, Any, Any]:
        """One attempt, as a coroutine."""
        work = self.work
        if isinstance(work, CoroutineType):
            return work
        if inspect.isawaitable(work):
            return _awaited(work)
        if aio.is_async(work):
            return _called(work)
        if executor is not None:
            return _submitted(executor, work)
        return threads.call(work, f"parallel-{self.id}")

    def discard(self) -> None:
        """It will not be started."""
        if asyncio.iscoroutine(self.work):
            self.work.close()
        elif asyncio.isfuture(self.work):
            self.work.cancel()

    def over(self, result: ExecutionResult) -> None:
        """It has ended: what it was made of is not kept."""
        self.result, self.work, self.context = result, None, None

    def ends(self, now: float) -> float:
        """The seconds that its attempts took in all."""
        if self.since is not None:
            self.spent += now - self.since
            self.since = None
        return self.spent


async def _awaited(work: Any) -> Any:
    return await work


async def _called(work: Any) -> Any:
    value = work()
    return await value if inspect.isawaitable(value) else value


async def _submitted(executor: Executor, work: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(executor, partial(work))


def told(error: BaseException) -> str:
    """The error in words; also of one that cannot be printed."""
    return "".join(traceback.format_exception_only(error)).strip()


def checked_work(work: Any, *, retries: bool) -> Any:
    """The work itself; TypeError for what can be neither awaited nor called, InvalidSettingError for what cannot be
    done twice although that is wanted."""
    coroutine = asyncio.iscoroutine(work)
    if coroutine or inspect.isawaitable(work):
        if retries:
            if coroutine:
                work.close()
            raise InvalidSettingError(
                "a coroutine can be awaited once only, so it cannot be retried",
                hint="add the function itself, or functools.partial(function, ...), when max_retries is set",
            )
        return work
    if not callable(work):
        raise TypeError(f"a member is a coroutine or something to call, not {work!r}")
    return work
