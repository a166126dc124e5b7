"""What `necrocode status` tells: one look at a state directory, as values and as one JSON document."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from necrocode.event import Event
    from necrocode.lease import RunnerInstance
    from necrocode.ledger.snapshot import Sighting, Snapshot, Waiting
    from necrocode.lineup import Unbegun
    from necrocode.metrics import Metrics
    from necrocode.statedir import StateDir

KEEP_SECONDS = 30 * 86400.0
"""How long runs, events and quarantined files are kept."""
RECENT_SECONDS = 24 * 3600.0

_CONFLICTS = ("lease.queued", "lease.refused", "conflict.found", "conflict.avoided", "deadlock.found", "lease.fenced")


class Nobody(NamedTuple):
    """The snapshot of a state in which nobody is and no terms are set; what it takes to look further costs more than
    all the rest of `necrocode status`."""

    consistent: bool = True
    limit: int | None = None
    quotas: Mapping[str, int] = {}
    runners: tuple[Sighting, ...] = ()
    waiting: tuple[Waiting, ...] = ()
    unreadable: tuple[str, ...] = ()
    live: int = 0


class Board(NamedTuple):
    """One look: `snapshot` is None where there is no state directory. `at` is in seconds since 1970. `metrics` are
    of the last day, as far as the tail of the events goes (None: nothing happened)."""

    root: Path
    at: float
    snapshot: Snapshot | Nobody | None = None
    finished: tuple[Event, ...] = ()
    conflicts: tuple[Event, ...] = ()
    to_clean: dict[str, int] = {}
    metrics: Metrics | None = None
    to_come: tuple[Unbegun, ...] = ()


def look(state: StateDir) -> Board:
    """Everything worth telling now; nothing is locked or repaired. Raises StateUnusable, StateUnreadable."""
    root, now, snapshot = state.root, time.time(), _snapshot(state)
    events = [event for event in _recent(state) if event.at > now - RECENT_SECONDS]
    return Board(
        root, now, snapshot,
        _ends(events),
        tuple(event for event in events if _is_conflict(event)),
        _to_clean(root, snapshot, now),
        _metrics(events),
        _to_come(state, events),
    )  # fmt: skip


def _metrics(events: list[Event]) -> Metrics | None:
    if not events:
        return None
    from necrocode.metrics import fold

    return fold(events)


def _to_come(state: StateDir, events: list[Event]) -> tuple[Unbegun, ...]:
    if not os.listdir(state.runs):
        return ()
    from necrocode.lineup import lineup

    return lineup(state, events)


def _snapshot(state: StateDir) -> Snapshot | Nobody:
    if not (state.root / "config.json").exists() and not any(map(os.listdir, _places(state))):
        return Nobody()
    from necrocode.ledger.files import FileLedger

    return FileLedger(state).snapshot()


def _places(state: StateDir) -> tuple[Path, ...]:
    return state.runners, state.queue, state.fenced


def _recent(state: StateDir) -> list[Event]:
    if not os.listdir(state.events):
        return []
    from necrocode import journal

    return journal.recent(state.events)


def moved(state: StateDir) -> Any:
    """Something that is another whenever a lease, a waiter or an event has come or gone."""
    times = [os.stat(place).st_mtime_ns for place in (*_places(state), state.quarantine_folder)]
    return times, [entry.stat().st_size for entry in os.scandir(state.events)]


def _ends(events: list[Event]) -> tuple[Event, ...]:
    """How attempts ended, and tasks that were not started, each once, whoever told it how often. Of a task that was
    not started it is said in the same words."""
    last: dict[object, Event] = {}
    for event in events:
        if event.kind == "task.cancelled":
            event = event._replace(facts={"status": "cancelled", "error": event.facts.get("reason", ""), **event.facts})
        elif event.kind != "attempt.finished":
            continue
        key = (event.run_id, event.task_id, str(event.facts.get("attempt"))) if event.run_id else id(event)
        last.pop(key, None)
        last[key] = event
    return tuple(last.values())


def _is_conflict(event: Event) -> bool:
    return event.kind in _CONFLICTS and event.facts.get("reason") not in ("limit", "quota", "queue")


def _to_clean(root: Path, snapshot: Snapshot | Nobody, now: float) -> dict[str, int]:
    """What `necrocode gc` would remove, as far as a quick look tells: counts of each kind that is there."""
    dead = sum(seen.liveness == "dead" for seen in snapshot.runners)
    waiters = sum(waiter.liveness == "dead" for waiter in snapshot.waiting)
    counts = {
        "dead lease": dead,
        "dead waiter": waiters,
        "old quarantined file": len(_older(root / "quarantine", now - KEEP_SECONDS)),
        "old events file": len(_older(root / "events", now - KEEP_SECONDS)),
        "old run": sum(not _newer(run, now - KEEP_SECONDS) for run in _older(root / "runs", now - KEEP_SECONDS)),
    }
    return {kind: count for kind, count in counts.items() if count}


def _older(folder: Path, than: float) -> list[Path]:
    return [Path(entry.path) for entry in os.scandir(folder) if entry.stat(follow_symlinks=False).st_mtime < than]


def _newer(folder: Path, than: float) -> bool:
    """Whether something in it has been written since, as `gc` judges the age of a run."""
    return any(path.lstat().st_mtime >= than for path in folder.glob("*"))


# -- as facts


def facts(board: Board) -> dict[str, Any]:
    """The board as one JSON document."""
    snapshot, at = board.snapshot, datetime.fromtimestamp(board.at, UTC)
    return {
        "state_dir": str(board.root),
        "exists": snapshot is not None,
        "at": at,
        "consistent": snapshot.consistent if snapshot else True,
        "limit": snapshot.limit if snapshot else None,
        "quotas": snapshot.quotas if snapshot else {},
        "live": snapshot.live if snapshot else 0,
        "runners": [_runner_facts(seen) for seen in snapshot.runners] if snapshot else [],
        "waiting": [_waiter_facts(waiter) for waiter in snapshot.waiting] if snapshot else [],
        "to_come": [task._asdict() for task in board.to_come],
        "unreadable": snapshot.unreadable if snapshot else (),
        "finished": [event.to_dict() for event in board.finished[-50:]],
        "conflicts": [event.to_dict() for event in board.conflicts[-50:]],
        "to_clean": board.to_clean,
        "metrics": board.metrics.to_dict() if board.metrics else None,
    }


def _runner_facts(seen: Sighting) -> dict[str, Any]:
    return {
        **_who(seen.record), "token": seen.token, "state": seen.state, "liveness": seen.liveness,
        "silent_seconds": seen.silent, "publishing": seen.publishing, "since": seen.record.start_time,
        "orphaned": seen.orphaned, "age_seconds": seen.age, "waited_seconds": seen.record.waited_seconds,
        "slot": seen.record.slot, "claims": seen.record.claims,
    }  # fmt: skip


def _waiter_facts(waiter: Waiting) -> dict[str, Any]:
    return {
        **_who(waiter.record), "position": waiter.position, "adding": waiter.adding, "liveness": waiter.liveness,
        "reason": waiter.reason, "claims": waiter.record.claims, "blockers": waiter.blockers, "live": waiter.live,
        "limit": waiter.limit, "since": waiter.record.start_time,
        "waiting_seconds": waiter.age,
    }  # fmt: skip


def _who(record: RunnerInstance) -> dict[str, Any]:
    return {
        "runner_id": record.runner_id, "task_id": record.task_id, "spec_name": record.spec_name,
        "pid": record.holder.pid if record.holder else None, "host": record.holder.host if record.holder else "",
        "user": record.holder.user if record.holder else "", "workspace_path": record.workspace_path,
        "priority": record.priority, "details": record.details,
    }  # fmt: skip


# -- in a few words


def wish(waiter: Waiting) -> str:
    """What a waiter waits for, in a few words."""
    if waiter.reason in ("limit", "quota"):
        whose = f" of {waiter.record.spec_name}" if waiter.reason == "quota" and waiter.record.spec_name else ""
        return f"a slot{whose} ({waiter.live} of {waiter.limit})"
    claims = dict.fromkeys(str(holder.wanted or holder.claim) for holder in waiter.blockers if holder.claim)
    return ", ".join(claims) or ("its turn" if waiter.reason in ("queue", "turn") else waiter.reason)


def left_behind(seen: Sighting) -> str:
    """What is to be said of one whose process has ended while others keep its lease."""
    name, run_id = seen.record.runner_id, seen.record.details.get("run_id", "")
    pid = f" (pid {seen.record.holder.pid})" if seen.record.holder else ""
    resume = f", or necrocode run --resume {run_id}" if run_id else ""
    return (
        f"its program has ended{pid}; processes that it started go on and keep what it holds: "
        f"necrocode stop {name}{resume}"
    )


def held_by(waiter: Waiting) -> str:
    """Who is in a waiter's way, the first of many; for a slot that is everybody, which the wish says already."""
    if waiter.reason == "limit":
        return ""
    names = [f"{'(waiting) ' if one.state == 'waiting' else ''}{one.runner_id}" for one in waiter.blockers]
    return names[0] + (f" +{len(names) - 1}" if len(names) > 1 else "") if names else ""
