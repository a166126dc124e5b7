"""Groups of coroutines side by side: limits, order, streaming, events, progress and replay, on one event loop.

Covers `rh_agents.core.parallel`, `.execution`, `.events`, `.types`, `.actors` and `rh_agents.bus_handlers`. Names
are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "models": [
        "ErrorStrategy", "EventType", "ExecutionResult", "ExecutionStatus", "GroupStatus", "ParallelDisplayMode",
        "ParallelEventGroup", "ParallelGroupTracker",
    ],
    "events": ["BaseActor", "EventBus", "ExecutionEvent"],
    "history": ["HistoryEntry", "HistorySet"],
    "groups": ["CircuitOpenError", "InvalidSettingError", "ParallelExecutionManager"],
    "state": ["ExecutionState"],
    "printer": ["EventPrinter", "ParallelEventPrinter"],
}  # fmt: skip
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted([*_HOME, "Command"])

if TYPE_CHECKING:
    from necrocode.aio import Command as Command
    from necrocode.parallel.events import BaseActor as BaseActor
    from necrocode.parallel.events import EventBus as EventBus
    from necrocode.parallel.events import ExecutionEvent as ExecutionEvent
    from necrocode.parallel.groups import CircuitOpenError as CircuitOpenError
    from necrocode.parallel.groups import InvalidSettingError as InvalidSettingError
    from necrocode.parallel.groups import ParallelExecutionManager as ParallelExecutionManager
    from necrocode.parallel.history import HistoryEntry as HistoryEntry
    from necrocode.parallel.history import HistorySet as HistorySet
    from necrocode.parallel.models import ErrorStrategy as ErrorStrategy
    from necrocode.parallel.models import EventType as EventType
    from necrocode.parallel.models import ExecutionResult as ExecutionResult
    from necrocode.parallel.models import ExecutionStatus as ExecutionStatus
    from necrocode.parallel.models import GroupStatus as GroupStatus
    from necrocode.parallel.models import ParallelDisplayMode as ParallelDisplayMode
    from necrocode.parallel.models import ParallelEventGroup as ParallelEventGroup
    from necrocode.parallel.models import ParallelGroupTracker as ParallelGroupTracker
    from necrocode.parallel.printer import EventPrinter as EventPrinter
    from necrocode.parallel.printer import ParallelEventPrinter as ParallelEventPrinter
    from necrocode.parallel.state import ExecutionState as ExecutionState


def __getattr__(name: str) -> Any:
    if name == "Command":
        from necrocode.aio import Command

        return Command
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return __all__
