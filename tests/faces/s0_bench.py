"""A small benchmark whose tasks say what is to happen to them."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from necrocode.benchmark import AgentError, Benchmark, TaskEnvironmentError, UserError, check_timeout


class Agent:
    def __init__(self, name):
        self.name, self.said = name, []

    def run(self, query):
        self.said.append(query)
        return f"answer to {query}"

    def gather_traces(self):
        return {"said": list(self.said)}

    def gather_config(self):
        return {"name": self.name}


class Environment:
    def __init__(self, task):
        self.task = task

    def gather_traces(self):
        return {"of": self.task.id}


ERRORS = {
    "agent": AgentError, "environment": TaskEnvironmentError, "user": UserError, "value": ValueError,
    "timeout": TimeoutError, "memory": MemoryError,
}  # fmt: skip


class Echo(Benchmark):
    """`environment_data` of a task: raise, sleep, work (listens), fail_times, setup_fails, evaluation_fails, log."""

    def __init__(self, *args, progress_bar=False, **kwargs):
        super().__init__(*args, progress_bar=progress_bar, **kwargs)

    def setup_environment(self, agent_data, task):
        if task.environment_data.get("setup_fails"):
            raise RuntimeError("no set-up")
        return Environment(task)

    def setup_agents(self, agent_data, environment, task, user):
        agent = Agent(f"agent of {task.id}")
        return [agent], {"main": agent}

    def setup_evaluators(self, environment, task, agents, user):
        return [lambda final_answer, traces: {"right": final_answer == f"answer to {task.query}"}]

    def run_agents(self, agents, task, environment, query):
        told = task.environment_data
        if "log" in told:
            with open(told["log"], "a") as file:
                file.write(f"{task.id} {os.getpid()}\n")
        if told.get("die"):
            os._exit(3)
        end = time.monotonic() + told.get("work", 0)
        while time.monotonic() < end:
            check_timeout()
            time.sleep(0.002)
        if "sleep" in told:
            time.sleep(told["sleep"])
        if "hold" in told:
            until = time.monotonic() + 60
            while not Path(told["hold"]).exists() and time.monotonic() < until:
                time.sleep(0.005)
        if "raise" in told:
            raise ERRORS[told["raise"]](f"{task.id} was to fail")
        return agents[0].run(query)

    def evaluate(self, evaluators, agents, final_answer, traces):
        if traces["environment"]["of"] == "evaluation":
            raise RuntimeError("cannot judge")
        return super().evaluate(evaluators, agents, final_answer, traces)


class Plain(Echo):
    """For other processes: evaluators that can be pickled."""

    def setup_evaluators(self, environment, task, agents, user):
        return []


class Gauged(Echo):
    """Measures how many run at once, and in which order they start."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.lock, self.now, self.most, self.order = threading.Lock(), 0, 0, []

    def run_agents(self, agents, task, environment, query):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.order.append(task.id)
        time.sleep(0.01)
        with self.lock:
            self.now -= 1
        return super().run_agents(agents, task, environment, query)


def run_with_store(place, tasks):
    """In a process of its own."""
    return Plain().run(tasks, store=place, max_workers=2)
