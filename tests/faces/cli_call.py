"""The command line as tests use it: `python -m necrocode` in processes of its own, on a state directory of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[2]
Fact = TypeVar("Fact")


def until(fact: Callable[[], Fact], within: float = 30.0) -> Fact:
    """The first true value of `fact()`."""
    deadline = time.monotonic() + within
    while not (value := fact()):
        assert time.monotonic() < deadline, "it did not become true"
        time.sleep(0.01)
    return value


CONFLICT = """
[[task]]
id = "left"
command = ["sh", "-c", "echo left > a.txt"]
[[task]]
id = "right"
command = ["sh", "-c", "echo right > a.txt"]
[[task]]
id = "both"
command = ["true"]
after = ["left", "right"]
[[task]]
id = "never"
command = ["true"]
after = ["both"]
"""
"""Tasks of which two do not go together, one that comes after both, and one after that."""


class Cli:
    """Calls necrocode in `where`, with `state` as its state directory."""

    def __init__(self, state: Path, where: Path) -> None:
        self.state, self.where = state, where
        self.started: list[subprocess.Popen[str]] = []

    def environment(self, **extra: str) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("GIT_", "NECROCODE_"))}
        kept = {key: value for key, value in kept.items() if key not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
        return {**kept, "PYTHONPATH": str(ROOT), "NECROCODE_STATE_DIR": str(self.state), **extra}

    def __call__(
        self, *args: str, stdin: str = "", where: Path | None = None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "necrocode", *args], cwd=where or self.where, env=self.environment(**env),
            input=stdin, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def json(self, *args: str, **options: Any) -> Any:
        done = self(*args, "--json", **options)
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    def start(self, *args: str, **env: str) -> subprocess.Popen[str]:
        """In the background, its streams as pipes; ended with the test."""
        self.started.append(
            subprocess.Popen(
                [sys.executable, "-m", "necrocode", *args], cwd=self.where, env=self.environment(**env), text=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
        return self.started[-1]

    def end(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.communicate()


@contextlib.contextmanager
def calls(state: Path, where: Path) -> Iterator[Cli]:
    cli = Cli(state, where)
    try:
        yield cli
    finally:
        cli.end()


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
