"""Functions that are not async, each in a daemon thread of its own, awaited on the loop."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from necrocode.context import TaskContext
from necrocode.errors import TaskFailed


async def to_the_end(future: asyncio.Future[Any], cancelled: Callable[[], object] | None = None) -> Any:
    """The future's value. Whoever waits here does so to its end, also when cancelled meanwhile: then `cancelled` is
    called, and CancelledError raised afterwards in place of the value."""
    interrupted = False
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            interrupted = True
            if cancelled is not None:
                cancelled()
    if interrupted:
        future.cancelled() or future.exception()  # looked at, so that nobody warns of it
        raise asyncio.CancelledError
    return future.result()


def is_async(call: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine, as far as can be told without doing so."""
    while hasattr(call, "func") and hasattr(call, "keywords"):  # a partial
        call = call.func
    return inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(getattr(call, "__call__", None))  # noqa: B004


class Threads:
    """Runs functions, each in a daemon thread of its own. One whose future is cancelled is told at its next
    `context.check_timeout()`. One that never asks is left alone, not waited for by the interpreter, and stays in
    `left` until it ends."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._alive: dict[str, asyncio.Future[None]] = {}
        self._number = 0

    @property
    def left(self) -> tuple[str, ...]:
        """The names of the threads that still run."""
        return tuple(self._alive)

    def start(
        self, call: Callable[[], Any], name: str = "necrocode", context: contextvars.Context | None = None
    ) -> asyncio.Future[Any]:
        """The future of its value. In `context`, or a copy of this one."""
        future: asyncio.Future[Any] = self._loop.create_future()
        run = (context or contextvars.copy_context()).run
        clock = TaskContext(task_id=name)
        run(clock.enter)
        future.add_done_callback(lambda done: clock.stop("it was cancelled") if done.cancelled() else None)
        self._number += 1
        name = f"{name}.{self._number}"
        thread = threading.Thread(target=self._carry, args=(run, call, name, future), name=name, daemon=True)
        self._alive[name] = self._loop.create_future()
        try:
            thread.start()
        except RuntimeError as error:  # the system has no thread to give
            del self._alive[name]
            future.set_exception(error)
        return future

    async def call(self, call: Callable[[], Any], name: str = "necrocode") -> Any:
        """Its value; what it gives that can be awaited is awaited here, on the loop."""
        value = await self.start(call, name)
        return await value if inspect.isawaitable(value) else value

    async def ended(self, seconds: float) -> tuple[str, ...]:
        """Wait for all of them, for so long at most; the names of those that go on."""
        if self._alive:
            await asyncio.wait(self._alive.values(), timeout=seconds)
        return self.left

    def _carry(self, run: Callable[..., Any], call: Callable[[], Any], name: str, future: asyncio.Future[Any]) -> None:
        value: Any = None
        error: BaseException | None = None
        try:
            value = run(call)
        except BaseException as raised:  # noqa: BLE001 - raised again where it is awaited
            error = raised
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._settle, name, future, value, error)

    def _settle(self, name: str, future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
        self._alive.pop(name).set_result(None)
        if future.done():
            return
        if error is None:
            future.set_result(value)
        elif isinstance(error, Exception) and not isinstance(error, StopIteration):
            future.set_exception(error)
        else:  # what would end the loop, or cannot pass through a coroutine
            told = TaskFailed(f"the function ended with {type(error).__name__}: {error}")
            told.__cause__ = error
            future.set_exception(told)
