"""Independent, stateless runner processes, coordinated by nothing but files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from necrocode.agent_runner import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """The names of `necrocode.agent_runner`, loaded when they are first used."""
    if name[:1].isupper():
        from importlib import import_module

        face = import_module("necrocode.agent_runner")
        if name in face.__all__:
            return getattr(face, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
