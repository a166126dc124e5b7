"""Names of runs, tasks and runners as arguments: any text, completed by a shell from what the state directory has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING

import click

from necrocode.door import Door
from necrocode.errors import NecrocodeError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from necrocode.statedir import StateDir

_RUNS = 30
"""Of so many runs, the newest, the tasks are offered: whoever waits for a key press has no time for more."""
_MOST = 1000


class Name(click.types.StringParamType):
    """A name; `known` gives those that a shell may offer. Looking for them never makes a state directory, and never
    fails: then there is nothing to offer."""

    def __init__(self, known: Callable[[StateDir], Iterator[str]]) -> None:
        self._known = known

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The known names that begin so, each once, in the order of `known`."""
        from click.shell_completion import CompletionItem

        found: list[str] = []
        with suppress(NecrocodeError, OSError, ValueError, TypeError, KeyError):
            if state := _door(ctx).existing():
                found = [name for name in islice(self._known(state), _MOST) if name.startswith(incomplete)]
        return [CompletionItem(name) for name in dict.fromkeys(found)]


def _door(ctx: click.Context) -> Door:
    """The door as the words so far say it: while a shell completes, no command has been called."""
    door = Door()
    found = (one.params.get("state_dir") for one in (ctx, ctx.parent) if one is not None)
    door.state_dir = next((place for place in found if place), None)
    return door


def _runs(state: StateDir) -> Iterator[str]:
    from necrocode.runs import runs

    yield from runs(state)


def _tasks(state: StateDir) -> Iterator[str]:
    """By their bare ids, and as RUN/TASK."""
    from necrocode.lookup import task_ids

    for run_id in islice(_runs(state), _RUNS):
        tasks = task_ids(state, run_id)
        yield from tasks
        yield from (f"{run_id}/{task}" for task in tasks)


def _runners(state: StateDir) -> Iterator[str]:
    from necrocode.lookup import runner_ids

    yield from sorted(runner_ids(state))


def _any(state: StateDir) -> Iterator[str]:
    for known in (_runners, _runs, _tasks):
        yield from known(state)


RUN, TASK, RUNNER, ANY = Name(_runs), Name(_tasks), Name(_runners), Name(_any)
