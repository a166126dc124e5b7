"""Many calls to agents at once: named resources, priorities, dependencies, limits, progress, status; one event loop.

Covers `mcp_integration_layer`. Names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "models": ["AgentInstance", "AgentResult", "AgentTask", "InvalidTaskCall", "ResourceLock", "create_task_call"],
    "layer": [
        "MCPIntegrationLayer", "batch_task_calls", "execute_task_batches", "get_mcp_integration_layer",
        "reset_mcp_integration_layer",
    ],
    "manager": ["ParallelTaskManager"],
    "executors": ["AgentFailed", "NoExecutor"],
}  # fmt: skip
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from necrocode.task_calls.executors import AgentFailed as AgentFailed
    from necrocode.task_calls.executors import NoExecutor as NoExecutor
    from necrocode.task_calls.layer import MCPIntegrationLayer as MCPIntegrationLayer
    from necrocode.task_calls.layer import batch_task_calls as batch_task_calls
    from necrocode.task_calls.layer import execute_task_batches as execute_task_batches
    from necrocode.task_calls.layer import get_mcp_integration_layer as get_mcp_integration_layer
    from necrocode.task_calls.layer import reset_mcp_integration_layer as reset_mcp_integration_layer
    from necrocode.task_calls.manager import ParallelTaskManager as ParallelTaskManager
    from necrocode.task_calls.models import AgentInstance as AgentInstance
    from necrocode.task_calls.models import AgentResult as AgentResult
    from necrocode.task_calls.models import AgentTask as AgentTask
    from necrocode.task_calls.models import InvalidTaskCall as InvalidTaskCall
    from necrocode.task_calls.models import ResourceLock as ResourceLock
    from necrocode.task_calls.models import create_task_call as create_task_call


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return __all__
