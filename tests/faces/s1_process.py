"""Another process with a layer of its own: `s1_process.py STATE LIMIT COUNT RESOURCE FOLDER`.

Each of its tasks notes, in one write, when it is inside (`+`) and when it leaves (`-`)."""

from __future__ import annotations

import asyncio
import os
import sys
import time

from necrocode.agent_runner import ParallelCoordinator
from necrocode.task_calls import MCPIntegrationLayer, create_task_call


def note(path: str, sign: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, sign.encode())
    os.close(fd)


async def main(state: str, limit: str, count: str, resource: str, folder: str) -> None:
    def work(task, progress):
        note(f"{folder}/log", "+")
        time.sleep(0.01)
        while os.path.exists(f"{folder}/hold"):
            time.sleep(0.01)
        note(f"{folder}/log", "-")

    coordinator = ParallelCoordinator(state, max_parallel_runners=int(limit) or None)
    layer = MCPIntegrationLayer(f"workflow-{os.getpid()}", executor=work, coordinator=coordinator)
    context = {"resources": [resource]} if resource != "-" else {}
    results = await layer.execute_multiple_task_calls(
        [create_task_call(f"agent-{number}", "t", "across processes", context) for number in range(int(count))]
    )
    assert all(result.success for result in results), results


asyncio.run(main(*sys.argv[1:]))
