"""What is asked of the agents, and under which terms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from math import isfinite
from typing import Any
from uuid import uuid4

from necrocode.errors import ConfigError


class TimeoutAction(Enum):
    """What follows when a task's time is over. EXTEND is another name for RETRY: the task gets its time once more."""

    SKIP = "skip"
    """Report it and go on."""
    RETRY = "retry"
    """Attempt it again, `max_retries` times, at least once."""
    RAISE = "raise"
    """End the run: stop what runs, and raise TaskTimeoutError."""
    EXTEND = "retry"  # noqa: PIE796 - another name on purpose

    @classmethod
    def _missing_(cls, value: object) -> TimeoutAction | None:
        return cls.RETRY if value == "extend" else None


@dataclass
class TaskProtocol:
    """The terms of a task. `timeout_seconds` is for one attempt (None: no limit); a failing task is attempted
    `max_retries` more times; higher `priority` goes first in a PriorityQueue; `tags` are yours, to filter and group.

    Raises ConfigError for what cannot be meant."""

    timeout_seconds: float | None = None
    timeout_action: TimeoutAction = TimeoutAction.SKIP
    max_retries: int = 0
    priority: int = 0
    tags: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        limit = self.timeout_seconds
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int | float) or not isfinite(limit)
                                  or limit <= 0):  # fmt: skip
            raise ConfigError(f"timeout_seconds {limit!r} is not possible", hint="give seconds above 0, or None")
        if not _is_whole(self.max_retries) or self.max_retries < 0:
            raise ConfigError(f"max_retries {self.max_retries!r} is not possible", hint="give a whole number from 0")
        if not _is_whole(self.priority):
            raise ConfigError(f"priority {self.priority!r} is not possible", hint="give a whole number")
        if not isinstance(self.tags, dict):
            raise ConfigError(f"tags {self.tags!r} are not possible", hint="give a dict of names and values")
        try:
            self.timeout_action = TimeoutAction(self.timeout_action)
        except ValueError:
            raise ConfigError(
                f"timeout_action {self.timeout_action!r} is not known", hint="SKIP, RETRY or RAISE"
            ) from None

    @property
    def attempts(self) -> int:
        """How often the task is attempted at most."""
        return 1 + max(self.max_retries, 1 if self.timeout_action is TimeoutAction.RETRY else 0)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass
class Task:
    """One thing to ask. `id` names it in reports; without one it gets a random one, which no later run can know."""

    query: str
    id: str = ""
    environment_data: dict[str, Any] = field(default_factory=dict)
    user_data: dict[str, Any] = field(default_factory=dict)
    evaluation_data: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    protocol: TaskProtocol = field(default_factory=TaskProtocol)

    def __post_init__(self) -> None:
        if not isinstance(self.protocol, TaskProtocol):
            raise ConfigError(f"protocol {self.protocol!r} is not possible", hint="give a TaskProtocol")
        self.has_own_id = bool(self.id)
        self.id = str(self.id) if self.id else str(uuid4())


class TaskCollection(list[Task]):
    """Tasks in an order; a list that also accepts the tasks' data as mappings."""

    @classmethod
    def from_list(cls, data: Iterable[Task | Mapping[str, Any]]) -> TaskCollection:
        """Raises ConfigError for data that is no task."""
        return cls(task_of(item) for item in data)

    def with_tag(self, name: str, value: Any) -> TaskCollection:
        """Those whose protocol has this tag with this value."""
        return TaskCollection(task for task in self if task.protocol.tags.get(name, _NONE) == value)


_NONE = object()


def task_of(item: Task | Mapping[str, Any]) -> Task:
    """The task itself, or one from its data; a `protocol` may be a mapping too. Raises ConfigError."""
    if isinstance(item, Task):
        return item
    if not isinstance(item, Mapping):
        raise ConfigError(f"{item!r} is no task", hint="give a Task, or a mapping with its fields")
    fields = dict(item)
    try:
        if isinstance(fields.get("protocol"), Mapping):
            fields["protocol"] = TaskProtocol(**fields["protocol"])
        return Task(**fields)
    except TypeError as error:
        raise ConfigError(f"{item!r} is no task: {error}", hint="its fields are those of Task") from error
