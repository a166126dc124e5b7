"""Tests that are coroutines: each on a loop of its own, and nothing of it may be left running."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from necrocode.testing import wait_for

_OURS = ("parallel-", "command-", "task-", "heartbeat-")


def on_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run the test with asyncio.run; fails when it leaves tasks or threads of ours behind."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(_alone(test(*args, **kwargs)))
        wait_for(lambda: not our_threads(), told=our_threads)  # they told their result before they were gone

    return run


async def _alone(test: Coroutine[Any, Any, None]) -> None:
    await test
    await asyncio.sleep(0)  # the loop itself closes a generator that was left, in a task
    left = [task for task in asyncio.all_tasks() - {asyncio.current_task()} if not task.done()]
    assert not left, left


def our_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(_OURS)]


class Gauge:
    """How many are inside at once, and the most there ever were."""

    def __init__(self) -> None:
        self.now = self.most = self.entered = 0

    def __enter__(self) -> None:
        self.now += 1
        self.entered += 1
        self.most = max(self.most, self.now)

    def __exit__(self, *error: object) -> None:
        self.now -= 1


async def until(fact: Callable[[], Any], within: float = 10.0) -> None:
    """Let the loop go on until the fact is true."""
    end = time.monotonic() + within
    while not fact():
        assert time.monotonic() < end, fact
        await asyncio.sleep(0.002)


def pid_in(path: Path) -> int:
    """The process id in a file, 0 while there is none."""
    return int(path.read_text() or 0) if os.path.exists(path) else 0
