"""The document's exceptions: names for parts of the one tree, and a few kinds of failed tasks."""

from __future__ import annotations

from typing import Any

from necrocode.errors import (
    ConfigError,
    NecrocodeError,
    PlaybookExecutionError,
    ResourceConflictError,
    ResourceLimitError,
    TaskFailed,
    TaskTimeoutError,
)

__all__ = [
    "ArtifactUploadError",
    "ImplementationError",
    "PlaybookExecutionError",
    "PushError",
    "ResourceConflictError",
    "ResourceLimitError",
    "RunnerError",
    "SecurityError",
    "TaskContextValidationError",
    "TaskTimeoutError",
    "TestExecutionError",
    "WorkspacePreparationError",
]

RunnerError = NecrocodeError
"""Base of everything that this package raises."""


class TaskContextValidationError(ConfigError):
    """A task's description cannot be used; the text names every field that is wrong."""


class WorkspacePreparationError(TaskFailed):
    """The work space could not be made ready."""


class ImplementationError(TaskFailed):
    """The agent did not do what was asked."""


class TestExecutionError(TaskFailed):
    """The tests did not accept the work."""

    __test__ = False


class PushError(TaskFailed):
    """The branch could not be pushed; it is whole in the local repository."""


class ArtifactUploadError(TaskFailed):
    """What the task left behind could not be stored."""


class SecurityError(TaskFailed):
    """Something was asked for that must not be done."""


def __getattr__(name: str) -> Any:
    if name == "TimeoutError":  # by name only: never in `import *`, where it would hide the builtin one
        return TaskTimeoutError
    raise AttributeError(name)
