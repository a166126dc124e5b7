"""What a group tells: events on the bus, when somebody listens, and entries in the history."""

from __future__ import annotations

from typing import Any

from necrocode import clock
from necrocode.parallel.events import ExecutionEvent
from necrocode.parallel.history import HistoryEntry
from necrocode.parallel.member import Member
from necrocode.parallel.models import (
    EventType,
    ExecutionResult,
    ExecutionStatus,
    GroupStatus,
    ParallelEventGroup,
)
from necrocode.parallel.state import ExecutionState

_DONE = ExecutionStatus.COMPLETED  # looked up once, not for each member
_END = {
    GroupStatus.COMPLETED: (EventType.GROUP_COMPLETED, ExecutionStatus.COMPLETED),
    GroupStatus.FAILED: (EventType.GROUP_FAILED, ExecutionStatus.FAILED),
    GroupStatus.CANCELLED: (EventType.GROUP_FAILED, ExecutionStatus.CANCELLED),
}


class Teller:
    """Speaks for one group."""

    def __init__(self, state: ExecutionState, group: ParallelEventGroup) -> None:
        self._history, self._bus, self._group = state.history, state.event_bus, group
        self._keep, self._group_id = state.history.add, group.group_id
        self.replaying = state.history.has_stored
        state.groups.append(group)

    def stored(self, member: Member) -> ExecutionResult | None:
        """What came of this member before the state was stored, if it need not run again."""
        entry = self._history.stored(member.address)
        if entry is None:
            return None
        member.attempts = entry.attempts
        return ExecutionResult(
            result=entry.result, execution_time=entry.seconds, name=member.id, index=member.index,
            attempts=entry.attempts, is_replayed=True,
        )  # fmt: skip

    def group_started(self) -> None:
        self._about_group(EventType.GROUP_STARTED, ExecutionStatus.STARTED)

    def group_ended(self) -> None:
        group = self._group
        errors = group.errors[-1] if group.status is GroupStatus.FAILED else ""
        self._about_group(*_END[group.status], message=errors, execution_time=group.execution_time)

    def _about_group(self, event_type: EventType, status: ExecutionStatus, **more: Any) -> None:
        group = self._group
        if self._bus.is_heard:
            self._bus.tell(
                ExecutionEvent(
                    actor=group.name or "group", address=group.address, event_type=event_type,
                    execution_status=status, group_id=group.group_id, total=group.total, **more,
                )
            )  # fmt: skip

    def started(self, member: Member) -> None:
        self._about(member, ExecutionStatus.STARTED)

    def retrying(self, member: Member, error: str) -> None:
        if self._bus.is_heard:
            self._about(member, ExecutionStatus.RETRYING, message=error)

    def ended(self, member: Member, result: ExecutionResult) -> None:
        status = _DONE if result.ok else ExecutionStatus.CANCELLED if result.cancelled else ExecutionStatus.FAILED
        if not result.is_replayed:
            self._keep(
                HistoryEntry(
                    member.address, status, self._group_id, member.index, result.result, result.erro_message,
                    member.attempts, clock.wall() - result.execution_time, result.execution_time,
                )
            )  # fmt: skip
        if self._bus.is_heard:
            self._about(
                member, status, result=result.result, message=result.erro_message or "", from_cache=result.is_replayed,
                execution_time=result.execution_time, is_replayed=result.is_replayed,
            )  # fmt: skip

    def _about(self, member: Member, status: ExecutionStatus, **more: Any) -> None:
        self._bus.tell(
            ExecutionEvent(
                actor=member.id, address=member.address, execution_status=status, group_id=self._group_id,
                parallel_index=member.index, is_parallel=True, total=self._group.total, **more,
            )
        )  # fmt: skip
