"""Events folded into figures: how many ran at once, how long they waited, what conflicts there were.

Every figure comes from events alone, and no fact counts twice: a lease ends once however many notice it, a
conflict between the same two over the same things is one, however often it is met.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from necrocode.event import Event
from necrocode.load import Clock, Concurrency, Leases, Spread
from necrocode.outcome import FINAL

NO_CLAIM = frozenset({"limit", "quota", "duplicate", "waiting", "unreadable"})
"""Reasons to refuse or to let wait that are no conflict over a claim. Behind others in the queue one may be for
either; then the claims tell."""


class Phase(NamedTuple):
    """All passes through one phase: how many, how many failed, seconds in all, and of the longest."""

    passes: int = 0
    failed: int = 0
    seconds: float = 0.0
    longest: float = 0.0


class Figures(NamedTuple):
    """What can be said of a task, a run, or everything. `waits` are of granted leases, from the request to the
    grant, most of them 0; `attempts` counts by status, `ended` counts tasks by how they ended last; `seconds` is the
    work of all attempts, without their waits, `elapsed` the time from the first event to the last; `memory_mb` is the
    most that was seen, `cpu_percent` the mean."""

    waits: Spread = Spread()
    queued: int = 0
    refused: int = 0
    abandoned: int = 0
    fenced: int = 0
    reaped: int = 0
    conflicts_detected: int = 0
    conflicts_avoided: int = 0
    attempts: Mapping[str, int] = {}
    ended: Mapping[str, int] = {}
    seconds: float = 0.0
    elapsed: float = 0.0
    retries: int = 0
    lost: int = 0
    errors: int = 0
    phases: Mapping[str, Phase] = {}
    work: Mapping[str, int] = {}
    memory_mb: float = 0.0
    cpu_percent: float = 0.0


class Metrics(NamedTuple):
    """`total` is of all events, `runs` by run id, `tasks` by (run id, task id). `hand_over` is from the end of a
    lease to the word of the waiter that it works now."""

    total: Figures = Figures()
    concurrency: Concurrency = Concurrency()
    hand_over: Spread = Spread()
    runs: Mapping[str, Figures] = {}
    tasks: Mapping[tuple[str, str], Figures] = {}

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; tasks are in a list, each with its run."""
        return {
            "total": _plain(self.total),
            "concurrency": self.concurrency._asdict(),
            "hand_over": self.hand_over._asdict(),
            "runs": {run: _plain(figures) for run, figures in self.runs.items()},
            "tasks": [
                {"run_id": run, "task_id": task, **_plain(figures)} for (run, task), figures in self.tasks.items()
            ],
        }


def _plain(figures: Figures) -> dict[str, Any]:
    phases = {name: phase._asdict() for name, phase in figures.phases.items()}
    return {**figures._asdict(), "waits": figures.waits._asdict(), "phases": phases}


def fold(events: Iterable[Event]) -> Metrics:
    """The metrics of these events, in the order of writing."""
    folded = Fold()
    for event in events:
        folded.add(event)
    return folded.result()


class Fold:
    """The same, one event after the other: `add` is cheap, `result` may be asked for at any time."""

    def __init__(self) -> None:
        self._tallies: dict[tuple[str, str, str], _Tally] = {}
        self._task_of: dict[str, str] = {}
        self._run_of: dict[tuple[str, str], str] = {}
        self._leases = Leases()
        self._clock = Clock()

    def add(self, event: Event) -> None:
        now = self._clock.read(event, self._leases)
        key = self._whose(event)
        tally = self._tallies.get(key)
        if tally is None:
            tally = self._tallies[key] = _Tally(now)
        tally.add(event, now)
        self._leases.add(event, now)

    def _whose(self, event: Event) -> tuple[str, str, str]:
        """Runner, task and run to count it for. The ledger knows no runs: a runner's is learned from its others."""
        runner, task, run = event.runner_id, event.task_id, event.run_id
        if not runner:
            return "", task, run
        if task:
            self._task_of[runner] = task
        task = self._task_of.get(runner, "")
        if run:
            self._run_of[runner, task] = run
        return runner, task, ""

    def result(self) -> Metrics:
        runs: dict[str, list[_Tally]] = {}
        tasks: dict[tuple[str, str], list[_Tally]] = {}
        for (runner, task, run), tally in self._tallies.items():
            run = self._run_of.get((runner, task), run)
            if run:
                runs.setdefault(run, []).append(tally)
            if task:
                tasks.setdefault((run, task), []).append(tally)
        return Metrics(
            _figures(list(self._tallies.values())),
            self._leases.concurrency(),
            self._leases.hand_over(),
            {run: _figures(tallies) for run, tallies in runs.items()},
            {task: _figures(tallies) for task, tallies in tasks.items()},
        )


class _Tally:
    """What was counted for one runner, or for a task or run where no runner was named."""

    def __init__(self, now: float) -> None:
        self.first = self.last = now
        self.counts: Counter[str] = Counter()
        self.waits: list[float] = []
        self.conflicts: set[object] = set()
        self.avoided: set[object] = set()
        self.ends: dict[object, tuple[float, str, float]] = {}
        self.standings: dict[object, tuple[bool, float, str]] = {}
        self.again: set[tuple[object, ...]] = set()
        self.phases: dict[str, Phase] = {}
        self.work: Counter[str] = Counter()
        self.memory = self.cpu = 0.0

    @property
    def waited_in_attempts(self) -> float:
        """The waits that the seconds of its attempts have in them: an attempt begins with its request."""
        return sum(self.waits) if self.ends else 0.0

    def add(self, event: Event, now: float) -> None:
        self.first, self.last = min(self.first, now), max(self.last, now)
        thing, _, happened = event.kind.partition(".")
        facts = event.facts
        if event.kind == "attempt.finished" or event.kind in _TOLD:
            self._add_standing(event, now)
        if event.kind in _ATTEMPTS:
            attempt = (event.run_id, event.task_id, _text(facts.get("attempt")))
            if happened == "finished":
                self.ends[attempt] = (now, str(facts.get("status", "")), _seconds(facts.get("seconds")))
            else:
                self.again.add((happened, *attempt))
        elif thing in ("lease", "conflict"):
            self._add_lease(event, happened)
        elif event.kind == "phase.finished":
            self._add_phase(str(facts.get("phase", "")), _seconds(facts.get("seconds")), ok=bool(facts.get("ok", True)))
        elif event.kind == "resources.sampled":
            self.counts["samples"] += 1
            self.memory = max(self.memory, _seconds(facts.get("memory_mb")))
            self.cpu += _seconds(facts.get("cpu_percent"))
        elif happened == "recorded" and thing == "error":
            self.counts["errors"] += 1
        elif thing in ("work", "tests", "artifacts"):
            self.work.update({_WORK.get((thing, key), key): _number(value) for key, value in facts.items()})

    def _add_standing(self, event: Event, now: float) -> None:
        """What is done stays done: a runner that was taken for dead may tell of its end much later."""
        status = _TOLD.get(event.kind) or str(event.facts.get("status", ""))
        known, told = (event.run_id, event.task_id), (status == "done", now, status)
        self.standings[known] = max(told, self.standings.get(known, told))

    def _add_lease(self, event: Event, happened: str) -> None:
        facts = event.facts
        if event.kind == "conflict.avoided":
            self.avoided.add((event.run_id, _text(facts.get("task", event.task_id)), _text(facts.get("after"))))
            return
        self.counts[happened] += 1
        if happened == "granted":
            self.waits.append(_seconds(facts.get("waited")))
        if event.kind == "conflict.found" or (happened in ("refused", "queued") and _is_conflict(facts)):
            self.conflicts.add((event.runner_id, _text(facts.get("claims")), _text(facts.get("blockers"))))

    def _add_phase(self, name: str, seconds: float, *, ok: bool) -> None:
        was = self.phases.get(name, Phase())
        self.phases[name] = Phase(
            was.passes + 1, was.failed + (not ok), was.seconds + seconds, max(was.longest, seconds)
        )


_ATTEMPTS = frozenset({"attempt.finished", "attempt.retried", "attempt.lost"})
_TOLD = {"attempt.started": "running", "attempt.retried": "waiting", "task.cancelled": "cancelled"}
"""Where a task stands after what was told of it; the end of an attempt says so itself."""
_WORK = {
    ("tests", "run"): "tests_run",
    ("tests", "passed"): "tests_passed",
    ("tests", "failed"): "tests_failed",
    ("artifacts", "count"): "artifacts",
    ("artifacts", "bytes"): "artifact_bytes",
}


def _figures(tallies: Sequence[_Tally]) -> Figures:
    counts, work = Counter[str](), Counter[str]()
    ends = _latest(tally.ends for tally in tallies)
    standings = _latest(tally.standings for tally in tallies)
    phases: dict[str, Phase] = {}
    waited = 0.0
    for tally in tallies:
        counts.update(tally.counts)
        work.update(tally.work)
        waited += tally.waited_in_attempts
        for name, phase in tally.phases.items():
            phases[name] = _joined(phases.get(name, Phase()), phase)
    again = Counter(key[0] for key in set[Any]().union(*(tally.again for tally in tallies)))
    return Figures(
        waits=Spread.of(wait for tally in tallies for wait in tally.waits),
        queued=counts["queued"],
        refused=counts["refused"],
        abandoned=counts["abandoned"],
        fenced=counts["fenced"],
        reaped=counts["reaped"],
        conflicts_detected=len(set().union(*(tally.conflicts for tally in tallies))),
        conflicts_avoided=len(set().union(*(tally.avoided for tally in tallies))),
        attempts=dict(Counter(status for _, status, _ in ends.values())),
        ended=dict(Counter(status for _, _, status in standings.values() if status in FINAL)),
        seconds=max(0.0, sum(seconds for _, _, seconds in ends.values()) - waited),
        elapsed=max(tally.last for tally in tallies) - min(tally.first for tally in tallies) if tallies else 0.0,
        retries=again["retried"],
        lost=again["lost"],
        errors=counts["errors"],
        phases=phases,
        work=dict(work),
        memory_mb=max((tally.memory for tally in tallies), default=0.0),
        cpu_percent=sum(tally.cpu for tally in tallies) / max(1, counts["samples"]),
    )


def _latest(told: Iterable[Mapping[object, Any]]) -> dict[object, Any]:
    """For each key the greatest value: what was told last."""
    found: dict[object, Any] = {}
    for one in told:
        for key, value in one.items():
            found[key] = max(value, found.get(key, value))
    return found


def _is_conflict(facts: Mapping[str, Any]) -> bool:
    return facts.get("reason") not in NO_CLAIM and (facts.get("reason") != "queue" or bool(facts.get("claims")))


def _joined(ours: Phase, theirs: Phase) -> Phase:
    counts = ours.passes + theirs.passes, ours.failed + theirs.failed, ours.seconds + theirs.seconds
    return Phase(*counts, max(ours.longest, theirs.longest))


def _text(value: object) -> str | tuple[str, ...]:
    return tuple(sorted(map(str, value))) if isinstance(value, list | tuple | set | frozenset) else str(value)


def _seconds(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _number(value: object) -> int:
    return int(value) if isinstance(value, int | float) else 0
