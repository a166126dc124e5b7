"""What is told of one repetition of a task: a plain dict with `task_id`, `repeat_idx`, `status`, `traces`, `config`,
`eval` and `error`."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from concurrent.futures import BrokenExecutor
from enum import StrEnum
from traceback import format_exception
from typing import Any

from necrocode.errors import NecrocodeError, TaskFailed, TaskTimeoutError
from necrocode.futures.workload import Unfit


class TaskExecutionStatus(StrEnum):
    """How a repetition ended."""

    SUCCESS = "success"
    AGENT_ERROR = "agent_error"
    """The agents failed: AgentError."""
    ENVIRONMENT_ERROR = "environment_error"
    """Their environment failed: TaskEnvironmentError."""
    USER_ERROR = "user_error"
    """The simulated user failed: UserError."""
    TASK_TIMEOUT = "task_timeout"
    """Its time was over."""
    UNKNOWN_EXECUTION_ERROR = "unknown_execution_error"
    """Anything else that was raised while the agents ran."""
    EVALUATION_FAILED = "evaluation_failed"
    SETUP_FAILED = "setup_failed"
    INFRASTRUCTURE_ERROR = "infrastructure_error"
    """Not the task's fault: a process died, memory or disk was full, the state could not be used. A resumed run does
    it again."""


class AgentError(TaskFailed):
    """Raise this when the agents did something that they must not do."""


class TaskEnvironmentError(TaskFailed):
    """Raise this when the environment of a task failed, through no fault of the agents."""


class UserError(TaskFailed):
    """Raise this when the simulated user failed."""


class RepetitionFailed(NecrocodeError):
    """One attempt did not succeed; `report` is what there is to tell."""

    def __init__(self, report: Mapping[str, Any]) -> None:
        super().__init__(str((report.get("error") or {}).get("error_message", report.get("status", "failed"))))
        self.report = dict(report)


class RepetitionTimedOut(TaskTimeoutError):
    """The same, when its time was over."""

    def __init__(
        self, elapsed: float = 0.0, timeout: float = 0.0, partial_traces: Any = None, report: Mapping[str, Any] = {}
    ) -> None:
        super().__init__(elapsed, timeout, partial_traces)
        self.report = dict(report)


_OF_KIND = (
    (AgentError, TaskExecutionStatus.AGENT_ERROR),
    (TaskEnvironmentError, TaskExecutionStatus.ENVIRONMENT_ERROR),
    (UserError, TaskExecutionStatus.USER_ERROR),
)
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EROFS})


def status_of(error: BaseException, otherwise: TaskExecutionStatus, *, expired: bool) -> TaskExecutionStatus:
    """What an exception says of a repetition; `otherwise` when it says nothing particular."""
    if isinstance(error, TaskTimeoutError) and expired:
        return TaskExecutionStatus.TASK_TIMEOUT
    if is_infrastructure(error):
        return TaskExecutionStatus.INFRASTRUCTURE_ERROR
    for kind, status in _OF_KIND:
        if isinstance(error, kind):
            return status
    return otherwise


def is_infrastructure(error: BaseException) -> bool:
    """Whether this is no fault of the task."""
    ours = isinstance(error, NecrocodeError) and not isinstance(error, TaskFailed | Unfit)
    full = isinstance(error, OSError) and error.errno in _FULL
    return ours or full or isinstance(error, MemoryError | BrokenExecutor)


def error_of(error: BaseException) -> dict[str, Any]:
    """An exception as plain data: error_type, error_message, traceback, and for a timeout elapsed and timeout."""
    told: dict[str, Any] = {
        "error_type": type(error).__name__,
        "error_message": str(error),
        "traceback": "".join(format_exception(error)),
    }
    if isinstance(error, TaskTimeoutError):
        told |= {"elapsed": error.elapsed, "timeout": error.timeout, "partial_traces": error.partial_traces}
    return told


def report_of(
    task_id: str,
    repeat_idx: int,
    status: TaskExecutionStatus,
    *,
    traces: Any = None,
    config: Any = None,
    evaluation: Any = None,
    error: BaseException | None = None,
) -> dict[str, Any]:
    """The report, with all of its keys."""
    return {
        "task_id": task_id,
        "repeat_idx": repeat_idx,
        "status": str(status),
        "traces": {} if traces is None else traces,
        "config": {} if config is None else config,
        "eval": evaluation,
        "error": None if error is None else error_of(error),
    }
