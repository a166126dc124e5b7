"""Tasks, results, instances and locks as the document names them. Moments are seconds since 1970."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import isfinite
from typing import Any

from necrocode import clock
from necrocode.errors import ConfigError


class InvalidTaskCall(ConfigError, ValueError):
    """A task call, or a setting, that cannot be meant."""


@dataclass
class AgentTask:
    """What one agent is asked to do. Higher `priority` goes first; `dependencies` are task ids that must end well
    before; `timeout_seconds` is for one attempt once it works, None for no limit; `retries` are further attempts, None
    for the manager's number. `idempotency_key` is the same for the same request; made from it when not given."""

    agent_id: str
    task_type: str
    description: str
    context_data: dict[str, Any] = field(default_factory=dict)
    priority: int = 1
    dependencies: list[str] = field(default_factory=list)
    timeout_seconds: float | None = 300
    created_at: float = field(default_factory=clock.wall)
    workflow_id: str | None = None
    phase: Any = None
    task_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    retries: int | None = None
    idempotency_key: str = ""

    def __post_init__(self) -> None:
        self.idempotency_key = self.idempotency_key or self._key()

    def _key(self) -> str:
        asked = [self.agent_id, self.task_type, self.description, self.context_data]
        return hashlib.sha256(json.dumps(asked, sort_keys=True, default=repr).encode()).hexdigest()[:32]

    def checked(self) -> AgentTask:
        """This task, or InvalidTaskCall for one that cannot be meant."""
        for name in ("agent_id", "task_type", "description", "task_id"):
            if not isinstance(getattr(self, name), str) or (not getattr(self, name) and name.endswith("_id")):
                raise InvalidTaskCall(f"{name} {getattr(self, name)!r} is not possible", hint="give a text")
        if not isinstance(self.context_data, Mapping):
            raise InvalidTaskCall(f"context_data of {self.agent_id} is no mapping", hint="give a dictionary")
        if not isinstance(self.dependencies, list | tuple | set | frozenset):
            raise InvalidTaskCall(f"dependencies of {self.agent_id} are no list", hint="give a list of task ids")
        if not _is_whole(self.priority):
            raise InvalidTaskCall(f"priority {self.priority!r} is not possible", hint="give a whole number")
        if self.retries is not None and not (_is_whole(self.retries) and self.retries >= 0):
            raise InvalidTaskCall(f"retries {self.retries!r} is not possible", hint="give a whole number from 0")
        seconds = self.timeout_seconds
        if seconds is not None and (not _is_number(seconds) or not seconds > 0):
            raise InvalidTaskCall(f"timeout_seconds {seconds!r} is not possible", hint="give seconds > 0, or None")
        return self

    @classmethod
    def of(cls, call: Mapping[str, Any] | AgentTask) -> AgentTask:
        """The task of a call. Raises InvalidTaskCall, which names what is missing or unknown."""
        if isinstance(call, AgentTask):
            return call.checked()
        if not isinstance(call, Mapping):
            raise InvalidTaskCall(f"{call!r} is no task call", hint="make it with create_task_call")
        known = [one.name for one in fields(cls)]
        unknown = sorted(str(key) for key in call if key not in known)
        missing = [name for name in known[:3] if name not in call]
        if unknown or missing:
            what = f"misses {', '.join(missing)}" if missing else f"has {', '.join(unknown)}, which means nothing"
            raise InvalidTaskCall(f"a task call {what}", hint=f"its keys are {', '.join(known)}")
        return cls(**{**call, "context_data": call.get("context_data") or {}}).checked()


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


@dataclass
class AgentResult:
    """What came of a task. `status` is completed, failed or cancelled; `confidence_score` and `evidence` are the
    agent's own word, None and empty when it said nothing. `attempts` is 0 for a task that never began."""

    agent_id: str = ""
    task_id: str = ""
    success: bool = True
    data: Any = None
    confidence_score: float | None = None
    evidence: list[Any] = field(default_factory=list)
    execution_time_ms: float = 0
    error_message: str | None = None
    created_files: list[str] = field(default_factory=list)
    start_time: float = 0.0
    end_time: float | None = None
    progress: float = 0.0
    status: str = "pending"
    instance_id: str = ""
    attempts: int = 0
    idempotency_key: str = ""
    error: BaseException | None = field(default=None, repr=False, compare=False)


@dataclass
class AgentInstance:
    """One agent at work on one task. `status` is waiting, running, completed, failed or cancelled; `heartbeat` is the
    last sign that whoever carries it lives."""

    instance_id: str
    agent_id: str
    task_id: str
    status: str = "running"
    resources_locked: set[str] = field(default_factory=set)
    start_time: float = field(default_factory=clock.wall)
    heartbeat: float = field(default_factory=clock.wall)
    progress: float = 0.0


@dataclass
class ResourceLock:
    """Who holds a resource. `lock_type` is file, directory or service; `expires_at` moves on with every heartbeat."""

    resource_id: str
    locked_by: str
    lock_type: str
    locked_at: float
    expires_at: float | None = None


def create_task_call(
    agent_id: str, task_type: str, description: str, context_data: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    """A task call as a plain dictionary; `more` are other fields of AgentTask (priority, dependencies, task_id,
    timeout_seconds, retries, ...)."""
    return {
        "agent_id": agent_id, "task_type": task_type, "description": description, "context_data": context_data or {},
        **more,
    }  # fmt: skip
