"""Metrics of one run: folds over its events, whether the journal has them or a MetricsCollector was told them."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from necrocode import clock, journal
from necrocode.event import Event
from necrocode.git import StrPath
from necrocode.metrics import Figures, fold
from necrocode.statedir import put

logger = logging.getLogger(__name__)


@dataclass
class ExecutionMetrics:
    """What one run did and cost. Durations are in seconds, memory is the most that was seen in MB (2**20 bytes)."""

    runner_id: str
    task_id: str
    spec_name: str
    start_time: datetime | None = None
    end_time: datetime | None = None
    total_duration_seconds: float = 0.0
    phase_timings: dict[str, float] = field(default_factory=dict)
    concurrent_runners: int = 1
    wait_time_seconds: float = 0.0
    resource_conflicts_detected: int = 0
    files_changed: int = 0
    lines_added: int = 0
    lines_removed: int = 0
    tests_run: int = 0
    tests_passed: int = 0
    tests_failed: int = 0
    artifacts_uploaded: int = 0
    artifacts_size_bytes: int = 0
    errors: int = 0
    retries: int = 0
    memory_mb: float = 0.0
    cpu_percent: float = 0.0
    degraded: bool = False

    @classmethod
    def of(cls, events: Iterable[Event], runner_id: str, task_id: str, spec_name: str) -> ExecutionMetrics:
        """The metrics of one runner's events, in the order of writing."""
        events = list(events)
        figures = fold(events).total
        times = [event.at for event in events]
        return cls(
            runner_id, task_id, spec_name,
            start_time=clock.utc(min(times)) if times else None, end_time=clock.utc(max(times)) if times else None,
            total_duration_seconds=figures.elapsed,
            phase_timings=document_phases({name: phase.seconds for name, phase in figures.phases.items()}),
            concurrent_runners=max((_live(event) for event in events), default=1),
            **_counted(figures),
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        times = {name: at.isoformat() if (at := getattr(self, name)) else None for name in ("start_time", "end_time")}
        return {**asdict(self), **times}


def _live(event: Event) -> int:
    """How many ran at once by this event, whoever it is about included: it may have no slot to be counted by."""
    live = event.facts.get("live", 1) if event.kind == "lease.granted" else 1
    return live + (event.facts.get("slot") is False) if isinstance(live, int) else 1


def _counted(figures: Figures) -> dict[str, Any]:
    work = figures.work
    return {
        "wait_time_seconds": figures.waits.total,
        "resource_conflicts_detected": figures.conflicts_detected,
        "artifacts_uploaded": work.get("artifacts", 0),
        "artifacts_size_bytes": work.get("artifact_bytes", 0),
        "errors": figures.errors,
        "retries": figures.retries,
        "memory_mb": figures.memory_mb,
        "cpu_percent": figures.cpu_percent,
        **{
            name: work.get(name, 0)
            for name in ("files_changed", "lines_added", "lines_removed", "tests_run", "tests_passed", "tests_failed")
        },
    }


def document_phases(phases: Mapping[str, float]) -> dict[str, float]:
    """The engine's phases under the document's names: prepare, implement, test, commit, artifacts, push."""
    named = {{"verify": "test"}.get(name, name): seconds for name, seconds in phases.items()}
    if "work" in named:
        # The tests run inside the engine's work phase.
        named["implement"] = max(0.0, named.pop("work") - named.get("test", 0.0))
    order = ("prepare", "implement", "test", "commit", "artifacts", "push")
    return {name: named[name] for name in sorted(named, key=lambda name: order.index(name) if name in order else 99)}


class MetricsCollector:
    """Turns what it is told into events of one runner; `finalize` folds them. The run begins with it."""

    def __init__(self, runner_id: str, task_id: str, spec_name: str) -> None:
        self.runner_id, self.task_id, self.spec_name = runner_id, task_id, spec_name
        self.events: list[Event] = []
        self._begun: dict[str, float] = {}
        self._sampled = sum(os.times()[:4]), clock.monotonic()
        self._began = self._ended = clock.wall(), clock.monotonic()
        self._asked: int | None = None

    def start_phase(self, phase_name: str) -> None:
        self._begun[phase_name] = clock.monotonic()
        self._tell("phase.started", phase=phase_name)

    def end_phase(self, phase_name: str) -> None:
        """A phase that was never started is only logged."""
        begun = self._begun.pop(phase_name, None)
        if begun is None:
            logger.warning("phase %s was not started", phase_name)
            return
        self._tell("phase.finished", phase=phase_name, seconds=clock.monotonic() - begun, ok=True)

    def sample_resources(self) -> None:
        """The most memory this process or one of its ended children ever had, and the cpu since the last sample."""
        import resource

        spent, now = sum(os.times()[:4]), clock.monotonic()
        before, at = self._sampled
        self._sampled = spent, now
        peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        percent = 100.0 * (spent - before) / max(now - at, 1e-3)
        self._tell("resources.sampled", cpu_percent=round(percent, 1), memory_mb=round(peak / 1024, 1))

    def record_implementation(self, files_changed: int, lines_added: int = 0, lines_removed: int = 0) -> None:
        count = files_changed if isinstance(files_changed, int) else len(files_changed)
        self._tell("work.recorded", files_changed=count, lines_added=lines_added, lines_removed=lines_removed)

    def record_tests(self, tests_run: int, tests_passed: int, tests_failed: int) -> None:
        self._tell("tests.recorded", run=tests_run, passed=tests_passed, failed=tests_failed)

    def record_artifacts(self, artifacts_uploaded: int, total_size_bytes: int) -> None:
        self._tell("artifacts.recorded", count=artifacts_uploaded, bytes=total_size_bytes)

    def record_error(self, error: str = "") -> None:
        self._tell("error.recorded", error=error)

    def record_retry(self) -> None:
        self._tell("attempt.retried", attempt=len(self.events))

    def record_concurrent_runners(self, count: int) -> None:
        self._tell("lease.granted", live=count, waited=0.0)

    def record_wait_time(self, seconds: float) -> None:
        """Adds up."""
        self._tell("lease.granted", waited=seconds)

    def record_resource_conflict(self, conflict: str = "") -> None:
        """One more; the same conflict told twice is two."""
        self._tell("conflict.found", claims=[conflict, str(len(self.events))])

    def finalize(self) -> ExecutionMetrics:
        """The metrics so far, up to now; asking again changes nothing as long as nothing more is told."""
        if self._asked != len(self.events):
            self._asked, self._ended = len(self.events), (clock.wall(), clock.monotonic())
        metrics = ExecutionMetrics.of(self.events, self.runner_id, self.task_id, self.spec_name)
        metrics.start_time, metrics.end_time = clock.utc(self._began[0]), clock.utc(self._ended[0])
        metrics.total_duration_seconds = self._ended[1] - self._began[1]
        return metrics

    def _tell(self, kind: str, **facts: Any) -> None:
        whom = {"runner_id": self.runner_id, "task_id": self.task_id, "spec_name": self.spec_name}
        self.events.append(journal.make(kind, **whom, **facts))


class MetricsReporter:
    """Shows metrics on the console, and writes them to `output_dir` when there is one."""

    def __init__(self, output_dir: StrPath | None = None) -> None:
        self.output_dir = Path(output_dir).expanduser() if output_dir is not None else None

    def report(self, metrics: ExecutionMetrics) -> Path | None:
        """The console section, and metrics_<runner_id>_<YYYYmmdd_HHMMSS>.json; the file's path.

        Raises OSError when the file cannot be written."""
        _show(section(metrics))
        if self.output_dir is None:
            return None
        self.output_dir.mkdir(parents=True, exist_ok=True)
        stamp = f"{metrics.end_time or datetime.now(UTC):%Y%m%d_%H%M%S}"
        return _written(self.output_dir, f"metrics_{metrics.runner_id}_{stamp}", metrics)

    def report_summary(self, metrics: Iterable[ExecutionMetrics]) -> None:
        """One line for each run and one for all of them."""
        runs = list(metrics)
        lines = [f"{one.runner_id}  {one.task_id}  {one.total_duration_seconds:.1f} s" for one in runs]
        waited = sum(one.wait_time_seconds for one in runs)
        conflicts = sum(one.resource_conflicts_detected for one in runs)
        errors = sum(one.errors for one in runs)
        lines.append(f"{len(runs)} runs, {waited:.1f} s waited, {conflicts} conflicts, {errors} errors")
        _show(lines)


def _show(lines: list[str]) -> None:
    """On the console. To have none, or one that is closed or gone, is no reason to lose what is reported."""
    try:
        sys.stdout.write("\n".join(lines) + "\n")
    except (AttributeError, OSError, ValueError) as error:
        logger.warning("metrics were not shown: %s", error)


def _written(folder: Path, stem: str, metrics: ExecutionMetrics) -> Path:
    data = json.dumps(metrics.to_dict(), indent=2).encode() + b"\n"
    for number in range(1, 1000):
        # Two runs of one runner may end within a second: neither file is lost.
        path = folder / (f"{stem}.json" if number == 1 else f"{stem}_{number}.json")
        try:
            put(path, data, mode=0o644)
            return path
        except FileExistsError:
            continue
    raise FileExistsError(str(folder / stem))


def section(metrics: ExecutionMetrics) -> list[str]:
    """The lines of the console report."""
    lines = [f"Runner {metrics.runner_id}, task {metrics.task_id}: {metrics.total_duration_seconds:.1f} s"]
    lines += [f"  {name:<10} {seconds:8.2f} s" for name, seconds in metrics.phase_timings.items()]
    lines += [
        f"  {metrics.files_changed} files changed, +{metrics.lines_added} -{metrics.lines_removed}",
        f"  {metrics.tests_passed} of {metrics.tests_run} tests passed",
        f"  {metrics.errors} errors, {metrics.retries} retries",
        f"  {metrics.memory_mb:.0f} MB, {metrics.cpu_percent:.0f} % cpu",
        "  Parallel execution:",
        f"    Concurrent runners: {metrics.concurrent_runners}",
        f"    Wait time: {metrics.wait_time_seconds:.2f} s",
        f"    Resource conflicts: {metrics.resource_conflicts_detected}",
    ]
    return lines + (["    Ran without a slot (degraded)"] if metrics.degraded else [])
