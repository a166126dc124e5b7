"""Which events belong to a run or a task, and the metrics of those that do: the one source of every number shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from necrocode import journal
from necrocode.event import Event
from necrocode.load import Clock, Leases, Spread
from necrocode.metrics import Figures, Fold, Metrics
from necrocode.screen import clean, duration

_ONE = {"retries": "retry", "errors": "error"}


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
    return folded(journal.read(events_dir, since), run_id)


def folded(events: Iterable[Event], run_id: str = "") -> Metrics:
    """The metrics of one run (or of everything) among these events. All of them are needed: what a run waited for may
    have been a stranger's."""
    kept, leases, clock = Fold(), Leases(), Clock()
    for event in events:
        leases.add(event, clock.read(event, leases))
        if is_of(event, run_id):
            kept.add(event)
    return kept.result()._replace(hand_over=leases.hand_over(f"{run_id}." if run_id else ""))


def shown(metrics: Metrics) -> list[tuple[str, str]]:
    """The figures as a name and a text each, for a terminal; those that say nothing are left out."""
    total = metrics.total
    rows = [
        ("tasks", _by_status(total.ended)),
        ("attempts", _by_status(total.attempts)),
        ("at once", f"most {metrics.concurrency.max}, mean {metrics.concurrency.mean:.2f}"),
        ("wait", spread(total.waits)),
        ("hand-over", spread(metrics.hand_over)),
        ("conflicts", f"{total.conflicts_detected} detected, {total.conflicts_avoided} avoided"),
        ("queue", _counts(total, "queued", "refused", "abandoned")),
        ("went wrong", _counts(total, "retries", "lost", "errors", "fenced", "reaped")),
        ("time", f"{duration(total.elapsed)} by the clock, {duration(total.seconds)} of work"),
        ("phases", phases(total)),
        ("work", ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in total.work.items())),
    ]
    if total.memory_mb:
        rows.append(("used", f"memory {total.memory_mb:.0f} MB at most, cpu {total.cpu_percent:.0f} % in the mean"))
    return [(name, text) for name, text in rows if text]


def lines(rows: Iterable[tuple[str, str]], width: int) -> list[str]:
    """Names and texts for a screen of that width; what does not fit stands below the rest of its text."""
    from textwrap import wrap

    room = max(20, width - 12)
    return [
        f"{name if first else '':<11} {part}"
        for name, text in rows
        for first, part in ((at == 0, one) for at, one in enumerate(wrap(clean(text), room)))
    ]


def spread(durations: Spread) -> str:
    """The middle, the 95th of 100 and the longest; "" where there are none."""
    if not durations.samples:
        return ""
    told = ", ".join(f"{name} {short(getattr(durations, name))}" for name in ("p50", "p95", "max"))
    return f"{told} (of {durations.samples})"


def short(seconds: float) -> str:
    """As `duration`, but with milliseconds where those matter."""
    return f"{seconds * 1000:.1f} ms" if 0 < seconds < 0.1 else duration(seconds)


def phases(figures: Figures) -> str:
    """The share of each phase in the time of all of them, the longest first."""
    total = sum(phase.seconds for phase in figures.phases.values())
    ordered = sorted(figures.phases.items(), key=lambda one: -one[1].seconds)
    return ", ".join(f"{name} {100 * phase.seconds / total:.0f} %" for name, phase in ordered) if total else ""


def _by_status(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in counts.items())


def _counts(figures: Figures, *names: str) -> str:
    counts = {name: getattr(figures, name) for name in names}
    told = {name: _ONE.get(name, name) if count == 1 else name for name, count in counts.items()}
    return ", ".join(f"{count} {told[name]}" for name, count in counts.items() if count)
