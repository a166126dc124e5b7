"""RunnerOrchestrator among others: its limit, its conflicts, its clocks, crashes, and a directory out of order."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from s2_repository import clone, events, git, nothing_is_held, task
from s2_runners import Runner, leaves_when_awaited, runners
from stalls import longer, unstalled

from necrocode.agent_runner import (
    ParallelCoordinator,
    RunnerOrchestrator,
)
from necrocode.testing import wait_for

# ---- the limit


def agent_script(tmp_path: Path, state: Path) -> list[str]:
    """An agent that counts how many of its kind are at work with it. The first two go on when they have met, and four
    others wait."""
    script = tmp_path / "agent.py"
    script.write_text(
        "import os, pathlib, sys, time\n"
        f"here = pathlib.Path({str(tmp_path / 'at-work')!r})\n"
        "here.mkdir(exist_ok=True)\n"
        "mine = here / str(os.getpid())\n"
        "mine.touch()\n"
        f"met, queue = pathlib.Path({str(tmp_path / 'met')!r}), {str(state / 'queue')!r}\n"
        "until = time.monotonic() + 60\n"
        "while not met.exists() and time.monotonic() < until:\n"
        "    if len(os.listdir(here)) >= 2 and len(os.listdir(queue)) >= 4: met.touch()\n"
        "    time.sleep(0.01)\n"
        f"with open({str(tmp_path / 'seen')!r}, 'a') as seen: seen.write(f'{{len(os.listdir(here))}}\\n')\n"
        "time.sleep(0.15)\n"
        "mine.unlink()\n"
        "pathlib.Path('out.txt').write_text(sys.argv[1])\n"
    )
    return [sys.executable, str(script), "{task_id}"]


def test_six_runs_at_a_limit_of_two(repo, config, state, tmp_path):
    """S2-07, S2-09, S2-11, S2-21, S2-26: all succeed, never more than two at work, and they report it truthfully."""
    configuration = config(max_parallel_runners=2, agent=agent_script(tmp_path, state))
    slots = [clone(repo, f"slot-{number}") for number in range(6)]
    results: list = [None] * 6

    def run(number: int) -> None:
        description = task(slots[number], number, test_commands=[])
        results[number] = RunnerOrchestrator(configuration).run(description)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.error for result in results] == [None] * 6
    at_work = [int(line) for line in (tmp_path / "seen").read_text().split()]
    assert max(at_work) == 2
    assert all(result.concurrent_runners <= 2 for result in results)
    assert sum(result.waited_seconds > 0 for result in results) == 4
    assert nothing_is_held(state)


def test_it_waits_its_turn_and_says_how_long(repo, config, state):
    """S2-26, S2-27: behind a runner of another process."""
    with runners(1, state, max_parallel_runners=1) as (other,):
        assert other.call("register_runner", "other", "t", "s", "/tmp/other")
        leaves_when_awaited(other, "other", state)
        orchestrator = RunnerOrchestrator(config(max_parallel_runners=1))
        result = orchestrator.run(task(repo, test_commands=[]))
    assert result.success
    assert result.waited_seconds > 0
    assert orchestrator.last_metrics.wait_time_seconds == pytest.approx(result.waited_seconds, abs=0.01)


def test_a_full_limit_ends_in_a_refusal_never_in_one_too_many(repo, config, state):
    """S2-26: the wait has an end; the work was not begun."""
    with runners(1, state, max_parallel_runners=1) as (other,):
        assert other.call("register_runner", "other", "t", "s", "/tmp/other")
        orchestrator = RunnerOrchestrator(config(max_parallel_runners=1, capacity_timeout_seconds=0.1))
        result = orchestrator.run(task(repo))
        assert (result.success, result.error_kind) == (False, "limit")
        assert other.call("get_concurrent_count") == 1
    assert not (repo / "done.txt").exists()


def test_degrading_is_told(repo, config, state, caplog):
    """Decision 1: only when asked for, and then in the log, the result and the metrics; the work space is held."""
    with runners(1, state, max_parallel_runners=1) as (other,):
        assert other.call("register_runner", "other", "t", "s", "/tmp/other")
        configuration = config(max_parallel_runners=1, capacity_timeout_seconds=0.1, degrade=True)
        orchestrator = RunnerOrchestrator(configuration)
        seen = []
        orchestrator.task_executor.execute = lambda context, workspace: seen.append(other.call("get_status"))
        result = orchestrator.run(task(repo, test_commands=[]))
        assert other.call("get_concurrent_count") == 1
    assert result.success, result.error
    assert result.degraded
    assert (result.concurrent_runners, orchestrator.last_metrics.concurrent_runners) == (2, 2)
    assert orchestrator.last_metrics.degraded
    assert "without a slot" in caplog.text
    assert [one["workspace_path"] for one in seen[0]["without_slot"]] == [str(repo)]


def test_no_limit_means_no_coordinator(repo, config):
    """S2-24, S2-43."""
    assert RunnerOrchestrator(config()).parallel_coordinator is None
    assert isinstance(RunnerOrchestrator(config(max_parallel_runners=2)).parallel_coordinator, ParallelCoordinator)


# ---- conflicts


def test_a_taken_branch_refuses(repo, config, state):
    """S2-04, S2-28: before anything was changed; the conflict is in the metrics (S2-19)."""
    slot = clone(repo, "slot")
    holder = ParallelCoordinator(state)
    assert holder.register_runner("other", "t", "s", repo, branches=["feature/task-1"])
    orchestrator = RunnerOrchestrator(config())
    try:
        result = orchestrator.run(task(slot))
    finally:
        holder.unregister_runner("other")
    assert (result.success, result.error_kind) == (False, "branch")
    assert "other" in result.error
    assert git(slot, "symbolic-ref", "--short", "HEAD") == "main"
    assert orchestrator.last_metrics.resource_conflicts_detected == 1


def test_a_taken_workspace_refuses(repo, config, state):
    """S2-05, 24: two tasks in one work space."""
    holder = ParallelCoordinator(state)
    assert holder.register_runner("other", "t", "s", repo)
    try:
        result = RunnerOrchestrator(config()).run(task(repo))
    finally:
        holder.unregister_runner("other")
    assert (result.success, result.error_kind) == (False, "workspace")


def test_conflicts_may_be_waited_for(repo, config, state):
    """S2-54."""
    with runners(1, state) as (other,):
        assert other.call("register_runner", "other", "t", "s", str(repo))
        leaves_when_awaited(other, "other", state)
        result = RunnerOrchestrator(config(on_conflict="wait")).run(task(repo, test_commands=[]))
    assert result.success, result.error
    assert result.waited_seconds > 0


def test_declared_files_are_claimed(repo, config, state):
    """S2-25, S2-29: registered from the start, and what turns out to be changed as soon as it is known."""
    with runners(1, state) as (other,):
        seen = []
        orchestrator = RunnerOrchestrator(config())

        def execute(context, workspace):
            seen.extend(other.call("get_status")["runners"])
            (workspace.path / "surprise.py").write_text("")

        orchestrator.task_executor.execute = execute
        orchestrator.test_runner.commands = lambda context, path: seen.extend(other.call("get_status")["runners"])
        assert orchestrator.run(task(repo, files=["./main.py"])).success
    assert seen[0]["files"] == ["main.py"]
    assert seen[0]["branches"] == ["feature/task-1"]
    assert seen[1]["files"] == ["main.py", "surprise.py"]


# ---- time


def test_a_timeout_ends_the_whole_tree(repo, config, tmp_path):
    """The agent, its child in another session, and what it would have written later."""
    pids = tmp_path / "pids"
    script = f"setsid sleep 60 & echo $! >> {pids}; sleep 61 & echo $! >> {pids}; sleep 62"
    for number, clock in enumerate(longer(0.5)):
        pids.write_text("")
        started = time.monotonic()
        orchestrator = RunnerOrchestrator(config(agent=["sh", "-c", script]))
        result = orchestrator.run(task(repo, number, timeout_seconds=clock))
        assert (result.success, result.error_kind) == (False, "timeout")
        assert time.monotonic() - started < 20 + clock
        for pid in pids.read_text().split():
            wait_for(lambda pid=pid: not alive(int(pid)))
        if len(pids.read_text().split()) == 2:
            return
    pytest.fail("it never began in time")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_the_default_timeout_limits(repo, config):
    """S2-48: a task that sets none."""
    result = RunnerOrchestrator(config(agent=["sleep", "60"], default_timeout_seconds=0.3)).run(task(repo))
    assert result.error_kind == "timeout"


def test_python_that_does_not_end_in_time(repo, config, state):
    """The result comes at the deadline; its slot and work space stay held for as long as it really goes on."""
    end = threading.Event()
    orchestrator = RunnerOrchestrator(
        config(agent=lambda context, workspace: end.wait(60), grace_seconds=0.1, max_parallel_runners=1)
    )
    started = time.monotonic()
    result = orchestrator.run(task(repo, timeout_seconds=0.3))
    assert time.monotonic() - started < 20
    assert (result.success, result.error_kind) == (False, "timeout")
    assert orchestrator.parallel_coordinator.get_concurrent_count() == 1
    end.set()
    wait_for(lambda: orchestrator.parallel_coordinator.get_concurrent_count() == 0)
    wait_for(lambda: nothing_is_held(state))


def test_python_that_heeds_its_stop(repo, config, state):
    def agent(context, workspace):
        while not workspace.place.stop.is_set():
            time.sleep(0.005)

    result = RunnerOrchestrator(config(agent=agent, grace_seconds=10)).run(task(repo, timeout_seconds=0.2))
    assert result.error_kind == "timeout"
    assert nothing_is_held(state)


def test_stop_ends_a_run(repo, config, state):
    """The caller's wish, from any thread."""
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    result = RunnerOrchestrator(config(agent=["sleep", "60"])).run(task(repo), stop=stop)
    assert (result.success, result.error_kind) == (False, "stopped")
    assert nothing_is_held(state)


def test_it_beats_however_long_it_takes(repo, config, state):
    """S2-30: work much longer than the heartbeat timeout stays counted."""
    with runners(1, state) as (other,):
        for scene in unstalled(0.3):
            orchestrator = RunnerOrchestrator(config(max_parallel_runners=1, heartbeat_timeout_seconds=0.6))
            counts = []

            def execute(context, workspace, scene=scene, counts=counts):
                started = scene.step()
                while scene.step() - started < 1.5:
                    counts.append(other.call("get_concurrent_count"))

            orchestrator.task_executor.execute = execute
            with scene:
                assert orchestrator.run(task(repo, scene.turn, test_commands=[])).success
                assert set(counts) == {1}


def test_a_lost_lease_ends_the_work(repo, config, state):
    """S2-57: revoked while the agent runs: it is stopped, and nothing is committed."""
    orchestrator = RunnerOrchestrator(config(agent=["sleep", "60"], heartbeat_interval_seconds=0.05))
    ledger = ParallelCoordinator(state).ledger
    fencing = threading.Thread(target=lambda: wait_for(lambda: ledger.fence(orchestrator.runner_id)))
    fencing.start()
    result = orchestrator.run(task(repo))
    fencing.join()
    assert (result.success, result.error_kind) == (False, "lost")
    assert git(repo, "rev-parse", "main") == git(repo, "rev-parse", "HEAD")


def test_too_much_memory_ends_the_work(repo, config):
    """max_memory_mb is a limit, not a remark."""
    hungry = [sys.executable, "-c", "import time; held = bytearray(200 << 20); time.sleep(60)"]
    result = RunnerOrchestrator(config(agent=hungry, max_memory_mb=100)).run(task(repo, timeout_seconds=60))
    assert (result.success, result.error_kind) == (False, "memory")


# ---- crashes


def test_a_killed_orchestrator_is_succeeded_at_once(repo, config, state, tmp_path):
    """S2-40, S2-58: kill -9 in the middle of the work; the same task is taken up by another in the same slot."""
    script = tmp_path / "run.py"
    script.write_text(
        "import sys\n"
        "from necrocode.agent_runner import *\n"
        f"config = RunnerConfig(coordination_dir={str(state)!r}, max_parallel_runners=1, agent=['sleep', '1000'])\n"
        f"task = TaskContext(task_id='1', slot_path={str(repo)!r}, branch_name='feature/task-1')\n"
        "RunnerOrchestrator(config).run(task)\n"
    )
    environment = Runner.environment()
    doomed = subprocess.Popen([sys.executable, str(script)], env=environment)
    coordinator = ParallelCoordinator(state)
    wait_for(lambda: any(event["kind"] == "phase.started" and event["phase"] == "work" for event in started(state)))
    wait_for(lambda: agents(state))
    left_over = agents(state)
    doomed.kill()
    doomed.wait()
    # Its agent still lives and may write: until it has ended, its work space is held.
    assert coordinator.try_register("early", "t", "s", repo).reason in ("workspace", "limit")
    for pid in left_over:
        subprocess.run(["kill", "-9", str(pid)], check=False)
    result = RunnerOrchestrator(config(max_parallel_runners=1, on_conflict="wait")).run(task(repo, test_commands=[]))
    assert result.success, result.error


def started(state: Path) -> list[dict]:
    return events(state) if (state / "events").is_dir() else []


def agents(state: Path) -> list[int]:
    """Processes that carry the marker of a runner of this state directory."""
    found = []
    for record in (state / "runners").glob("*.json"):
        runner_id = json.loads(record.read_text())["runner_id"]
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"NECROCODE_LEASE={runner_id}".encode() in path.read_bytes():
                    found.append(int(path.parent.name))
            except OSError:
                continue
    return found


# ---- trouble with the coordination


def test_an_unusable_directory_does_not_break_the_limit(repo, config, tmp_path):
    """S2-44: with a limit nothing runs; with degrade it runs and says so; without a limit it runs."""
    file = tmp_path / "a-file"
    file.write_text("")
    refused = RunnerOrchestrator(config(coordination_dir=file / "below", max_parallel_runners=1)).run(task(repo))
    assert (refused.success, refused.error_kind) == (False, "state")
    assert str(file) in refused.error
    degraded = RunnerOrchestrator(config(coordination_dir=file / "below", max_parallel_runners=1, degrade=True))
    result = degraded.run(task(repo, test_commands=[]))
    assert result.success, result.error
    assert result.degraded
    free = RunnerOrchestrator(config(coordination_dir=file / "below")).run(task(repo, 2, test_commands=[]))
    assert free.success, free.error
    assert not free.degraded


def test_a_directory_that_fails_later(repo, config, state):
    """S2-44: found unusable only when registering: the same rules hold."""
    ParallelCoordinator(state)
    (state / "tmp").rmdir()
    (state / "tmp").write_text("not a folder")
    refused = RunnerOrchestrator(config(max_parallel_runners=1)).run(task(repo))
    assert (refused.success, refused.error_kind) == (False, "state")
    assert not (repo / "done.txt").exists()
    free = RunnerOrchestrator(config()).run(task(repo, test_commands=[]))
    assert free.success, free.error
    degraded = RunnerOrchestrator(config(max_parallel_runners=1, degrade=True)).run(task(repo, 2, test_commands=[]))
    assert degraded.success, degraded.error
    assert degraded.degraded


def test_terms_of_the_host_that_cannot_be_read(repo, config, state):
    """S2-44: the same rules hold for a broken config.json, by which nobody knows how many may run."""
    ParallelCoordinator(state)
    (state / "config.json").write_text("{broken")
    refused = RunnerOrchestrator(config(max_parallel_runners=2)).run(task(repo))
    assert (refused.success, refused.error_kind) == (False, "state")
    assert "config.json" in refused.error
    assert not (repo / "done.txt").exists()
    free = RunnerOrchestrator(config()).run(task(repo, test_commands=[]))
    assert (free.success, free.degraded) == (True, False), free.error
    degraded = RunnerOrchestrator(config(max_parallel_runners=2, degrade=True)).run(task(repo, 2, test_commands=[]))
    assert (degraded.success, degraded.degraded) == (True, True), degraded.error
