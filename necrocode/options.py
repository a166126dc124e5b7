"""The settings as options of click's commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from necrocode.declared import SETTINGS, Setting

_METAVARS = {float: "SECONDS", str: "TEXT"}


def of_a_run(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command an option for each setting that a run has; what is not said is None."""
    for setting in reversed(tuple(SETTINGS.values())):
        if setting.of == "run":
            made = click.option(*setting.options, setting.key, default=None, help=setting.described, **_typed(setting))
            function = made(function)
    return function


def _agents(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The agents that are known by name."""
    from necrocode.launch import presets

    return [name for name in presets() if name.startswith(incomplete)]


def _typed(setting: Setting) -> dict[str, Any]:
    """What click has to know of a setting's kind."""
    if setting.kind is bool:
        return {"is_flag": True}
    if setting.choices:
        return {"type": click.Choice(setting.choices)}
    if setting.kind is int:
        return {"type": click.IntRange(None if setting.least is None else int(setting.least)), "metavar": "N"}
    if setting.key == "agent":
        return {"metavar": "TEXT", "shell_complete": _agents}
    kind = click.FloatRange(setting.least, min_open=setting.above) if setting.kind is float else str
    return {"type": kind, "metavar": _METAVARS[setting.kind]}
