"""A benchmark: agents that are run on tasks, side by side, with limits, repetitions, a store, and a queue that learns.

Run it: python examples/benchmark_example.py
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from necrocode.benchmark import (
    AdaptiveQueue,
    Benchmark,
    BenchmarkCallback,
    PriorityQueue,
    Task,
    TaskContext,
    TaskProtocol,
)


class Calculator:
    """An agent that can add and multiply, but gets lost in long sums."""

    def __init__(self, skill: int) -> None:
        self.skill = skill
        self.messages: list[str] = []

    def run(self, query: str) -> int | None:
        self.messages.append(query)
        return sum(map(int, query.split("+"))) if query.count("+") < self.skill else None

    def gather_traces(self) -> dict[str, Any]:
        return {"messages": self.messages}

    def gather_config(self) -> dict[str, Any]:
        return {"skill": self.skill}


class SumBenchmark(Benchmark):
    """How long a sum can an agent add up?"""

    def setup_agents(self, agent_data: Any, environment: Any, task: Task, user: Any) -> Any:
        agent = Calculator(agent_data["skill"])
        return [agent], {"calculator": agent}

    def setup_evaluators(self, environment: Any, task: Task, agents: Sequence[Any], user: Any) -> Sequence[Any]:
        expected = task.evaluation_data["sum"]
        return [lambda final_answer, traces: {"right": final_answer == expected}]

    def run_agents(
        self, agents: Sequence[Any], task: Task, environment: Any, query: str, context: TaskContext | None = None
    ) -> Any:
        for _ in range(task.metadata.get("steps", 1)):
            if context:
                context.check_timeout()  # between the steps of an agent
            time.sleep(0.002)
        return agents[0].run(query)


def sum_task(length: int, **terms: Any) -> Task:
    """A sum of `length` ones."""
    return Task(
        query="+".join(["1"] * length), id=f"sum-{length}", evaluation_data={"sum": length},
        metadata={"difficulty": length}, protocol=TaskProtocol(**terms),
    )  # fmt: skip


class Starts(BenchmarkCallback):
    """Hears what is started."""

    def __init__(self) -> None:
        self.order: list[str] = []

    def on_task_repeat_start(self, benchmark: Benchmark, task: Task, repeat_idx: int) -> None:
        self.order.append(f"{task.id}#{repeat_idx}")


class AbilityQueue(AdaptiveQueue[Task]):
    """Chooses the task that tells most about the agent's ability (a Rasch model), and stops when it is known well
    enough. `ability` is on the scale of the tasks' difficulty."""

    def __init__(self, tasks: Sequence[Task], *, enough: float = 0.9, steepness: float = 1.5) -> None:
        super().__init__(tasks)
        self.enough, self.steepness = enough, steepness
        self.ability = sum(self._difficulty(task) for task in tasks) / len(tasks)
        self.error = math.inf
        self.seen: list[tuple[float, bool]] = []

    def _select_next_task(self, remaining: Sequence[tuple[Task, int]]) -> tuple[Task, int] | None:
        if self.error < self.enough:
            return None
        return min(remaining, key=lambda pair: abs(self._difficulty(pair[0]) - self.ability))

    def _update_state(self, task: Task, report: Mapping[str, Any]) -> None:
        right = report["status"] == "success" and all(verdict["right"] for verdict in report["eval"])
        self.seen.append((self._difficulty(task), right))
        for _ in range(20):  # Newton's method, with a prior that keeps it finite
            chances = [(1 / (1 + math.exp(self.steepness * (hard - self.ability))), good) for hard, good in self.seen]
            slope = self.steepness * sum(good - chance for chance, good in chances) - 0.01 * (self.ability - 10)
            curve = self.steepness**2 * sum(chance * (1 - chance) for chance, _ in chances) + 0.01
            self.ability += max(-2.0, min(2.0, slope / curve))
        self.error = 1 / math.sqrt(curve)

    @staticmethod
    def _difficulty(task: Task) -> float:
        return float(task.metadata["difficulty"])


def in_parallel() -> None:
    """Four at once, two repetitions each; reports come in the order of starting."""
    benchmark = SumBenchmark({"skill": 5}, n_task_repeats=2)
    reports = benchmark.run([sum_task(length) for length in range(1, 9)], max_workers=4)
    right = sum(report["eval"][0]["right"] for report in reports)
    print(f"{len(reports)} reports, {right} right")


def by_priority() -> None:
    """The queue decides what is started first."""
    starts = Starts()
    tasks = [sum_task(2), sum_task(3, priority=5), sum_task(4, priority=-1)]
    SumBenchmark({"skill": 5}, callbacks=[starts]).run(tasks, queue=PriorityQueue(tasks))
    print("started:", ", ".join(starts.order))


def with_limits() -> None:
    """What takes too long is reported, and the rest goes on."""
    slow = sum_task(2, timeout_seconds=0.1)
    slow.metadata["steps"] = 100_000
    for report in SumBenchmark({"skill": 5}).run([slow, sum_task(3)]):
        print(f"{report['task_id']}: {report['status']}")


def with_a_store(place: Path) -> None:
    """The second run finds what the first one did."""
    starts = Starts()
    benchmark = SumBenchmark({"skill": 5}, callbacks=[starts])
    benchmark.run([sum_task(1), sum_task(2)], store=place)
    reports = benchmark.run([sum_task(1), sum_task(2), sum_task(3)], store=place)
    print(f"{len(reports)} reports, {len(starts.order)} runs")


def adaptively() -> None:
    """A queue that learns finds the agent's limit without running everything."""
    queue = AbilityQueue([sum_task(length) for length in range(1, 41)])
    reports = SumBenchmark({"skill": 23}).run(queue=queue)
    print(f"ability {queue.ability:.1f} after {len(reports)} of {len(queue)} tasks")


if __name__ == "__main__":
    in_parallel()
    by_priority()
    with_limits()
    with tempfile.TemporaryDirectory() as folder:
        with_a_store(Path(folder) / "store")
    adaptively()
