"""The document's figures, folded from events: one `attempt.finished` for each task, one `attempt.started` for each
attempt that was admitted."""

from __future__ import annotations

from typing import Any, NamedTuple

from necrocode.event import Event


class _Agent(NamedTuple):
    tasks: int = 0
    successes: int = 0
    milliseconds: float = 0.0


class _Waits(NamedTuple):
    waits: int = 0
    seconds: float = 0.0
    longest: float = 0.0


class Figures:
    """Counts what it is told of; its size depends on the number of agents and resources, not of tasks."""

    def __init__(self) -> None:
        self._agents: dict[str, _Agent] = {}
        self._resources: dict[str, _Waits] = {}
        self._least = self._most = 0.0
        self._confidence = (0, 0.0)

    def add(self, event: Event) -> None:
        if event.kind == "attempt.finished":
            self._finished(event)
        elif event.kind == "attempt.started" and event.facts.get("waited"):
            waited = float(event.facts["waited"])
            for resource in event.facts.get("resources", ()):
                was = self._resources.get(resource, _Waits())
                self._resources[resource] = _Waits(was.waits + 1, was.seconds + waited, max(was.longest, waited))

    def _finished(self, event: Event) -> None:
        facts = event.facts
        good, spent = facts["status"] == "done", 1000.0 * facts["seconds"]
        self._least = min(self._least, spent) if self.total else spent
        self._most = max(self._most, spent)
        was = self._agents.get(facts["agent"], _Agent())
        self._agents[facts["agent"]] = _Agent(was.tasks + 1, was.successes + good, was.milliseconds + spent)
        if facts.get("confidence") is not None:
            count, sum_ = self._confidence
            self._confidence = (count + 1, sum_ + facts["confidence"])

    @property
    def total(self) -> int:
        return sum(agent.tasks for agent in self._agents.values())

    @property
    def successes(self) -> int:
        return sum(agent.successes for agent in self._agents.values())

    def to_dict(self, workflow_id: str | None) -> dict[str, Any]:
        """With the document's keys; all of them also before the first task."""
        spent = sum(agent.milliseconds for agent in self._agents.values())
        count, confidence = self._confidence
        return {
            "workflow_id": workflow_id,
            "total_tasks": self.total,
            "successful_tasks": self.successes,
            "failed_tasks": self.total - self.successes,
            "average_confidence": confidence / count if count else 0.0,
            "average_execution_time_ms": spent / self.total if self.total else 0.0,
            "min_execution_time_ms": self._least,
            "max_execution_time_ms": self._most,
            "agent_metrics": {
                name: {"tasks": agent.tasks, "successes": agent.successes, "total_time_ms": agent.milliseconds}
                for name, agent in self._agents.items()
            },
        }

    def contention(self) -> dict[str, dict[str, float]]:
        """For each resource that was waited for: how often, and in seconds in all and at most."""
        return {resource: waits._asdict() for resource, waits in self._resources.items()}
