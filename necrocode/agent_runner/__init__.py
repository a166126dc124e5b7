"""Stateless runner processes, kept apart by a directory of files: the face of the document "NecroCode".

Names are loaded when they are first used, so that importing this package costs next to nothing. `TimeoutError` is
here too, by name only: `import *` must not hide the builtin one.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "artifacts": ["ArtifactUploader"],
    "config": ["ExecutionMode", "RetryConfig", "RunnerConfig"],
    "context": ["ParallelExecutionContext"],
    "exceptions": [
        "ArtifactUploadError", "ImplementationError", "PlaybookExecutionError", "PushError", "ResourceConflictError",
        "ResourceLimitError", "RunnerError", "SecurityError", "TaskContextValidationError", "TaskTimeoutError",
        "TestExecutionError", "WorkspacePreparationError",
    ],
    "metrics": ["ExecutionMetrics", "MetricsCollector", "MetricsReporter"],
    "models": [
        "Artifact", "ImplementationResult", "PushResult", "RunnerInstance", "RunnerResult", "RunnerState",
        "RunnerStateSnapshot", "SingleTestResult", "TaskContext", "TestResult", "Workspace",
    ],
    "monitor": ["ResourceMonitor"],
    "parallel_coordinator": ["ParallelCoordinator", "Registration"],
    "playbook": ["Playbook", "PlaybookEngine", "PlaybookStep"],
    "runner_orchestrator": ["RunnerOrchestrator"],
    "task_executor": ["TaskExecutor"],
    "test_runner": ["TestRunner"],
}  # fmt: skip
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from necrocode.agent_runner.artifacts import ArtifactUploader as ArtifactUploader
    from necrocode.agent_runner.config import ExecutionMode as ExecutionMode
    from necrocode.agent_runner.config import RetryConfig as RetryConfig
    from necrocode.agent_runner.config import RunnerConfig as RunnerConfig
    from necrocode.agent_runner.context import ParallelExecutionContext as ParallelExecutionContext
    from necrocode.agent_runner.exceptions import ArtifactUploadError as ArtifactUploadError
    from necrocode.agent_runner.exceptions import ImplementationError as ImplementationError
    from necrocode.agent_runner.exceptions import PlaybookExecutionError as PlaybookExecutionError
    from necrocode.agent_runner.exceptions import PushError as PushError
    from necrocode.agent_runner.exceptions import ResourceConflictError as ResourceConflictError
    from necrocode.agent_runner.exceptions import ResourceLimitError as ResourceLimitError
    from necrocode.agent_runner.exceptions import RunnerError as RunnerError
    from necrocode.agent_runner.exceptions import SecurityError as SecurityError
    from necrocode.agent_runner.exceptions import TaskContextValidationError as TaskContextValidationError
    from necrocode.agent_runner.exceptions import TaskTimeoutError as TaskTimeoutError
    from necrocode.agent_runner.exceptions import TestExecutionError as TestExecutionError
    from necrocode.agent_runner.exceptions import WorkspacePreparationError as WorkspacePreparationError
    from necrocode.agent_runner.metrics import ExecutionMetrics as ExecutionMetrics
    from necrocode.agent_runner.metrics import MetricsCollector as MetricsCollector
    from necrocode.agent_runner.metrics import MetricsReporter as MetricsReporter
    from necrocode.agent_runner.models import Artifact as Artifact
    from necrocode.agent_runner.models import ImplementationResult as ImplementationResult
    from necrocode.agent_runner.models import PushResult as PushResult
    from necrocode.agent_runner.models import RunnerInstance as RunnerInstance
    from necrocode.agent_runner.models import RunnerResult as RunnerResult
    from necrocode.agent_runner.models import RunnerState as RunnerState
    from necrocode.agent_runner.models import RunnerStateSnapshot as RunnerStateSnapshot
    from necrocode.agent_runner.models import SingleTestResult as SingleTestResult
    from necrocode.agent_runner.models import TaskContext as TaskContext
    from necrocode.agent_runner.models import TestResult as TestResult
    from necrocode.agent_runner.models import Workspace as Workspace
    from necrocode.agent_runner.monitor import ResourceMonitor as ResourceMonitor
    from necrocode.agent_runner.parallel_coordinator import ParallelCoordinator as ParallelCoordinator
    from necrocode.agent_runner.parallel_coordinator import Registration as Registration
    from necrocode.agent_runner.playbook import Playbook as Playbook
    from necrocode.agent_runner.playbook import PlaybookEngine as PlaybookEngine
    from necrocode.agent_runner.playbook import PlaybookStep as PlaybookStep
    from necrocode.agent_runner.runner_orchestrator import RunnerOrchestrator as RunnerOrchestrator
    from necrocode.agent_runner.task_executor import TaskExecutor as TaskExecutor
    from necrocode.agent_runner.test_runner import TestRunner as TestRunner


def __getattr__(name: str) -> Any:
    home = "exceptions" if name == "TimeoutError" else _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return __all__
