"""Stateless runner processes, kept apart by a directory of files: the face of the document "NecroCode".

Names are loaded when they are first used, so that importing this package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "necrocode.lease": ["RunnerInstance"],
    "necrocode.errors": ["ResourceConflictError", "ResourceLimitError", "PlaybookExecutionError"],
    "necrocode.agent_runner.parallel_coordinator": ["ParallelCoordinator", "Registration"],
    "necrocode.agent_runner.context": ["ParallelExecutionContext"],
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
