"""What running work knows of its own clock: how long it has worked, how long it may, and whether to stop.

Threads cannot be ended from outside, so work that wants to end in time asks: `check_timeout()` raises once the
deadline has passed or somebody asked the work to stop. The context of the work that runs here is `current()`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from necrocode import clock
from necrocode.errors import TaskFailed, TaskTimeoutError

_current: ContextVar[TaskContext | None] = ContextVar("necrocode_context", default=None)


class TaskContext:
    """One attempt's clock, started when this is made. `deadline` is in seconds from then, None for no limit.

    What the work puts into `collected_traces` is carried by a TaskTimeoutError as `partial_traces`."""

    __slots__ = ("_began", "_stopped_for", "_traces", "deadline", "task_id")

    def __init__(self, deadline: float | None = None, *, task_id: str = "") -> None:
        self.deadline, self.task_id = deadline, task_id
        self._traces: dict[str, Any] | None = None
        self._began = clock.monotonic()
        self._stopped_for: str | None = None

    @property
    def collected_traces(self) -> dict[str, Any]:
        """What the work has found so far."""
        if self._traces is None:
            self._traces = {}
        return self._traces

    def restart(self) -> None:
        """The work begins now: what went before was waiting."""
        self._began = clock.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return clock.monotonic() - self._began

    @property
    def remaining(self) -> float | None:
        """Seconds until the deadline, never below 0; None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - self.elapsed)

    @property
    def is_expired(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and self.elapsed >= self.deadline

    @property
    def is_stopped(self) -> bool:
        """Whether somebody asked this work to stop."""
        return self._stopped_for is not None

    def stop(self, reason: str) -> None:
        """Ask the work to stop at its next check point. Safe from any thread."""
        self._stopped_for = reason

    def check_timeout(self) -> None:
        """A check point: raises TaskTimeoutError after the deadline, TaskFailed when asked to stop, else nothing."""
        elapsed = self.elapsed
        if self.deadline is not None and elapsed >= self.deadline:
            raise TaskTimeoutError(elapsed, self.deadline, self.collected_traces, task_id=self.task_id)
        if self._stopped_for is not None:
            raise TaskFailed(f"asked to stop: {self._stopped_for}", task_id=self.task_id)

    def set_collected_traces(self, traces: dict[str, Any]) -> None:
        """Keep what was found so far, in case the clock runs out."""
        self._traces = traces

    @contextmanager
    def active(self) -> Iterator[TaskContext]:
        """This is the `current()` one inside the block."""
        before = _current.set(self)
        try:
            yield self
        finally:
            _current.reset(before)

    def enter(self) -> None:
        """Make this the `current()` one of the thread or coroutine that calls."""
        _current.set(self)


def current() -> TaskContext | None:
    """The context of the work that runs here, None when no work of necrocode does."""
    return _current.get()


def check_timeout() -> None:
    """A check point of the work that runs here; nothing outside of any. Raises like TaskContext.check_timeout."""
    context = _current.get()
    if context is not None:
        context.check_timeout()
