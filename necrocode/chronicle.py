"""What one run came to: who worked when and in which slot, where time went, and what is to be done next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import pairwise
from typing import Any, NamedTuple

from necrocode import figures, journal, lookup, runs
from necrocode.errors import StateUnreadable
from necrocode.event import Event
from necrocode.metrics import Metrics
from necrocode.order import read_result
from necrocode.outcome import Outcome, Status
from necrocode.statedir import StateDir

WAITING = "waiting"
"""The phase of a span in which an attempt waits for what somebody else holds."""
_BEGINS = ("lease.queued", "lease.granted", "attempt.started")
_ENDS = ("attempt.finished", "attempt.lost", "lease.released", "lease.reaped", "lease.abandoned")


class Span(NamedTuple):
    """One phase of one attempt; `begin` and `end` in seconds since the run began."""

    task_id: str
    attempt: int
    phase: str
    begin: float
    end: float


class Stretch(NamedTuple):
    """One attempt from its first sign to its last, the slot that it is drawn in (from 0), and its phases."""

    task_id: str
    attempt: int
    slot: int
    begin: float
    end: float
    status: str
    spans: tuple[Span, ...]


class Failure(NamedTuple):
    """A task that is not done: how its last attempt ended, why, and the command to go on with."""

    task_id: str
    status: str
    attempts: int
    error: str
    next: str


class Chronicle(NamedTuple):
    """A run as it can be told.

    `began` is in seconds since 1970, `wall` in seconds; `goes_on`: somebody follows it. `at_once` says since when
    how many held a lease; `outcomes` are the last ones by task; `contended` is what was waited for, with how often
    and for how many seconds."""

    plan: runs.Plan
    began: float
    wall: float
    goes_on: bool
    metrics: Metrics
    stretches: tuple[Stretch, ...]
    at_once: tuple[tuple[float, int], ...]
    outcomes: Mapping[str, Outcome]
    failures: tuple[Failure, ...]
    conflicts: tuple[Event, ...]
    contended: tuple[tuple[str, int, float], ...]

    @property
    def slots(self) -> int:
        return max((stretch.slot + 1 for stretch in self.stretches), default=0)

    def busy(self, slot: int) -> float:
        """The share of the wall time in which somebody worked, not only waited, in that slot."""
        spans = (span for one in self.stretches if one.slot == slot for span in one.spans)
        return sum(span.end - span.begin for span in spans if span.phase != WAITING) / (self.wall or 1.0)

    def shares(self) -> dict[str, float]:
        """Seconds by phase, waiting among them, the largest first."""
        seconds: dict[str, float] = {}
        for stretch in self.stretches:
            for span in stretch.spans:
                seconds[span.phase] = seconds.get(span.phase, 0.0) + span.end - span.begin
        return dict(sorted(seconds.items(), key=lambda one: -one[1]))

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "run": self.plan.run_id, "source": self.plan.source, "base": self.plan.base, "began": self.began,
            "wall": self.wall, "goes_on": self.goes_on, "slots": self.slots, "seconds_by_phase": self.shares(),
            "tasks": {task.id: self.status(task.id) for task in self.plan.tasks}, "metrics": self.metrics.to_dict(),
            "stretches": [one._asdict() for one in self.stretches],
            "failures": [one._asdict() for one in self.failures],
            "contended": [{"claims": name, "waits": n, "seconds": s} for name, n, s in self.contended],
        }  # fmt: skip

    def status(self, task_id: str) -> str:
        outcome = self.outcomes.get(task_id)
        return str(outcome.status) if outcome else "not_begun"


def told(state: StateDir, run_id: str) -> Chronicle:
    """The chronicle of a run. Raises ConfigError for one that is not there, StateUnreadable for a broken plan."""
    plan = runs.Plan.load(state, run_id)
    everything = list(journal.read(state.events))
    metrics = figures.folded(everything, run_id)
    events = [event for event in everything if figures.is_of(event, run_id)]
    clock = _Clock(events)
    goes_on = lookup.launcher_lives(state, run_id)
    outcomes = _outcomes(state, plan, events)
    return Chronicle(
        plan, clock.began, clock.seconds(clock.last), goes_on, metrics,
        tuple(_stretches(events, run_id, clock)), tuple(_at_once(metrics, clock)), outcomes,
        () if goes_on else tuple(_failures(state, plan, outcomes)),
        tuple(event for event in events if event.kind in ("lease.queued", "lease.refused", "conflict.avoided")),
        tuple(_contended(events)),
    )  # fmt: skip


class _Clock:
    """Seconds since the run began; while nobody followed it and nothing happened, between a run and its retry, the
    clock stands."""

    def __init__(self, events: Iterable[Event]) -> None:
        times = sorted((event.at, event.kind) for event in events)
        self.began = times[0][0] if times else 0.0
        self.last = times[-1][0] if times else 0.0
        steps = pairwise(times)
        self._pauses = [(at, at - before) for (before, _), (at, kind) in steps if kind == "run.resumed"]

    def seconds(self, at: float) -> float:
        return at - self.began - sum(length for end, length in self._pauses if end <= at)


def _at_once(metrics: Metrics, clock: _Clock) -> Iterable[tuple[float, int]]:
    return ((clock.seconds(clock.began + seconds), count) for seconds, count in metrics.concurrency.timeline)


def _outcomes(state: StateDir, plan: runs.Plan, events: Iterable[Event]) -> dict[str, Outcome]:
    """The last of each task: of its attempts, or that it was not started (again)."""
    found = {event.task_id: _given_up(event) for event in events if event.kind == "task.cancelled"}
    for task_id, folders in runs.attempts_of_all(state, plan.run_id).items():
        given_up = found.get(task_id)
        for _, folder in folders:
            with suppress(StateUnreadable):
                outcome = read_result(folder)
                if outcome and (outcome.ok or not given_up or outcome.ended >= given_up.ended):
                    found[task_id] = outcome
    return found


def _given_up(event: Event) -> Outcome:
    return Outcome(
        event.task_id, Status.CANCELLED, 0, str(event.facts.get("reason", "")), "cancelled", started=event.at,
        ended=event.at,
    )  # fmt: skip


def _failures(state: StateDir, plan: runs.Plan, outcomes: Mapping[str, Outcome]) -> Iterable[Failure]:
    for task in plan.tasks:
        outcome = outcomes.get(task.id)
        if outcome is None:
            yield Failure(task.id, "not_begun", 0, "nobody followed the run", f"necrocode run --resume {plan.run_id}")
        elif not outcome.ok:
            look = f"necrocode {'logs' if outcome.ran else 'why'} {plan.run_id}/{task.id}"
            go_on = look if outcome.attempt else f"necrocode retry {plan.run_id}"
            number = len(list(runs.attempts(state, plan.run_id, task.id)))
            yield Failure(task.id, str(outcome.status), number, outcome.error, go_on)


def _contended(events: Iterable[Event]) -> list[tuple[str, int, float]]:
    """What was waited for, the longest first."""
    wanted: dict[str, str] = {}
    waits = Counter[str]()
    seconds: dict[str, float] = {}
    for event in events:
        if event.kind == "lease.queued":
            claims = event.facts.get("claims") or [event.facts.get("reason", "")]
            wanted[event.runner_id] = ", ".join(map(str, claims))
        elif event.kind in ("lease.granted", "lease.abandoned") and event.runner_id in wanted:
            name = wanted.pop(event.runner_id)
            waits[name] += 1
            seconds[name] = seconds.get(name, 0.0) + float(event.facts.get("waited") or 0.0)
    return [(name, waits[name], spent) for name, spent in sorted(seconds.items(), key=lambda one: -one[1])]


# -- who worked when


def _stretches(events: Iterable[Event], run_id: str, clock: _Clock) -> Iterable[Stretch]:
    by_runner: dict[str, list[Event]] = {}
    for event in events:
        if event.runner_id.startswith(f"{run_id}."):
            by_runner.setdefault(event.runner_id, []).append(event)
    drafts = [_stretch(name, sorted(told, key=_at), run_id, clock) for name, told in by_runner.items()]
    free: list[float] = []
    for draft in sorted(drafts, key=lambda one: (one.begin, one.end)):
        slot = next((at for at, end in enumerate(free) if end <= draft.begin), len(free))
        free[slot : slot + 1] = [draft.end]
        yield draft._replace(slot=slot)


def _at(event: Event) -> float:
    return event.at


def _stretch(runner_id: str, events: list[Event], run_id: str, clock: _Clock) -> Stretch:
    task_id, _, number = runner_id.removeprefix(f"{run_id}.").rpartition(".")
    begin = clock.seconds(min((event.at for event in events if event.kind in _BEGINS), default=events[0].at))
    end = clock.seconds(max((event.at for event in events if event.kind in _ENDS), default=clock.last))
    status = next((str(event.facts.get("status")) for event in events if event.kind == "attempt.finished"), "lost")
    attempt = int(number) if number.isdigit() else 0
    spans = tuple(_spans(task_id, attempt, events, clock, end))
    return Stretch(task_id, attempt, 0, begin, max(begin, end), status, spans)


def _spans(task_id: str, attempt: int, events: list[Event], clock: _Clock, end: float) -> Iterable[Span]:
    """What is known of an attempt's phases; one that was never told to be over ends with the attempt."""
    begun: dict[str, float] = {}
    for event in events:
        now, phase = clock.seconds(event.at), str(event.facts.get("phase", ""))
        if event.kind == "lease.queued":
            begun[WAITING] = now
        elif event.kind == "phase.started":
            begun[phase] = now
        elif event.kind in ("lease.granted", "lease.abandoned") and WAITING in begun:
            yield Span(task_id, attempt, WAITING, begun.pop(WAITING), now)
        elif event.kind == "phase.finished" and phase in begun:
            yield Span(task_id, attempt, phase, begun.pop(phase), now)
    for phase, start in begun.items():
        yield Span(task_id, attempt, phase, start, max(start, end))
