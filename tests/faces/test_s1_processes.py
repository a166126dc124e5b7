"""S1 across processes: locks and limits of the machine, and a status that others can read."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from loops import on_loop, until

import necrocode
from necrocode.agent_runner import ParallelCoordinator
from necrocode.task_calls import AgentTask, ParallelTaskManager
from necrocode.testing import check, wait_for

OTHER = Path(__file__).with_name("s1_process.py")
ENV = {**os.environ, "PYTHONPATH": str(Path(necrocode.__file__).parents[1])}


@pytest.fixture
def other(state_root, tmp_path):
    """Starts other processes; ends what is left of them."""
    started = []

    def start(limit=0, count=1, resource="-"):
        argv = [sys.executable, OTHER, state_root, str(limit), str(count), resource, tmp_path]
        started.append(subprocess.Popen(argv, env=ENV, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stderr.close()


def most_at_once(path):
    now = most = 0
    for sign in path.read_text():
        now += 1 if sign == "+" else -1
        most = max(most, now)
    return most


def ended_well(process):
    assert process.wait(60) == 0, process.stderr.read()


def test_s1_48_locks_hold_between_processes(other, state_root, tmp_path):
    processes = [other(count=4, resource="database_config") for _ in range(3)]
    for process in processes:
        ended_well(process)
    assert len((tmp_path / "log").read_text()) == 24 and most_at_once(tmp_path / "log") == 1
    assert check(state_root)


def test_s1_48_the_machines_limit_holds_between_processes(other, state_root, tmp_path):
    processes = [other(limit=2, count=5) for _ in range(3)]
    for process in processes:
        ended_well(process)
    assert len((tmp_path / "log").read_text()) == 30 and most_at_once(tmp_path / "log") <= 2
    assert check(state_root)


def test_s1_14_and_51_the_status_is_read_from_another_process(other, state_root, tmp_path):
    (tmp_path / "hold").touch()
    process = other(count=2, resource="database_config")
    log = tmp_path / "log"
    wait_for(lambda: log.exists() and log.read_text(), within=60)
    asked = [sys.executable, "-m", "necrocode", "--state-dir", str(state_root), "status", "--json"]
    done = subprocess.run(asked, env=ENV, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout)
    (runner,) = status["runners"]
    assert runner["pid"] == process.pid and runner["runner_id"].startswith("agent-")
    assert "database_config" in json.dumps(runner["claims"]) and runner["spec_name"] == f"workflow-{process.pid}"
    (tmp_path / "hold").unlink()
    ended_well(process)
    done = subprocess.run(asked, env=ENV, capture_output=True, text=True, timeout=60)
    status = json.loads(done.stdout)
    assert status["runners"] == [] and [event["status"] for event in status["finished"]] == ["done", "done"]


@on_loop
async def test_s1_08_what_a_killed_process_held_is_free(other, state_root, tmp_path):
    (tmp_path / "hold").touch()
    process, log = other(resource="database_config"), tmp_path / "log"
    await until(lambda: log.exists() and log.read_text(), within=60)

    async def work(task, progress):
        return "mine now"

    manager = ParallelTaskManager(executor=work, coordinator=ParallelCoordinator(state_root))
    task = AgentTask("a", "t", "d", {"resources": ["database_config"]})

    waiting = asyncio.create_task(manager.execute_parallel_tasks([task]))
    await until(lambda: list((state_root / "queue").iterdir()))
    process.kill()
    (result,) = await waiting
    assert result.data == "mine now"


@on_loop
async def test_a_waiter_for_another_process_can_be_cancelled(other, state_root, tmp_path):

    (tmp_path / "hold").touch()
    process, log = other(resource="database_config"), tmp_path / "log"
    await until(lambda: log.exists() and log.read_text(), within=60)
    manager = ParallelTaskManager(coordinator=str(state_root), executor=lambda task, progress: 1)
    task = AgentTask("a", "t", "d", {"resources": ["database_config"]})
    waiting = asyncio.create_task(manager.execute_parallel_tasks([task]))
    await until(lambda: list((state_root / "queue").iterdir()))
    assert await manager.cancel() == 1
    assert (await waiting)[0].status == "cancelled" and not list((state_root / "queue").iterdir())
    (tmp_path / "hold").unlink()
    await asyncio.to_thread(ended_well, process)
    assert check(state_root)


@on_loop
async def test_s1_09_a_timeout_for_what_another_process_holds(other, state_root, tmp_path):
    (tmp_path / "hold").touch()
    process, log = other(resource="database_config"), tmp_path / "log"
    await until(lambda: log.exists() and log.read_text(), within=60)
    manager = ParallelTaskManager(coordinator=str(state_root), executor=lambda task, progress: 1, resource_timeout=0.1)
    (result,) = await manager.execute_parallel_tasks([AgentTask("a", "t", "d", {"resources": ["database_config"]})])
    assert "timeout waiting for resource" in result.error_message and str(process.pid) in result.error_message
