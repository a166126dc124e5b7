"""Why something is as it is: what a task or runner waits for, what it holds, or what it came to, in sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

from necrocode import journal, lookup, runs
from necrocode.board import left_behind, wish
from necrocode.errors import StateUnreadable
from necrocode.event import Event
from necrocode.ledger.files import FileLedger
from necrocode.ledger.snapshot import Sighting, Snapshot, Waiting
from necrocode.lookup import Found
from necrocode.order import read_result
from necrocode.outcome import Outcome
from necrocode.screen import counted, duration

_COMMIT = re.compile(r"[0-9a-f]{40,64}")
_QUIET = ("resources.sampled", "phase.finished", "lease.published", "artifacts.recorded")
"""Events that a story can be told without."""


class Answer(NamedTuple):
    """`state` is waiting, running, orphaned, fenced, gone, or a final status; `sentences` say why, the first in short.

    `runner` and `waiter` are what was seen of it now, `outcome` how its last attempt ended, `story` what was told."""

    found: Found
    state: str
    sentences: tuple[str, ...]
    runner: Sighting | None = None
    waiter: Waiting | None = None
    outcome: Outcome | None = None
    story: tuple[Event, ...] = ()


def explain(ledger: FileLedger, found: Found) -> Answer:
    """The answer for a task or a runner; raises StateUnreadable when the plan of its run cannot be read."""
    snapshot = ledger.snapshot()
    if found.runner_id:
        story = journal.story(ledger.state.events, runner_id=found.runner_id)
        return _of_runner(snapshot, found, found.runner_id, story) or _gone(found, story)
    story = [event for event in journal.read(ledger.state.events) if _is_about(event, found)]
    return _of_task(ledger, snapshot, found, story)


def _is_about(event: Event, found: Found) -> bool:
    if event.run_id == found.run_id and event.task_id == found.task_id:
        return True
    # What the ledger tells knows the runner, not its run.
    name, mark, number = event.runner_id.rpartition(".")
    return bool(mark) and name == f"{found.run_id}.{found.task_id}" and number.isdigit()


def told(event: Event) -> str:
    """One event as a line: when, what, and its facts."""
    facts = ", ".join(f"{key} {_short(value)}" for key, value in event.facts.items() if value not in ("", None, [], ()))
    return f"{datetime.fromtimestamp(event.at):%H:%M:%S}  {event.kind}" + (f"  {facts}" if facts else "")


def worth_telling(story: tuple[Event, ...]) -> list[Event]:
    return [event for event in story if event.kind not in _QUIET]


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, str) and _COMMIT.fullmatch(value):
        return value[:10]
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


# -- a runner


def _of_runner(snapshot: Snapshot, found: Found, runner_id: str, story: list[Event]) -> Answer | None:
    """What a runner that is there now does; a wish for more claims comes before what it holds."""
    waiter = next((one for one in snapshot.waiting if one.record.runner_id == runner_id), None)
    runner = next((seen for seen in snapshot.runners if seen.record.runner_id == runner_id), None)
    if waiter is None and runner is None:
        return None
    if runner and runner.orphaned:
        return Answer(found, "orphaned", (left_behind(runner), _held(runner)), runner, story=tuple(story))
    sentences = [*(_why_it_waits(waiter) if waiter else ()), *(_what_it_holds(runner, story) if runner else ())]
    state = "waiting" if waiter else runner.state if runner else ""
    return Answer(found, state, tuple(sentences), runner, waiter, story=tuple(story))


def _why_it_waits(waiter: Waiting) -> Iterator[str]:
    since = duration(waiter.age)
    more = "more: " if waiter.adding else ""
    ahead = f", number {waiter.position} in line" if waiter.position > 1 else ""
    yield f"waits for {more}{wish(waiter)}" + ("" if waiter.adding else f", for {since}") + ahead
    for holder in waiter.blockers[:8]:
        yield str(holder)
    if len(waiter.blockers) > 8:
        yield f"and {len(waiter.blockers) - 8} more"
    if waiter.liveness == "dead":
        yield "its own process has ended: it leaves the queue with the next move"


def _what_it_holds(seen: Sighting, story: list[Event]) -> Iterator[str]:
    record = seen.record
    phase = next((f", now in {e.facts.get('phase')}" for e in reversed(story) if e.kind == "phase.started"), "")
    pid = f", pid {record.holder.pid}" if record.holder else ""
    waited = f", after waiting {duration(record.waited_seconds)}" if record.waited_seconds >= 0.05 else ""
    does = "runs" if seen.state == "running" else "is fenced"
    yield f"{does} for {duration(seen.age)}{waited}{phase}{pid}, token {seen.token}"
    if seen.liveness == "dead":
        yield "its process has ended; the lease goes with the next move, or `necrocode gc --yes`"
    if seen.liveness == "silent":
        yield f"no heartbeat for {duration(seen.silent or 0.0)}"
    yield _held(seen)


def _held(seen: Sighting) -> str:
    return f"holds {', '.join(map(str, seen.record.claims)) or 'nothing'}" + (" and a slot" if seen.record.slot else "")


def _gone(found: Found, story: list[Event]) -> Answer:
    last = worth_telling(tuple(story))[-1:]
    ends = {
        "lease.released": "has ended, and gave back what it held",
        "lease.reaped": "died; its lease was removed",
        "lease.fenced": "was fenced",
        "lease.refused": "was refused",
        "lease.abandoned": "left the queue",
    }
    how = ends.get(last[0].kind, "is no more") if last else "is no more"
    when = f", {duration(datetime.now(UTC).timestamp() - last[0].at)} ago" if last else ""
    return Answer(found, "gone", (f"{how}{when}",), story=tuple(story))


# -- a task of a run


def _of_task(ledger: FileLedger, snapshot: Snapshot, found: Found, story: list[Event]) -> Answer:
    state = ledger.state
    numbers = dict(runs.attempts(state, found.run_id, found.task_id))
    last = found.attempt or max(numbers, default=0)
    if answer := _of_runner(snapshot, found, f"{found.run_id}.{found.task_id}.{last}", story):
        return answer
    outcome = _outcome(ledger, found, last) if last in numbers else None
    follows = lookup.launcher_lives(state, found.run_id)
    if outcome and (found.attempt or not follows or not _again(story)):
        return Answer(found, str(outcome.status), tuple(_how_it_ended(outcome)), outcome=outcome, story=tuple(story))
    plan = runs.Plan.load(state, found.run_id)
    sentences = tuple(_why_not_begun(ledger, plan, found, story, follows))
    cancelled = any(event.kind == "task.cancelled" for event in story)
    return Answer(found, "cancelled" if cancelled else "waiting", sentences, outcome=outcome, story=tuple(story))


def _again(story: list[Event]) -> bool:
    """Whether the last that was told of the attempts is that another one will follow."""
    kinds = [event.kind for event in story if event.kind.startswith("attempt.")]
    return kinds[-1:] == ["attempt.retried"]


def _outcome(ledger: FileLedger, found: Found, number: int) -> Outcome | None:
    try:
        return read_result(runs.attempt_folder(ledger.state, found.run_id, found.task_id, number))
    except (StateUnreadable, KeyError, ValueError, TypeError):
        return None


def _how_it_ended(outcome: Outcome) -> Iterator[str]:
    ended = f", {datetime.fromtimestamp(outcome.ended):%Y-%m-%d %H:%M:%S}" if outcome.ended else ""
    took = f" after {duration(outcome.seconds)}" if outcome.started else ""
    yield f"{outcome.status.replace('_', ' ')}{took}, attempt {outcome.attempt}{ended}"
    if outcome.error:
        yield f"because: {outcome.error}"
    if outcome.commits:
        changed = f"{counted(len(outcome.files_changed), 'file')}, +{outcome.lines_added} -{outcome.lines_removed}"
        yield f"{counted(len(outcome.commits), 'commit')} on {outcome.branch}: {changed}"
    if outcome.waited >= 0.05:
        yield f"waited {duration(outcome.waited)} for what others held"


def _why_not_begun(
    ledger: FileLedger, plan: runs.Plan, found: Found, story: list[Event], follows: bool
) -> Iterator[str]:
    cancelled = [event for event in story if event.kind == "task.cancelled"]
    if cancelled:
        yield f"will not be started: {cancelled[-1].facts.get('reason', '')}"
        return
    before = [*plan.task(found.task_id).after, *(str(e.facts["after"]) for e in story if e.kind == "conflict.avoided")]
    left = {name: why for name in dict.fromkeys(before) if (why := _not_done(ledger, found.run_id, name))}
    if not follows:
        yield f"nobody follows its run now; go on with: necrocode run --resume {found.run_id}"
    elif left:
        yield f"comes after {', '.join(left)}"
    else:
        yield f"waits for one of the {plan.jobs} places of its run"
    for name, why in left.items():
        yield f"{name} {why}{_shared(story, name)}"


def _shared(story: list[Event], name: str) -> str:
    for event in story:
        if event.kind == "conflict.avoided" and event.facts.get("after") == name:
            return f"; both want {', '.join(map(str, event.facts.get('claims', ())))}"
    return ""


def _not_done(ledger: FileLedger, run_id: str, task_id: str) -> str:
    """Where a task stands that another one waits for; "" when it is done."""
    numbers = dict(runs.attempts(ledger.state, run_id, task_id))
    if not numbers:
        return "has not begun"
    outcome = _outcome(ledger, Found(run_id, task_id), max(numbers))
    if outcome is None:
        return "is under way"
    return "" if outcome.ok else f"ended as {outcome.status.replace('_', ' ')}"


def facts(answer: Answer) -> dict[str, Any]:
    """The answer as one JSON document."""
    runner, waiter = answer.runner, answer.waiter
    return {
        "name": str(answer.found),
        "run_id": answer.found.run_id,
        "task_id": answer.found.task_id,
        "runner_id": answer.found.runner_id or (runner or waiter).record.runner_id if runner or waiter else "",  # type: ignore[union-attr]
        "state": answer.state,
        "why": answer.sentences,
        "blockers": waiter.blockers if waiter else (),
        "holds": runner.record.claims if runner else (),
        "since": (waiter or runner).record.start_time if waiter or runner else None,  # type: ignore[union-attr]
        "outcome": answer.outcome.to_dict() if answer.outcome else None,
        "story": [event.to_dict() for event in answer.story],
    }
