"""Which events belong to a run or a task, and the metrics of those that do: the one source of every number shown."""

from __future__ import annotations

from pathlib import Path

from necrocode import journal
from necrocode.event import Event
from necrocode.metrics import Metrics, fold


def is_of(event: Event, run_id: str = "", task_id: str = "") -> bool:
    """Whether it tells of that run or task ("": any). What the ledger tells knows the runner, `<run>.<task>.<n>`,
    but not its run."""
    if run_id and event.run_id != run_id and not event.runner_id.startswith(f"{run_id}."):
        return False
    return not task_id or task_id in (event.task_id, _task_of(event.runner_id))


def _task_of(runner_id: str) -> str:
    _, _, rest = runner_id.partition(".")
    name, _, number = rest.rpartition(".")
    return name if number.isdigit() else ""


def of_events(events_dir: Path, *, since: float | None = None, run_id: str = "") -> Metrics:
    """The metrics of what happened since then (seconds since 1970; None: ever), of one run or of everything."""
    return fold(event for event in journal.read(events_dir, since) if is_of(event, run_id))
