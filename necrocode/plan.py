"""What a run would do, without doing it: the order of its tasks, and which of them would not run side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from necrocode.claim import Claim, ClaimIndex
from necrocode.schedule import Behind, Entry, GiveUp, Schedule, Start


class PlanRow(NamedTuple):
    """One task of a plan. `wave` counts from 1: it is when the task would start if all took equally long. `behind` are
    the conflicts that the order avoids: for each claim of an earlier task that this one meets, the last task before
    this one that has it, unless this one comes `after` that. `never` says why a task cannot start."""

    task_id: str
    wave: int
    after: tuple[str, ...] = ()
    behind: tuple[Behind, ...] = ()
    never: str = ""


def plan(entries: Iterable[Entry], limit: int | None = None) -> list[PlanRow]:
    """The rows in the order in which the tasks would start; those that never would come last (wave 0).

    Raises ConfigError for an id that is there twice, or an impossible limit."""
    entries = tuple(entries)
    known = {entry.id: entry for entry in entries}
    waves, never = _rehearsed(entries, limit)
    held = _Held()
    rows = [
        PlanRow(task_id, wave, known[task_id].after, held.behind(known[task_id]))
        for wave, started in enumerate(waves, 1)
        for task_id in started
    ]
    return rows + [PlanRow(order.task_id, 0, known[order.task_id].after, (), order.reason) for order in never]


def _rehearsed(entries: Sequence[Entry], limit: int | None) -> tuple[list[list[str]], list[GiveUp]]:
    schedule = Schedule((entry._replace(timeout=None) for entry in entries), limit)
    waves: list[list[str]] = []
    never: list[GiveUp] = []
    while not schedule.is_over:
        orders = schedule.orders(len(waves))
        never += [order for order in orders if isinstance(order, GiveUp)]
        waves.append([order.task_id for order in orders if isinstance(order, Start)])
        for task_id in waves[-1]:
            schedule.finished(task_id, None, len(waves))
    return [wave for wave in waves if wave], never


class _Held:
    """Who was the last to have each different claim, among the tasks planned so far."""

    def __init__(self) -> None:
        self._last: dict[Claim, str] = {}
        self._index = ClaimIndex()

    def behind(self, entry: Entry) -> tuple[Behind, ...]:
        found: dict[str, Behind] = {}
        for wanted in entry.claims:
            for _, held in self._index.conflicts(entry.id, wanted):
                other = self._last[held]
                if other not in entry.after:
                    found.setdefault(other, Behind(entry.id, other, wanted, held))
        for claim in dict.fromkeys(entry.claims):
            if claim not in self._last:
                self._index.add("", (claim,))
            self._last[claim] = entry.id
        return tuple(found.values())
