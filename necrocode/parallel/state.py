"""The state of an execution: its bus, its history, and the groups that are opened in it."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import traceback
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, PrivateAttr

from necrocode import clock, metrics
from necrocode.event import Event
from necrocode.parallel.events import BaseActor, EventBus, ExecutionEvent
from necrocode.parallel.history import HistoryEntry, HistorySet
from necrocode.parallel.models import ErrorStrategy, ExecutionResult, ExecutionStatus, ParallelEventGroup

if TYPE_CHECKING:
    from necrocode.parallel.groups import ParallelExecutionManager

here: contextvars.ContextVar[str] = contextvars.ContextVar("necrocode_parallel_address", default="")
"""The address of the member that runs in this context, "" outside of all groups."""


class ExecutionState(BaseModel):
    """What belongs together: a bus, a history, groups. Written with `model_dump_json()` and read back with
    `ExecutionState.model_validate_json(text)`; the same code then runs again only what had not finished well."""

    history: HistorySet = Field(default_factory=HistorySet)
    groups: list[ParallelEventGroup] = Field(default_factory=list)
    _bus: EventBus = PrivateAttr(default_factory=EventBus)
    _numbers: Counter[str] = PrivateAttr(default_factory=Counter)

    @property
    def event_bus(self) -> EventBus:
        return self._bus

    @property
    def address(self) -> str:
        """Where this code runs: the member of a group, or "" outside of all groups."""
        return here.get()

    def parallel(
        self,
        max_workers: int = 5,
        error_strategy: ErrorStrategy = ErrorStrategy.FAIL_SLOW,
        timeout: float | None = None,
        name: str | None = None,
        **more: Any,
    ) -> ParallelExecutionManager:
        """A group, to be entered with `async with`. All arguments as for ParallelExecutionManager."""
        from necrocode.parallel.groups import ParallelExecutionManager

        return ParallelExecutionManager(self, max_workers, error_strategy, timeout, name, **more)

    def place_for(self, name: str) -> str:
        """An address below this one that nobody has yet, the same in every run of the same code."""
        outer = here.get()
        address = f"{outer}/{name}" if outer else name
        self._numbers[address] += 1
        number = self._numbers[address]
        return address if number == 1 else f"{address}#{number}"

    def metrics(self, group_id: str | None = None) -> metrics.Metrics:
        """Figures of everything in the history, or of one group; groups are runs, their members tasks."""
        entries = [entry for entry in self.history if group_id in (None, entry.group_id)]
        return metrics.fold(_events(entries, [one for one in self.groups if group_id in (None, one.group_id)]))

    async def perform(self, event: ExecutionEvent, input_data: Any, extra_context: Any) -> ExecutionResult:
        """Carry out an actor's handler where this code runs; see ExecutionEvent."""
        assert isinstance(event.actor, BaseActor) and event.actor.handler is not None
        event.address = event.address or self.place_for(event.actor.name)
        event.event_type = event.actor.event_type
        if stored := self.history.stored(event.address):
            return await self._replay(event, stored)
        await self._bus.publish(event.model_copy())
        began, at, token = clock.monotonic(), clock.wall(), here.set(event.address)
        event.execution_status = ExecutionStatus.FAILED
        try:
            value = event.actor.handler(input_data, extra_context, self)
            event.result = await value if inspect.isawaitable(value) else value
            event.execution_status = ExecutionStatus.COMPLETED
        except asyncio.CancelledError:
            event.execution_status = ExecutionStatus.CANCELLED
            raise
        except Exception as error:
            event.message = "".join(traceback.format_exception_only(error)).strip()
            raise
        finally:
            here.reset(token)
            event.execution_time = clock.monotonic() - began
            self.history.add(_entry(event, at))
            self._bus.tell(event.model_copy())
        await self._bus.settled()
        return ExecutionResult(result=event.result, execution_time=event.execution_time, name=event.name, attempts=1)

    async def _replay(self, event: ExecutionEvent, stored: HistoryEntry) -> ExecutionResult:
        event.execution_status, event.result = ExecutionStatus.COMPLETED, stored.result
        event.is_replayed, event.from_cache, event.execution_time = True, True, stored.seconds
        await self._bus.publish(event.model_copy())
        return ExecutionResult(
            result=stored.result, execution_time=stored.seconds, name=event.name, attempts=stored.attempts,
            is_replayed=True,
        )  # fmt: skip


def _entry(event: ExecutionEvent, at: float) -> HistoryEntry:
    return HistoryEntry(
        event.address, event.execution_status, result=event.result, error=event.message or None, attempts=1, began=at,
        seconds=event.execution_time or 0.0,
    )  # fmt: skip


_ENDS = {
    ExecutionStatus.COMPLETED: "done", ExecutionStatus.FAILED: "failed", ExecutionStatus.CANCELLED: "cancelled",
}  # fmt: skip


def _events(history: Iterable[HistoryEntry], groups: list[ParallelEventGroup]) -> list[Event]:
    """The same facts in the words that all metrics are made of, in the order of time."""
    events: list[Event] = []
    for entry in history:
        whom = {"task_id": entry.address, "run_id": entry.group_id or ""}
        end = entry.began + entry.seconds
        facts = {"attempt": max(1, entry.attempts), "status": _ENDS.get(entry.status, ""), "seconds": entry.seconds}
        for number in range(1, entry.attempts):
            again = {"attempt": number, "delay": 0.0, "error": ""}
            events.append(Event("attempt.retried", entry.began, entry.began, **whom, facts=again))
        events.append(Event("attempt.finished", end, end, **whom, facts={**facts, "error": entry.error or ""}))
    for group in groups:
        if group.start_time is not None:
            told = {"tasks": group.total, "limit": group.max_workers}
            events.append(Event("run.started", group.start_time, group.start_time, run_id=group.group_id, facts=told))
    return sorted(events, key=lambda event: event.mono)
