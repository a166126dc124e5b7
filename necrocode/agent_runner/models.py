"""What goes into a run and what comes out: the document's records."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from necrocode.agent_runner.exceptions import TaskContextValidationError
from necrocode.agent_runner.mistakes import mistakes
from necrocode.errors import ConfigError
from necrocode.lease import RunnerInstance, checked_id

if TYPE_CHECKING:
    from necrocode.work import Place, Work

__all__ = [
    "Artifact",
    "ImplementationResult",
    "PushResult",
    "RunnerInstance",
    "RunnerResult",
    "RunnerState",
    "RunnerStateSnapshot",
    "SingleTestResult",
    "TaskContext",
    "TestResult",
    "Workspace",
]


class RunnerState(StrEnum):
    """Where a runner stands between its runs and within one."""

    IDLE = "idle"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"


class TaskContext(BaseModel):
    """The description of a task for one runner. Raises TaskContextValidationError for one that cannot be meant.

    `slot_path` is the work space (None: a work tree is made); `branch_name` is checked out or made there. `files`
    are claimed before the work begins, those that turn out to be changed are claimed then. `test_commands` None
    means that tests are looked for, [] that there are none; `timeout_seconds` None means the configuration's."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    task_id: str
    spec_name: str = ""
    title: str = ""
    description: str = ""
    acceptance_criteria: list[str] = Field(default_factory=list)
    dependencies: list[str] = Field(default_factory=list)
    required_skill: str = ""
    slot_path: Path | None = None
    slot_id: str = ""
    branch_name: str = ""
    test_commands: list[str | list[str]] | None = None
    fail_fast: bool = True
    timeout_seconds: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    playbook_path: Path | None = None
    complexity: str = "medium"
    require_review: bool = False
    metadata: dict[str, Any] = Field(default_factory=dict)
    files: list[str] = Field(default_factory=list)
    priority: int = Field(default=0, ge=-50, le=49)

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise TaskContextValidationError(mistakes(error, type(self)), where="task context") from None

    @field_validator("task_id")
    @classmethod
    def _id(cls, text: str) -> str:
        try:
            return checked_id(text)
        except ConfigError as error:
            raise ValueError(f"{error} ({error.hint})") from None

    def to_dict(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TaskContext:
        return cls(**data)

    @property
    def prompt(self) -> str:
        """What an agent is told: title, description, and the criteria as a list."""
        criteria = "\n".join(f"- {one}" for one in self.acceptance_criteria)
        parts = [self.title, self.description, f"Acceptance criteria:\n{criteria}" if criteria else ""]
        return "\n\n".join(part for part in parts if part) or self.task_id


@dataclass
class Workspace:
    """Where a task is worked on. `place` has the terms (environment, deadline, stop) and is None in the hands of
    others; `base` is the commit that the branch was started from."""

    path: Path
    branch_name: str = ""
    base: str = ""
    place: Place | None = field(default=None, repr=False)


@dataclass
class ImplementationResult:
    """What an agent did. `usage` is what it told of its costs, and what the system saw of its use."""

    success: bool
    diff: str = ""
    files_changed: list[str] = field(default_factory=list)
    duration_seconds: float = 0.0
    error: str | None = None
    usage: dict[str, float] | None = None
    work: Work | None = field(default=None, repr=False)
    """What the engine says of it, when the engine did it: timed out, stopped, the exit code."""


@dataclass
class SingleTestResult:
    """One test command: `exit_code` is None when it did not start or was ended; `output` is its last lines."""

    command: str
    success: bool
    exit_code: int | None = None
    duration_seconds: float = 0.0
    output: str = ""
    error: str | None = None


@dataclass
class TestResult:
    """All test commands that were run, in order; fewer than asked for when the first failure ended them."""

    __test__ = False

    success: bool
    test_results: list[SingleTestResult] = field(default_factory=list)
    total_duration_seconds: float = 0.0

    @property
    def passed(self) -> int:
        return sum(one.success for one in self.test_results)

    @property
    def failed(self) -> int:
        return len(self.test_results) - self.passed


@dataclass
class PushResult:
    """What a push did; `retry_count` is how often it was tried again."""

    success: bool
    branch_name: str
    commit_hash: str = ""
    retry_count: int = 0
    error: str | None = None


@dataclass
class Artifact:
    """One stored file: `type` is diff, log or test, `uri` where it lies, `sha256` of its bytes."""

    type: str
    uri: str
    size_bytes: int
    sha256: str


@dataclass
class RunnerResult:
    """How a run ended. `concurrent_runners` were at work when it was admitted, itself included; `waited_seconds` it
    waited before; `degraded` says that it ran without a slot because its limit stayed full and degrade was set."""

    success: bool
    runner_id: str
    task_id: str
    duration_seconds: float = 0.0
    artifacts: list[Artifact] = field(default_factory=list)
    error: str | None = None
    impl_result: ImplementationResult | None = None
    test_result: TestResult | None = None
    push_result: PushResult | None = None
    workspace_path: Path | None = None
    concurrent_runners: int = 1
    waited_seconds: float = 0.0
    degraded: bool = False
    error_kind: str = ""
    commits: list[str] = field(default_factory=list)
    branch_name: str = ""
    phases: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        data = asdict(self)
        data["workspace_path"] = str(self.workspace_path) if self.workspace_path else None
        return data


@dataclass
class RunnerStateSnapshot:
    """A runner's state as it lies on disk, for whoever takes over; times are UTC."""

    runner_id: str
    state: RunnerState
    task_id: str = ""
    spec_name: str = ""
    start_time: datetime | None = None
    last_updated: datetime = field(default_factory=lambda: datetime.now(UTC))
    metadata: dict[str, Any] = field(default_factory=dict)
    workspace_path: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "state": str(self.state),
            "start_time": self.start_time.isoformat() if self.start_time else None,
            "last_updated": self.last_updated.isoformat(),
            "workspace_path": str(self.workspace_path) if self.workspace_path else None,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunnerStateSnapshot:
        """The reverse; unknown keys are ignored. Raises KeyError, TypeError or ValueError for what is no snapshot."""
        known = {key: data[key] for key in (one.name for one in fields(cls)) if key in data}
        known["state"] = RunnerState(data["state"])
        known["last_updated"] = datetime.fromisoformat(data["last_updated"])
        known["start_time"] = datetime.fromisoformat(data["start_time"]) if data.get("start_time") else None
        known["workspace_path"] = Path(data["workspace_path"]) if data.get("workspace_path") else None
        return cls(**known)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> RunnerStateSnapshot:
        return cls.from_dict(json.loads(text))


def folder_name(text: str) -> str:
    """One part of a path for any text: what a file name should not hold becomes `_`."""
    return re.sub(r"[^A-Za-z0-9._ -]", "_", text).lstrip(".").strip()[:100] or "_"
