"""What groups, results and their progress are, as models that can be written as JSON and read back."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Annotated, Any
from uuid import uuid4

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, PrivateAttr, TypeAdapter

from necrocode import clock


class GroupStatus(StrEnum):
    """Where a group stands."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    """Every member came to its own end; with the strategy fail slow, some of them may have failed."""
    FAILED = "failed"
    """Ended by its first failure (fail fast) or by its timeout."""
    CANCELLED = "cancelled"
    """The body raised, the stream was left early, or somebody cancelled it."""


class ErrorStrategy(StrEnum):
    """What one member's failure means for the others."""

    FAIL_SLOW = "fail_slow"
    FAIL_FAST = "fail_fast"


class ParallelDisplayMode(StrEnum):
    """How a printer shows groups: a line per event, or a line per group that is kept up to date."""

    REALTIME = "realtime"
    PROGRESS = "progress"


class EventType(StrEnum):
    """What an event is about."""

    AGENT_CALL = "agent_call"
    TOOL_CALL = "tool_call"
    LLM_CALL = "llm_call"
    TASK = "task"
    GROUP_STARTED = "group_started"
    GROUP_COMPLETED = "group_completed"
    GROUP_FAILED = "group_failed"
    """The group did not run to its end: see its status for failed or cancelled."""


class ExecutionStatus(StrEnum):
    """Where what an event is about stands."""

    STARTED = "started"
    RETRYING = "retrying"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(slots=True, init=False)
class ExecutionResult:
    """What came of one member. `execution_time` is in seconds; `error` is the exception itself and is not written.

    `erro_message` is the name that this field had first; `error_message` is the same. Written and read like the
    models; it is none, since there is one for each member and a model costs ten times as much to make."""

    __pydantic_config__ = ConfigDict(arbitrary_types_allowed=True)

    result: Any = None
    execution_time: float = 0.0
    ok: bool = True
    erro_message: Annotated[str | None, Field(validation_alias=AliasChoices("erro_message", "error_message"))] = None
    name: str = ""
    index: int | None = None
    attempts: int = 0
    cancelled: bool = False
    is_replayed: bool = False
    error: Annotated[BaseException | None, Field(exclude=True)] = None

    def __init__(
        self, *, result: Any = None, execution_time: float = 0.0, ok: bool = True, erro_message: str | None = None,
        name: str = "", index: int | None = None, attempts: int = 0, cancelled: bool = False,
        is_replayed: bool = False, error: BaseException | None = None, error_message: str | None = None,
    ) -> None:  # fmt: skip
        self.result, self.execution_time, self.ok = result, execution_time, ok
        self.erro_message = error_message if erro_message is None else erro_message
        self.name, self.index, self.attempts = name, index, attempts
        self.cancelled, self.is_replayed, self.error = cancelled, is_replayed, error

    @property
    def error_message(self) -> str | None:
        return self.erro_message

    def model_dump(self, **how: Any) -> dict[str, Any]:
        """The fields without `error`; arguments as for any model."""
        data: dict[str, Any] = _adapter().dump_python(self, **how)
        return data

    def model_dump_json(self, **how: Any) -> str:
        return _adapter().dump_json(self, **how).decode()

    @classmethod
    def model_validate(cls, data: Any, **how: Any) -> ExecutionResult:
        """Raises pydantic.ValidationError for what is none."""
        return _adapter().validate_python(data, **how)

    @classmethod
    def model_validate_json(cls, text: str | bytes, **how: Any) -> ExecutionResult:
        return _adapter().validate_json(text, **how)


@cache
def _adapter() -> TypeAdapter[ExecutionResult]:
    return TypeAdapter(ExecutionResult)


class _Timed(BaseModel):
    """Counts that belong to a stretch of time; moments are seconds since 1970, durations are on the monotonic clock."""

    start_time: float | None = None
    _began: float | None = PrivateAttr(default=None)

    def _begin(self) -> None:
        self.start_time, self._began = clock.wall(), clock.monotonic()

    def _since(self) -> float:
        if self._began is not None:
            return max(0.0, clock.monotonic() - self._began)
        return max(0.0, clock.wall() - self.start_time) if self.start_time is not None else 0.0


class ParallelEventGroup(_Timed):
    """One group: how many members it has, how many ended well (`completed`), badly (`failed`) or were not carried
    to an end (`cancelled`)."""

    group_id: str = Field(default_factory=lambda: str(uuid4()))
    name: str | None = None
    address: str = ""
    total: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    replayed: int = 0
    status: GroupStatus = GroupStatus.PENDING
    end_time: float | None = None
    error_strategy: ErrorStrategy = ErrorStrategy.FAIL_SLOW
    max_workers: int = 5
    timeout: float | None = None
    errors: list[str] = Field(default_factory=list)
    seconds: float | None = None

    @property
    def execution_time(self) -> float | None:
        """Seconds from the start to the end, or until now; None before the start."""
        if self.seconds is not None or self.start_time is None:
            return self.seconds
        return self._since()

    @property
    def success_rate(self) -> float:
        """The share of members that ended well, 0 to 100."""
        return 100.0 * self.completed / self.total if self.total else 0.0

    @property
    def is_over(self) -> bool:
        return self.status in (GroupStatus.COMPLETED, GroupStatus.FAILED, GroupStatus.CANCELLED)

    def count(self, what: str) -> None:
        """One more of `completed`, `failed`, `cancelled` or `replayed`."""
        # Past pydantic's look at every assignment, which would cost more than all else about a member's end.
        self.__dict__[what] += 1

    def mark_started(self) -> None:
        self.status = GroupStatus.RUNNING
        self._begin()

    def mark_completed(self) -> None:
        self._end(GroupStatus.COMPLETED)

    def mark_failed(self, error: str | None = None) -> None:
        if error is not None and error not in self.errors:
            self.errors.append(error)
        self._end(GroupStatus.FAILED)

    def mark_cancelled(self) -> None:
        self._end(GroupStatus.CANCELLED)

    def _end(self, status: GroupStatus) -> None:
        self.seconds = self._since()
        self.status, self.end_time = status, clock.wall()


class ParallelGroupTracker(_Timed):
    """What a printer knows of a group. `started` counts members; `progress_line_number` is its line on the screen."""

    group_id: str
    name: str | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    started: int = 0
    last_update_time: float | None = None
    progress_line_number: int | None = None
    seconds: float | None = None

    @property
    def ended(self) -> int:
        return self.completed + self.failed + self.cancelled

    @property
    def is_complete(self) -> bool:
        return self.ended >= self.total

    @property
    def completion_percentage(self) -> float:
        """0 to 100; of an empty group 100."""
        return min(100.0, 100.0 * self.ended / self.total) if self.total else 100.0

    @property
    def elapsed_time(self) -> float:
        """Seconds since the start; of a group that ended, from its start to its end."""
        return self._since() if self.seconds is None else self.seconds

    def mark_started(self) -> None:
        self._begin()
        self.last_update_time = self.start_time

    def touch(self) -> None:
        self.last_update_time = clock.wall()
