"""Real runner processes for the tests of the S2 face."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import necrocode
from necrocode.agent_runner import ParallelCoordinator
from necrocode.testing import wait_for

WORKER = Path(__file__).with_name("s2_worker.py")


class Runner:
    """One process with a ParallelCoordinator of its own; `ask` starts a call, `answer` waits for its result."""

    def __init__(self, state: Path, env: dict[str, str] | None = None, **settings: Any) -> None:
        arguments = json.dumps({"coordination_dir": str(state), **settings})
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self.environment(env),
        )  # fmt: skip

    @staticmethod
    def environment(more: dict[str, str] | None = None) -> dict[str, str]:
        """That of a process that can import the package under test."""
        return {**os.environ, "PYTHONPATH": str(Path(necrocode.__file__).parents[1]), **(more or {})}

    def ask(self, do: str, *args: Any, **kwargs: Any) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"do": do, "args": args, "kwargs": kwargs}, default=str) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        assert self.process.stdout
        answer = json.loads(self.process.stdout.readline())
        if "error" in answer:
            raise Told(answer["error"], answer["text"])
        return answer["value"]

    def call(self, do: str, *args: Any, **kwargs: Any) -> Any:
        self.ask(do, *args, **kwargs)
        return self.answer()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


class Told(Exception):
    """What a call in another process raised."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


@contextmanager
def runners(count: int, state: Path, **settings: Any) -> Iterator[list[Runner]]:
    """So many processes on one state directory, all ready; ended afterwards."""
    started = [Runner(state, **settings) for _ in range(count)]
    try:
        for one in started:
            one.call("get_concurrent_count")
        yield started
    finally:
        for one in started:
            one.end()


def race(contenders: list[Runner], calls: list[tuple[Any, ...]]) -> list[Any]:
    """Each process makes its call at once; the answers in their order."""
    for one, call in zip(contenders, calls, strict=True):
        one.ask(*call)
    return [one.answer() for one in contenders]


def let_go(coordinator: ParallelCoordinator) -> None:
    """Free what the test left registered: leases belong to this process, not to the test."""
    logging.getLogger("necrocode").setLevel(logging.ERROR)
    for seen in coordinator.ledger.snapshot().runners:
        coordinator.unregister_runner(seen.record.runner_id)
    logging.getLogger("necrocode").setLevel(logging.NOTSET)


def add(coordinator: ParallelCoordinator, number: int, **more) -> bool:
    return coordinator.register_runner(
        f"runner-{number}", f"task-{number}", "spec", Path(f"/tmp/workspace{number}"), **more
    )


def leaves_when_awaited(other: Runner, runner_id: str, state: Path) -> None:
    """That runner of another process goes as soon as somebody waits here; no sooner, however slow this machine is."""

    def watch() -> None:
        wait_for(lambda: os.listdir(state / "queue"), 60)
        other.ask("unregister_runner", runner_id)

    threading.Thread(target=watch).start()
