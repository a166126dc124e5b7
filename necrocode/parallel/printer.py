"""Printers: what happens as lines, and groups as progress bars that are kept up to date where there is a terminal."""

from __future__ import annotations

from datetime import datetime
from typing import IO, TYPE_CHECKING

from necrocode.parallel.events import ExecutionEvent
from necrocode.parallel.member import InvalidSettingError
from necrocode.parallel.models import EventType, ExecutionStatus, ParallelDisplayMode, ParallelGroupTracker

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

_STYLES = {
    ExecutionStatus.COMPLETED: "green", ExecutionStatus.FAILED: "red", ExecutionStatus.CANCELLED: "yellow",
    ExecutionStatus.RETRYING: "yellow", ExecutionStatus.STARTED: "cyan",
}  # fmt: skip
_GROUPS = (EventType.GROUP_STARTED, EventType.GROUP_COMPLETED, EventType.GROUP_FAILED)


class EventPrinter:
    """Prints each event as one line; subscribe it, or its `print_event`, to a bus. Colours on a terminal only, and
    not with NO_COLOR. `stream` is where to; None is the standard output of the moment."""

    def __init__(
        self, show_timestamp: bool = True, show_address: bool = True, *, stream: IO[str] | None = None
    ) -> None:
        from rich.console import Console

        self.show_timestamp, self.show_address = show_timestamp, show_address
        self._console = Console(file=stream, highlight=False, soft_wrap=True)

    def __call__(self, event: ExecutionEvent) -> None:
        self.print_event(event)

    def print_event(self, event: ExecutionEvent) -> None:
        self._print(self._line(event))

    def _print(self, *texts: Text | str) -> None:
        self._console.print(*texts, sep="", markup=False)

    def _line(self, event: ExecutionEvent) -> Text:
        from rich.text import Text

        line = Text()
        if self.show_timestamp:
            line.append(f"{datetime.fromtimestamp(event.at):%H:%M:%S} ", "dim")
        line.append(f"{event.execution_status:<9} ", _STYLES[event.execution_status])
        line.append(_plain(event.name))
        if self.show_address and event.address and event.address != event.name:
            line.append(f"  {_plain(event.address)}", "dim")
        if event.execution_time is not None and event.execution_status is not ExecutionStatus.STARTED:
            line.append(f"  {event.execution_time:.2f} s")
        if event.is_replayed:
            line.append("  (replayed)", "dim")
        if event.message:
            line.append(f"  {_plain(event.message)}", _STYLES[event.execution_status])
        return line


class ParallelEventPrinter(EventPrinter):
    """Prints groups too. `realtime`: a line for each event, with group and number; `progress`: a bar for each group,
    in place on a terminal, a plain line for each step elsewhere. Other events are printed as ever.

    `parallel_groups` has what is known of each group by its id."""

    def __init__(
        self,
        show_timestamp: bool = True,
        show_address: bool = True,
        parallel_mode: ParallelDisplayMode | str = ParallelDisplayMode.REALTIME,
        show_progress: bool = True,
        *,
        stream: IO[str] | None = None,
    ) -> None:
        super().__init__(_switch(show_timestamp), show_address, stream=stream)
        self.parallel_mode, self.show_progress = ParallelDisplayMode(parallel_mode), show_progress
        self.parallel_groups: dict[str, ParallelGroupTracker] = {}
        self._shown: list[str] = []
        self._live: Live | None = None

    def print_event(self, event: ExecutionEvent) -> None:
        if event.group_id is not None and (event.is_parallel or event.event_type in _GROUPS):
            self._handle_parallel_event(event)
        else:
            self._print(self._line(event))

    def _handle_parallel_event(self, event: ExecutionEvent) -> None:
        tracker = self._tracked(event)
        if event.event_type in _GROUPS:
            self._about_group(event, tracker)
        else:
            self._count(event, tracker)
            if self.parallel_mode is ParallelDisplayMode.REALTIME:
                self._print(f"[{_plain(tracker.name or 'group')}#{event.parallel_index}] ", self._line(event))
            elif event.execution_status is ExecutionStatus.FAILED:
                self._print(self._line(event))
        if self.parallel_mode is ParallelDisplayMode.PROGRESS and event.execution_status is not ExecutionStatus.STARTED:
            self._update_progress_bar(tracker.group_id)

    def _tracked(self, event: ExecutionEvent) -> ParallelGroupTracker:
        group_id = event.group_id or ""
        tracker = self.parallel_groups.get(group_id)
        if tracker is None:
            name = event.address.rpartition("/")[0] if event.is_parallel else event.address
            tracker = self.parallel_groups[group_id] = ParallelGroupTracker(group_id=group_id, name=name or None)
            tracker.mark_started()
        # Events made by hand may not say how many there are; then there are as many as were seen.
        seen = (event.parallel_index or 0) + 1 if event.is_parallel else 0
        tracker.total = max(tracker.total, event.total or 0, seen)
        tracker.touch()
        return tracker

    def _count(self, event: ExecutionEvent, tracker: ParallelGroupTracker) -> None:
        status = event.execution_status
        tracker.started += status is ExecutionStatus.STARTED
        tracker.completed += status is ExecutionStatus.COMPLETED
        tracker.failed += status is ExecutionStatus.FAILED
        tracker.cancelled += status is ExecutionStatus.CANCELLED

    def _about_group(self, event: ExecutionEvent, tracker: ParallelGroupTracker) -> None:
        realtime = self.parallel_mode is ParallelDisplayMode.REALTIME
        if event.event_type is EventType.GROUP_STARTED:
            if realtime:
                self._print(f"[{_plain(tracker.name or 'group')}] started, {tracker.total} members")
            else:
                self._show(tracker)
            return
        tracker.seconds = event.execution_time if event.execution_time is not None else tracker.elapsed_time
        if not realtime:
            self._hide(tracker)
        self._print(f"[{_plain(tracker.name or 'group')}] {event.execution_status}: ", self._statistics(tracker))
        if event.message:
            self._print(f"  {_plain(event.message)}")

    def _statistics(self, tracker: ParallelGroupTracker) -> str:
        counts = f"{tracker.completed} of {tracker.total} completed, {tracker.failed} failed"
        counts += f", {tracker.cancelled} cancelled" if tracker.cancelled else ""
        return f"{counts}, {tracker.elapsed_time:.2f} s"

    def _render_progress_bar(self, completed: int, total: int, width: int = 10) -> str:
        """`████████▒▒ 80%` for 8 of 10; a group without members is all done."""
        share = min(1.0, max(0.0, completed / total)) if total > 0 else 1.0
        full = int(share * width)
        return f"{'█' * full}{'▒' * (width - full)} {int(share * 100)}%"

    def _update_progress_bar(self, group_id: str) -> None:
        """Bring the group's line up to date: in place on a terminal, as a new line elsewhere."""
        tracker = self.parallel_groups[group_id]
        if not self.show_progress or tracker.seconds is not None:
            return
        if self._console.is_terminal:
            self._show(tracker)
        else:
            self._print(self._progress_line(tracker))

    def _progress_line(self, tracker: ParallelGroupTracker) -> str:
        bar = self._render_progress_bar(tracker.ended, tracker.total)
        failed = f"  {tracker.failed} failed" if tracker.failed else ""
        return f"{_plain(tracker.name or 'group')}  {bar}  {tracker.ended}/{tracker.total}{failed}"

    def _show(self, tracker: ParallelGroupTracker) -> None:
        if not self.show_progress or not self._console.is_terminal:
            return
        if tracker.group_id not in self._shown:
            self._shown.append(tracker.group_id)
        if self._live is None:
            from rich.live import Live

            self._live = Live(
                console=self._console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
            )
            self._live.start()
        self._refresh()

    def _hide(self, tracker: ParallelGroupTracker) -> None:
        if tracker.group_id in self._shown:
            self._shown.remove(tracker.group_id)
        tracker.progress_line_number = None
        if self._live is not None:
            self._refresh()
            if not self._shown:
                self._live.stop()
                self._live = None

    def _refresh(self) -> None:
        from rich.text import Text

        assert self._live is not None
        lines = []
        for number, group_id in enumerate(self._shown):
            tracker = self.parallel_groups[group_id]
            tracker.progress_line_number = number
            lines.append(self._progress_line(tracker))
        self._live.update(Text("\n".join(lines), no_wrap=True, overflow="ellipsis"), refresh=True)


def _switch(value: object) -> bool:
    if not isinstance(value, bool):
        told = f"show_timestamp {value!r} is not possible"
        raise InvalidSettingError(told, hint="name the others: parallel_mode=, show_progress=")
    return value


def _plain(text: str) -> str:
    """On one line, without characters that would move a cursor, ring or recolour."""
    from necrocode.process import sanitised

    return " ".join(sanitised(text.encode("utf-8", "replace")).split("\n"))


__all__ = ["EventPrinter", "ParallelEventPrinter"]
