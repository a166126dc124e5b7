"""In which order tasks are handed out: as given, by priority, or as the results so far suggest.

A queue yields `(task, repeat_idx)`, each pair once. It is asked by one thread; `on_task_complete` is told by the same
one. Of a task only `protocol.priority` is looked at.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from necrocode.errors import ConfigError

T = TypeVar("T")


def expanded(tasks: T | Iterable[T]) -> list[T]:
    """One task, or any collection of them, as a list."""
    if isinstance(tasks, (str, bytes)) or tasks is None:
        raise ConfigError(f"{tasks!r} is no task", hint="give a Task or a list of them")
    return list(tasks) if isinstance(tasks, Iterable) else [tasks]


class TaskQueue(ABC, Generic[T]):
    """The tasks in an order of handing out. `tasks` is one task or any collection; each is handed out
    `n_task_repeats` times, with repeat_idx from 0. `iter(queue)` begins anew.

    Raises ConfigError for impossible repeats."""

    def __init__(self, tasks: T | Iterable[T], n_task_repeats: int = 1) -> None:
        if isinstance(n_task_repeats, bool) or not isinstance(n_task_repeats, int) or n_task_repeats < 1:
            raise ConfigError(f"n_task_repeats {n_task_repeats!r} is not possible", hint="give a whole number from 1")
        self.tasks: list[T] = expanded(tasks)
        self.n_task_repeats = n_task_repeats

    def __len__(self) -> int:
        """How many pairs there are in all."""
        return len(self.tasks) * self.n_task_repeats

    @abstractmethod
    def __iter__(self) -> Iterator[tuple[T, int]]: ...

    @abstractmethod
    def __next__(self) -> tuple[T, int]: ...

    def on_task_complete(self, task: T, report: Mapping[str, Any]) -> None:
        """Told of every finished repetition, with its report."""

    def should_continue(self) -> bool:
        """Asked before each hand-out; False ends the run, once what runs has ended."""
        return True


class SequentialQueue(TaskQueue[T]):
    """In the order given; all repetitions of a task before the next one."""

    def __init__(self, tasks: T | Iterable[T], n_task_repeats: int = 1) -> None:
        super().__init__(tasks, n_task_repeats)
        self._rest = self._pairs()

    def __iter__(self) -> Iterator[tuple[T, int]]:
        self._rest = self._pairs()
        return self

    def __next__(self) -> tuple[T, int]:
        return next(self._rest)

    def _pairs(self) -> Iterator[tuple[T, int]]:
        return ((task, repeat_idx) for task in self._ordered() for repeat_idx in range(self.n_task_repeats))

    def _ordered(self) -> list[T]:
        return self.tasks


class PriorityQueue(SequentialQueue[T]):
    """The highest `protocol.priority` first; equal ones in the order given."""

    def _ordered(self) -> list[T]:
        return sorted(self.tasks, key=_priority, reverse=True)  # stable, also when reversed


def _priority(task: Any) -> int:
    return int(task.protocol.priority)


class AdaptiveQueue(TaskQueue[T]):
    """Sequential, until a subclass says otherwise: override `_select_next_task` to choose from what remains, and
    `_update_state` to learn from each report; `stop()` ends the handing out early.

    Whatever a subclass chooses, each pair is handed out at most once."""

    def __init__(self, tasks: T | Iterable[T], n_task_repeats: int = 1) -> None:
        super().__init__(tasks, n_task_repeats)
        self._begin()

    def _begin(self) -> None:
        self._remaining = [(task, repeat_idx) for task in self.tasks for repeat_idx in range(self.n_task_repeats)]
        self._stopped = False

    def __iter__(self) -> Iterator[tuple[T, int]]:
        self._begin()
        return self

    def __next__(self) -> tuple[T, int]:
        if self._stopped or not self._remaining:
            raise StopIteration
        chosen = self._select_next_task(tuple(self._remaining))
        if chosen is None:
            self.stop()
            raise StopIteration
        for at, pair in enumerate(self._remaining):
            if pair[0] is chosen[0] and pair[1] == chosen[1]:
                return self._remaining.pop(at)
        raise ConfigError(f"{chosen!r} does not remain to be chosen", hint="return one of the pairs that were given")

    @property
    def remaining(self) -> tuple[tuple[T, int], ...]:
        """What was not handed out yet."""
        return tuple(self._remaining)

    def on_task_complete(self, task: T, report: Mapping[str, Any]) -> None:
        self._update_state(task, report)

    def should_continue(self) -> bool:
        return not self._stopped

    def stop(self) -> None:
        """Hand nothing more out."""
        self._stopped = True

    def _select_next_task(self, remaining: Sequence[tuple[T, int]]) -> tuple[T, int] | None:
        """One of the remaining pairs (there is at least one), or None to end here."""
        return remaining[0]

    def _update_state(self, task: T, report: Mapping[str, Any]) -> None:
        """Learn from one report."""
