"""What a pool tells of its tasks: status, metrics, results, and the errors in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from necrocode.errors import NecrocodeError, TaskFailed, TaskTimeoutError


class TaskStatus(StrEnum):
    """Where a task of a pool stands; completed, failed and cancelled are final."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    RETRYING = "retrying"


class TaskExecutionError(TaskFailed):
    """A task ended without its result; `__cause__` is the exception of its last attempt."""


class TaskTimedOutError(TaskExecutionError, TaskTimeoutError):
    """The last attempt was ended after `elapsed` seconds, because its limit was `timeout`."""

    def __init__(
        self, message: str, *, elapsed: float = 0.0, timeout: float = 0.0, partial_traces: Any = None, task_id: str = ""
    ) -> None:
        TaskFailed.__init__(self, message, task_id=task_id, hint="raise task_timeout_seconds or split the task")
        self.elapsed, self.timeout, self.partial_traces = elapsed, timeout, partial_traces


class WaitTimeoutError(NecrocodeError, TimeoutError):
    """The caller's patience ended; the tasks go on. `results` are those that were there, in order of submission."""

    def __init__(self, message: str, results: Sequence[Any] = ()) -> None:
        super().__init__(message, hint="wait again, or abort_pending_tasks()")
        self.results = list(results)


@dataclass(slots=True)
class TaskMetrics:
    """What was measured of one task. `start_time` and `end_time` are seconds since 1970, of the first attempt and of
    the end; 0.0 and None while there are none. `execution_time_ms` is the work of all attempts, without waiting."""

    task_id: str
    task_name: str
    status: TaskStatus = TaskStatus.PENDING
    start_time: float = 0.0
    end_time: float | None = None
    execution_time_ms: float = 0.0
    retries_used: int = 0
    worker_id: str | None = None
    error_message: str | None = None


@dataclass(slots=True)
class TaskResult:
    """How one task ended. `result` is None unless `success`; `error` is None if so."""

    task_id: str
    task_name: str
    success: bool
    result: Any = None
    error: Exception | None = None
    metrics: TaskMetrics | None = None
