"""The worker pool: submit calls, get their results in the order of submission, with retries, limits and metrics."""

from __future__ import annotations

from necrocode.concurrency.config import WorkerPoolConfig
from necrocode.concurrency.pool import WorkerPool
from necrocode.concurrency.results import (
    TaskExecutionError,
    TaskMetrics,
    TaskResult,
    TaskStatus,
    TaskTimedOutError,
    WaitTimeoutError,
)
from necrocode.context import TaskContext, check_timeout, current
from necrocode.errors import TaskTimeoutError
from necrocode.futures import PoolClosed, Unfit

__all__ = [
    "PoolClosed", "TaskContext", "TaskExecutionError", "TaskMetrics", "TaskResult", "TaskStatus", "TaskTimedOutError",
    "TaskTimeoutError", "Unfit", "WaitTimeoutError", "WorkerPool", "WorkerPoolConfig", "check_timeout", "current",
]  # fmt: skip
