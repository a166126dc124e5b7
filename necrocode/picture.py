"""The board of `necrocode status` as lines for a screen: what needs a person first, then who runs and who waits."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from necrocode.board import Board, Nobody, held_by, left_behind, wish
from necrocode.door import NOTHING_YET
from necrocode.screen import Column, Row, clean, counted, duration, fit, styled, table

if TYPE_CHECKING:
    from necrocode.claim import Claim
    from necrocode.event import Event
    from necrocode.lease import RunnerInstance
    from necrocode.ledger.snapshot import Sighting, Snapshot, Waiting
    from necrocode.lineup import Unbegun

_RUNNERS = (
    Column("RUNNER", 99, 20, tail=True), Column("PID", 50, right=True), Column("TASK", 20, 12), Column("SPEC", 10, 8),
    Column("BRANCH", 40, 20, tail=True), Column("BEAT", 90, right=True), Column("AGE", 70, right=True),
    Column("WORKSPACE", 30, 24, tail=True), Column("HOLDS", 85, 16),
)  # fmt: skip
_WAITING = (
    Column("WAITING", 99, 16, tail=True), Column("FOR", 90, 16), Column("HELD BY", 95, 16, tail=True),
    Column("SINCE", 80, right=True), Column("POSITION", 70), Column("PID", 20, right=True), Column("TASK", 40, 12),
    Column("SPEC", 10, 8),
)  # fmt: skip
_FINISHED = (
    Column("FINISHED", 99, 12), Column("ENDED", 95), Column("TIME", 60, right=True), Column("AGO", 70, right=True),
    Column("RUN", 80, 6), Column("TRY", 20, right=True), Column("ERROR", 90, 16),
)  # fmt: skip
_TO_COME = 10
"""Tasks of runs that have not begun, of which at most so many are shown."""
_STYLES = {"done": "green", "failed": "red", "timed_out": "red", "lost": "red", "cancelled": "yellow"}


def lines(board: Board, width: int, *, colored: bool = False, height: int | None = None) -> list[str]:
    """The board for a screen of `width` columns; in at most `height` lines, the most important ones, when given."""
    if board.snapshot is None:
        return [clean(NOTHING_YET.format(board.root))]
    from textwrap import wrap

    room = _Room(height, board)
    parts: list[list[str]] = [[fit(_headline(board), width)]]
    told = [
        line for problem in _problems(board.snapshot) for line in wrap(clean(problem), width, subsequent_indent="  ")
    ]
    parts[0] += [styled(line, "red", colored) for line in told][: room.problems]
    runners = sorted(board.snapshot.runners, key=lambda seen: (_is_well(seen), seen.record.start_time))
    parts.append(_cut(_RUNNERS, [_runner_row(seen, board) for seen in runners], room.runners, width, colored))
    waiting = [_waiter_row(waiter, board) for waiter in board.snapshot.waiting]
    waiting += [_row_to_come(task) for task in board.to_come]
    parts.append(_cut(_WAITING, waiting, room.waiting, width, colored))
    finished = [_finished_row(event, board.at) for event in reversed(board.finished)]
    parts.append(_cut(_FINISHED, finished[: room.finished], room.finished, width, colored))
    conflicts = [fit(_told(event), width) for event in reversed(board.conflicts)][: room.conflicts]
    parts.append([styled("CONFLICTS", "bold", colored), *conflicts] if conflicts else [])
    parts.append([*_figures(board, width), fit(_footer(board), width)])
    return [line for part in parts if part for line in ["", *part]][1:]


class _Room:
    """How many rows each part may have: on a screen of a given height the runners come first, then those who wait."""

    def __init__(self, height: int | None, board: Board) -> None:
        assert board.snapshot is not None
        runners = len(board.snapshot.runners)
        waiting = len(board.snapshot.waiting) + min(len(board.to_come), _TO_COME)
        self.problems, self.runners, self.waiting, self.finished, self.conflicts = 99, runners, waiting, 5, 5
        if height is None:
            return
        left = max(3, height - 9)  # headline, footer, titles and the empty lines between
        self.problems = max(1, min(left // 4, sum(not _is_well(seen) for seen in board.snapshot.runners)))
        left -= self.problems
        self.waiting = min(waiting, max(left // 3, left - runners))
        self.runners = min(runners, left - self.waiting)
        left -= self.runners + self.waiting
        self.finished = max(0, min(5, left - 1))
        self.conflicts = max(0, min(5, left - self.finished - 3))


def _cut(head: Sequence[Column], rows: list[Row], most: int, width: int, colored: bool) -> list[str]:
    if not rows or most < 1:
        return []
    shown = rows if len(rows) <= most else rows[: most - 1] or rows[:1]
    more = len(rows) - len(shown)
    return table(head, shown, width, colored=colored) + ([f"and {more} more"] if more else [])


def _headline(board: Board) -> str:
    snapshot = board.snapshot
    assert snapshot is not None
    slots = f"{snapshot.live} of {snapshot.limit} slots" if snapshot.limit else counted(snapshot.live, "runner")
    words = [slots, f"{len(snapshot.waiting)} waiting"]
    unwell = sum(not _is_well(seen) for seen in snapshot.runners)
    words += [f"{counted(len(board.to_come), 'task')} to come"] if board.to_come else []
    words += [f"{unwell} unwell"] if unwell else []
    words += [f"quota {name} {count}" for name, count in snapshot.quotas.items()]
    moving = "" if snapshot.consistent else "   (things moved while looking: not one moment)"
    words.append(clean(_home(str(board.root))))
    return f"{'   '.join(words)}   as of {datetime.fromtimestamp(board.at):%H:%M:%S}{moving}"


def _problems(snapshot: Snapshot | Nobody) -> Iterator[str]:
    for seen in snapshot.runners:
        name, silent = seen.record.runner_id, duration(seen.silent or 0.0)
        if seen.liveness == "dead":
            yield f"! {name} is dead; the next move takes its lease away, or: necrocode gc --yes"
        elif seen.state == "fenced":
            yield f"! {name} is fenced but alive: necrocode stop {name} (until then it keeps workspace and branch)"
        elif seen.orphaned:
            yield f"! {name}: {left_behind(seen)}"
        elif seen.liveness == "silent":
            yield f"! {name} gave no heartbeat for {silent}: necrocode stop {name}"
    for name in snapshot.unreadable:
        yield f"! {name} cannot be read: necrocode doctor"


def _is_well(seen: Sighting) -> bool:
    return seen.state == "running" and seen.liveness == "alive" and not seen.orphaned


def _unwell(seen: Sighting) -> str:
    return "orphaned" if seen.orphaned else seen.liveness


def _runner_row(seen: Sighting, board: Board) -> Row:
    record = seen.record
    beat = duration(seen.silent) if seen.silent is not None else ""
    state = "" if _is_well(seen) else "fenced" if seen.state == "fenced" else _unwell(seen)
    branch = record.details.get("branch", "") or ", ".join(sorted(record.branches_used))
    cells = (
        record.runner_id, str(record.holder.pid) if record.holder else "", _task(record), _spec(record), branch,
        f"{state}!" if state == "dead" else f"{beat} {state}!" if state else beat, duration(seen.age),
        _home(record.workspace_path), " ".join(_held(record.claims)) + ("" if record.slot else " (no slot)"),
    )  # fmt: skip
    return Row(cells, {"": "", "dead": "red"}.get(state, "yellow"))


def _held(claims: Sequence[Claim]) -> list[str]:
    """The claims that no column of their own shows; files by their path alone."""
    others = [claim for claim in claims if claim.family not in ("workspace", "branch")]
    return [str(claim).replace("file:", "", 1) for claim in others]


def _task(record: RunnerInstance) -> str:
    # The runners of a run have it in their names: RUN.TASK.ATTEMPT.
    return (
        ""
        if record.task_id and f".{record.task_id}." in record.runner_id
        else record.task_id or record.details.get("command", "")
    )


def _spec(record: RunnerInstance) -> str:
    # A task that names none counts by its run, which stands in the runner's id already.
    return "" if record.spec_name == record.details.get("run_id") else record.spec_name


def _waiter_row(waiter: Waiting, board: Board) -> Row:
    record = waiter.record
    since = duration(waiter.age) if not waiter.adding else ""
    place = f"{waiter.position} of {len(board.snapshot.waiting) if board.snapshot else 0}"
    cells = (
        record.runner_id, wish(waiter), held_by(waiter), since, place,
        str(record.holder.pid) if record.holder else "", _task(record), _spec(record),
    )  # fmt: skip
    return Row(cells, "red" if waiter.liveness == "dead" else "")


def _row_to_come(task: Unbegun) -> Row:
    """A task of a run that waits for others of it; nobody holds a place for it in the machine's line yet."""
    wants = ", ".join(task.claims) or ("its turn" if task.behind else f"one of {counted(task.places, 'place')}")
    more = f" +{len(task.behind) - 1}" if len(task.behind) > 1 else ""
    behind = f"{task.run_id}.{task.behind[0]}{more}" if task.behind else ""
    return Row((f"{task.run_id}.{task.task_id}", "another try" if task.again else wants, behind, "", "", "", "", ""))


def _finished_row(event: Event, now: float) -> Row:
    told = event.facts
    seconds, status = told.get("seconds"), str(told.get("status", ""))
    took = duration(seconds) if isinstance(seconds, (int, float)) else ""
    cells = (
        event.task_id or event.runner_id, status, took, duration(now - event.at), event.run_id,
        str(told.get("attempt", "")), str(told.get("error", "")),
    )  # fmt: skip
    return Row(cells, _STYLES.get(status, ""))


def _told(event: Event) -> str:
    """One conflict as a sentence."""
    told, who = event.facts, event.runner_id or event.task_id
    at = f"{datetime.fromtimestamp(event.at):%H:%M:%S}"
    claims, blockers = ", ".join(map(str, told.get("claims", ()))), ", ".join(map(str, told.get("blockers", ())))
    words = {
        "lease.queued": f"{who} had to wait for {claims}: {blockers} had it",
        "lease.refused": f"{who} was refused {claims}: {blockers} had it",
        "conflict.found": f"{who} asked for {claims}: {blockers} had it",
        "conflict.avoided": f"{who} goes after {told.get('after', '')}, which wants {claims} too",
        "deadlock.found": f"{who} would have waited for ever: {' -> '.join(map(str, told.get('cycle', ())))}",
        "lease.fenced": f"{who} lost its lease after {duration(float(told.get('silent') or 0.0))} of silence",
    }
    return clean(f"{at}  {words[event.kind]}")


def _figures(board: Board, width: int) -> list[str]:
    """The day in one line; the whole of it: necrocode metrics."""
    if board.metrics is None:
        return []
    from necrocode.figures import spread

    total = board.metrics.total
    told = f"Last day: conflicts {total.conflicts_detected} detected, {total.conflicts_avoided} avoided"
    waits = spread(total.waits)
    return [fit(f"{told}   wait {waits}" if waits else told, width)]


def _footer(board: Board) -> str:
    if not board.to_clean:
        return "Nothing to clean among leases, runs and events.  For workspaces: necrocode gc"
    things = ", ".join(counted(count, kind) for kind, count in board.to_clean.items())
    return f"To clean: {things}.  necrocode gc"


def _home(path: str) -> str:
    home = os.path.expanduser("~")
    return f"~{path[len(home) :]}" if path.startswith(f"{home}/") else path
