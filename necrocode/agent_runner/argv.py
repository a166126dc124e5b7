"""Commands as people write them, as arguments; no shell ever sees them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

_SHELL = frozenset({"&&", "||", "|", ";", ">", ">>", "<", "&", "2>&1"})


def split(command: str | Sequence[str]) -> tuple[str, ...]:
    """A list as it is; text split into arguments. Raises ValueError for one that names no program or needs a
    shell."""
    argv = tuple(shlex.split(command)) if isinstance(command, str) else tuple(command)
    if not argv or not argv[0]:
        raise ValueError(f"{command!r} names no program")
    if isinstance(command, str) and (found := _SHELL.intersection(argv)):
        raise ValueError(f"no shell reads {command!r}, so {min(found)} means nothing: write ['sh', '-c', '...']")
    return argv


def shown(command: str | Sequence[str]) -> str:
    return command if isinstance(command, str) else shlex.join(command)
