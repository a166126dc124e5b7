"""RunnerOrchestrator on real repositories, with real agents: every promise of S2 about a whole run."""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from s2_runners import Runner, runners

from necrocode.agent_runner import (
    ImplementationResult,
    ParallelCoordinator,
    RunnerConfig,
    RunnerOrchestrator,
    RunnerState,
    TaskContext,
)
from necrocode.testing import check, wait_for

WRITE = ["sh", "-c", 'printf "%s" "$1" > done.txt', "agent", "{prompt}"]


def git(repo: Path, *args: str) -> str:
    return subprocess.run(["git", *args], cwd=repo, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    made = tmp_path / "repo"
    made.mkdir()
    git(made, "init", "-q", "-b", "main")
    git(made, "config", "user.name", "Test")
    git(made, "config", "user.email", "test@example.org")
    (made / "main.py").write_text("print('hello')\n")
    git(made, "add", ".")
    git(made, "commit", "-qm", "first")
    return made


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def config(tmp_path: Path, state: Path):
    """A configuration with everything below tmp_path."""

    def make(**more) -> RunnerConfig:
        known = {
            "coordination_dir": state,
            "artifact_store_url": f"file://{tmp_path}/artifacts",
            "agent": WRITE,
            "grace_seconds": 0.2,
        }
        return RunnerConfig(**{**known, **more})

    return make


def task(repo: Path, number: int = 1, **more) -> TaskContext:
    known = {"spec_name": "spec", "title": f"Task {number}", "slot_path": repo, "branch_name": f"feature/task-{number}"}
    return TaskContext(**{"task_id": f"{number}", **known, **more})


def clone(repo: Path, name: str) -> Path:
    """Another slot of the same repository."""
    git(repo.parent, "clone", "-q", str(repo), name)
    return repo.parent / name


def events(state: Path) -> list[dict]:
    lines = [line for path in sorted((state / "events").iterdir()) for line in path.read_text().split("\n")]
    return [json.loads(line) for line in lines if line]


def nothing_is_held(state: Path) -> bool:
    return not list((state / "runners").iterdir()) and not list((state / "queue").iterdir()) and check(state)


# ---- the whole way


def test_the_documents_usage_example(repo, config, state):
    """S2-47: as printed, with an agent."""
    config = config(max_parallel_runners=3, default_timeout_seconds=1800)
    orchestrator = RunnerOrchestrator(config=config)
    result = orchestrator.run(task(repo, test_commands=[]))
    assert result.success, result.error
    assert result.concurrent_runners == 1
    assert result.workspace_path == repo
    assert nothing_is_held(state)


def test_the_work_is_on_its_branch(repo, config):
    """The agent got the prompt, its work is committed on the task's branch, and main is as it was."""
    main = git(repo, "rev-parse", "main")
    description = task(
        repo, description="Say $(hello); `ls`", acceptance_criteria=["done.txt exists"], test_commands=[]
    )
    result = RunnerOrchestrator(config()).run(description)
    assert result.success
    assert git(repo, "show", "feature/task-1:done.txt") == description.prompt
    assert git(repo, "log", "-1", "--format=%s", "feature/task-1") == "Task 1"
    assert result.commits == [git(repo, "rev-parse", "feature/task-1")]
    assert git(repo, "rev-parse", "main") == main
    assert result.impl_result
    assert result.impl_result.files_changed == ["done.txt"]
    assert "+++ b/done.txt" in result.impl_result.diff


def test_a_slot_is_never_removed(repo, config):
    """A `slot_path` is the work space: claimed, checked out, left where it is; also after a failure."""
    for agent in (WRITE, ["false"]):
        RunnerOrchestrator(config(agent=agent)).run(task(repo, test_commands=[]))
        assert (repo / "main.py").exists()
        assert git(repo, "symbolic-ref", "--short", "HEAD") == "feature/task-1"


def test_without_a_slot_a_work_tree_is_made(repo, config):
    """S2-02: each runner in its own work space; removed once its work is on the branch."""
    result = RunnerOrchestrator(config(repository_path=repo)).run(task(repo, slot_path=None, test_commands=[]))
    assert result.success, result.error
    assert git(repo, "show", "feature/task-1:done.txt")
    assert result.workspace_path != repo
    assert not result.workspace_path.exists()


def test_a_plain_directory_is_worked_in_without_a_branch(tmp_path, config):
    """No repository: the work is what lies there; a branch that cannot be is told."""
    place = tmp_path / "plain"
    place.mkdir()
    result = RunnerOrchestrator(config()).run(task(place, branch_name="", test_commands=[]))
    assert result.success, result.error
    assert (place / "done.txt").read_text() == "Task 1"
    refused = RunnerOrchestrator(config()).run(task(place, test_commands=[]))
    assert not refused.success
    assert "not in a git repository" in refused.error


def test_run_may_be_called_again(repo, config, state):
    """One orchestrator, three tasks, one after the other."""
    orchestrator = RunnerOrchestrator(config(max_parallel_runners=1))
    for number in (1, 2, 3):
        assert orchestrator.run(task(repo, number, test_commands=[])).success
    assert orchestrator.state is RunnerState.COMPLETED
    assert len({event["run_id"] for event in events(state) if event["kind"] == "attempt.finished"}) == 1


def test_a_description_may_be_a_mapping(repo, config):
    result = RunnerOrchestrator(config()).run({"task_id": "1", "slot_path": str(repo), "test_commands": []})
    assert result.success
    assert result.branch_name == "necrocode/1"


# ---- agents


def test_no_agent_is_a_failure_that_says_so(repo, config):
    """Never a pretended success."""
    result = RunnerOrchestrator(config(agent=None)).run(task(repo))
    assert (result.success, result.error_kind) == (False, "agent")
    assert "no agent is configured" in result.error


@pytest.mark.parametrize(
    ("agent", "kind", "word"),
    [(["no-such-agent-anywhere"], "not_found", "not found"), (["sh", "-c", "exit 3"], "work", "3")],
)
def test_a_failing_agent_fails_the_run(repo, config, state, agent, kind, word):
    """S2-31: unregistered on failure too."""
    result = RunnerOrchestrator(config(agent=agent)).run(task(repo))
    assert (result.success, result.error_kind) == (False, kind)
    assert word in result.error
    assert nothing_is_held(state)


def test_a_callable_agent(repo, config):
    """It gets the task and the work space, and returns what it did."""

    def agent(context: TaskContext, workspace) -> ImplementationResult:
        (workspace.path / "made.txt").write_text(context.title)
        return ImplementationResult(True, "", ["made.txt"], 0.1, usage={"tokens": 7})

    result = RunnerOrchestrator(config(agent=agent)).run(task(repo, test_commands=[]))
    assert result.success, result.error
    assert git(repo, "show", "feature/task-1:made.txt") == "Task 1"
    assert result.impl_result.usage == {"tokens": 7}


def test_the_executor_may_be_replaced(repo, config):
    """`orchestrator.task_executor.execute(task_context, workspace)` is public, without any agent configured."""
    orchestrator = RunnerOrchestrator(config(agent=None))

    def execute(context, workspace):
        (workspace.path / "mine.txt").write_text("mine")
        return ImplementationResult(success=True)

    orchestrator.task_executor.execute = execute
    result = orchestrator.run(task(repo, test_commands=[]))
    assert result.success, result.error
    assert git(repo, "show", "feature/task-1:mine.txt") == "mine"


@pytest.mark.parametrize("answer", [False, ImplementationResult(False, error="no"), "nonsense"])
def test_a_callable_that_says_no(repo, config, answer):
    result = RunnerOrchestrator(config(agent=lambda context, workspace: answer)).run(task(repo))
    assert not result.success
    assert git(repo, "rev-parse", "feature/task-1") == git(repo, "rev-parse", "main")


def test_a_callable_that_raises(repo, config, state):
    """S2-31: any exception of the work is a failed run, and everything is freed."""

    def agent(context, workspace):
        raise ZeroDivisionError("by zero")

    result = RunnerOrchestrator(config(agent=agent)).run(task(repo))
    assert result.error == "ZeroDivisionError: by zero"
    assert nothing_is_held(state)


def test_a_playbook_is_really_executed(repo, config, tmp_path):
    """Its steps run in the work space, with variables, conditions and retries."""
    playbook = tmp_path / "playbook.json"
    steps = [
        {"name": "write", "command": ["sh", "-c", 'echo "$1" > "$2"', "sh", "${title}", "${task_id}.txt"]},
        {"name": "never", "command": "touch never.txt", "condition": "complexity == high"},
        {"name": "always", "command": "touch always.txt", "condition": "complexity == 'medium'"},
        {"name": "may fail", "command": "false", "fail_fast": False},
    ]
    playbook.write_text(json.dumps({"name": "book", "steps": steps}))
    result = RunnerOrchestrator(config(agent=None)).run(task(repo, playbook_path=playbook, test_commands=[]))
    assert result.success, result.error
    assert result.impl_result.files_changed == ["1.txt", "always.txt"]
    assert git(repo, "show", "feature/task-1:1.txt") == "Task 1"


def test_a_failing_step_fails_the_run(repo, config, tmp_path):
    playbook = tmp_path / "playbook.toml"
    playbook.write_text('name = "book"\n[[steps]]\nname = "bad"\ncommand = "false"\n')
    result = RunnerOrchestrator(config(agent=playbook)).run(task(repo))
    assert not result.success
    assert "bad" in result.error


# ---- tests of the work


def test_tests_decide(repo, config):
    """A failing test command fails the run, and nothing is committed."""
    result = RunnerOrchestrator(config()).run(task(repo, test_commands=["true", "test -f missing", "true"]))
    assert (result.success, result.error_kind) == (False, "test")
    assert [one.success for one in result.test_result.test_results] == [True, False]
    assert git(repo, "rev-parse", "feature/task-1") == git(repo, "rev-parse", "main")


def test_without_fail_fast_all_tests_run(repo, config):
    result = RunnerOrchestrator(config()).run(task(repo, fail_fast=False, test_commands=["false", "sh -c 'echo seen'"]))
    assert not result.success
    assert [one.success for one in result.test_result.test_results] == [False, True]
    assert result.test_result.test_results[1].output == "seen\n"


def test_tests_are_detected(repo, config):
    """Without test commands the project's files say what its tests are."""
    (repo / "test_it.py").write_text("def test_it():\n    assert open('done.txt').read()\n")
    git(repo, "add", ".")
    git(repo, "commit", "-qm", "tests")
    result = RunnerOrchestrator(config()).run(task(repo))
    if result.test_result is not None:  # pytest may not be on PATH
        assert result.success, result.error
        assert result.test_result.test_results[0].command == "pytest -q"


def test_a_test_command_that_needs_a_shell_is_told(repo, config):
    result = RunnerOrchestrator(config()).run(task(repo, test_commands=["true && true"]))
    assert not result.success
    assert "no shell" in result.error


# ---- the limit


def agent_script(tmp_path: Path) -> list[str]:
    """An agent that counts how many of its kind are at work with it."""
    script = tmp_path / "agent.py"
    script.write_text(
        "import os, pathlib, sys, time\n"
        f"here = pathlib.Path({str(tmp_path / 'at-work')!r})\n"
        "here.mkdir(exist_ok=True)\n"
        "mine = here / str(os.getpid())\n"
        "mine.touch()\n"
        f"with open({str(tmp_path / 'seen')!r}, 'a') as seen: seen.write(f'{{len(os.listdir(here))}}\\n')\n"
        "time.sleep(0.15)\n"
        "mine.unlink()\n"
        "pathlib.Path('out.txt').write_text(sys.argv[1])\n"
    )
    return [sys.executable, str(script), "{task_id}"]


def test_six_runs_at_a_limit_of_two(repo, config, state, tmp_path):
    """S2-07, S2-11, S2-26, 21: all succeed, never more than two at work, and they report it truthfully."""
    configuration = config(max_parallel_runners=2, agent=agent_script(tmp_path))
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
    assert sum(result.waited_seconds > 0 for result in results) >= 3
    assert nothing_is_held(state)


def test_it_waits_its_turn_and_says_how_long(repo, config, state):
    """S2-26, S2-27: behind a runner of another process."""
    with runners(1, state, max_parallel_runners=1) as (other,):
        assert other.call("register_runner", "other", "t", "s", "/tmp/other")
        threading.Timer(0.3, other.call, ("unregister_runner", "other")).start()
        orchestrator = RunnerOrchestrator(config(max_parallel_runners=1))
        result = orchestrator.run(task(repo, test_commands=[]))
    assert result.success
    assert result.waited_seconds > 0.05
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
        threading.Timer(0.2, other.call, ("unregister_runner", "other")).start()
        result = RunnerOrchestrator(config(on_conflict="wait")).run(task(repo, test_commands=[]))
    assert result.success, result.error
    assert result.waited_seconds > 0


def test_declared_files_are_claimed(repo, config, state):
    """S2-29: from the start, and what turns out to be changed as soon as it is known."""
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
    started = time.monotonic()
    result = RunnerOrchestrator(config(agent=["sh", "-c", script])).run(task(repo, timeout_seconds=0.5))
    assert (result.success, result.error_kind) == (False, "timeout")
    assert time.monotonic() - started < 20
    assert len(pids.read_text().split()) == 2
    for pid in pids.read_text().split():
        wait_for(lambda pid=pid: not alive(int(pid)))


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


def test_python_that_heeds_its_stop(repo, config):
    def agent(context, workspace):
        while not workspace.place.stop.is_set():
            time.sleep(0.005)

    result = RunnerOrchestrator(config(agent=agent, grace_seconds=10)).run(task(repo, timeout_seconds=0.2))
    assert result.error_kind == "timeout"


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
        orchestrator = RunnerOrchestrator(config(max_parallel_runners=1, heartbeat_timeout_seconds=0.6))
        counts = []

        def execute(context, workspace):
            started = time.monotonic()
            while time.monotonic() - started < 1.5:
                counts.append(other.call("get_concurrent_count"))

        orchestrator.task_executor.execute = execute
        assert orchestrator.run(task(repo, test_commands=[])).success
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


# ---- what is left behind


def test_artifacts(repo, config, tmp_path):
    """Diff, log and tests under <store>/<spec>/<task>, with their sums."""
    result = RunnerOrchestrator(config()).run(task(repo, test_commands=["sh -c 'echo tested'"]))
    folder = tmp_path / "artifacts" / "spec" / "1"
    assert sorted(path.name for path in folder.iterdir()) == ["diff.diff", "log.log", "metadata.json", "test.json"]
    assert "done.txt" in (folder / "diff.diff").read_text()
    assert "tested" in (folder / "log.log").read_text()
    assert json.loads((folder / "test.json").read_text())["success"] is True
    metadata = json.loads((folder / "metadata.json").read_text())
    sums = {one["type"]: one["sha256"] for one in metadata["artifacts"]}
    assert sums["diff"] == hashlib.sha256((folder / "diff.diff").read_bytes()).hexdigest()
    assert {one.type for one in result.artifacts} == {"diff", "log", "test"}


def test_a_store_that_cannot_be_written_takes_nothing_back(repo, config, tmp_path):
    (tmp_path / "artifacts").write_text("a file")
    orchestrator = RunnerOrchestrator(config())
    result = orchestrator.run(task(repo, test_commands=[]))
    assert result.success
    assert result.artifacts == []
    assert orchestrator.last_metrics.errors == 1


def test_metrics_of_a_run(repo, config, tmp_path, capsys):
    """S2-21, S2-23, S2-32, S2-46: phases, changes, tests, artifacts, resource use; console and file."""
    configuration = config(max_parallel_runners=3, metrics_enabled=True, metrics_dir=tmp_path / "metrics")
    orchestrator = RunnerOrchestrator(configuration)
    result = orchestrator.run(task(repo, test_commands=["true"]))
    metrics = orchestrator.last_metrics
    assert list(metrics.phase_timings) == ["prepare", "implement", "test", "commit", "artifacts"]
    assert list(result.phases) == list(metrics.phase_timings)
    assert (metrics.files_changed, metrics.lines_added) == (1, 1)
    assert (metrics.tests_run, metrics.tests_passed, metrics.tests_failed) == (1, 1, 0)
    assert metrics.artifacts_uploaded == 3
    assert metrics.memory_mb > 0
    assert (metrics.concurrent_runners, metrics.wait_time_seconds, metrics.resource_conflicts_detected) == (1, 0.0, 0)
    told = capsys.readouterr().out
    for line in ("Parallel execution:", "Concurrent runners: 1", "Wait time: 0.00 s", "Resource conflicts: 0"):
        assert line in told
    (file,) = (tmp_path / "metrics").glob(f"metrics_{orchestrator.runner_id}_????????_??????.json")
    assert json.loads(file.read_text())["task_id"] == "1"


def test_metrics_of_a_failed_run(repo, config, tmp_path, capsys):
    """S2-33: reported all the same, with the error counted."""
    orchestrator = RunnerOrchestrator(config(agent=["false"], metrics_enabled=True))
    orchestrator.run(task(repo))
    assert orchestrator.last_metrics.errors == 1
    assert "1 errors" in capsys.readouterr().out


def test_state_is_kept_for_others(repo, config, tmp_path):
    """S2-08, S2-10: with the work space filled in, while running and after."""
    path = tmp_path / "state.json"
    orchestrator = RunnerOrchestrator(config(persist_state=True, state_file_path=path))
    seen = []
    orchestrator.task_executor.execute = lambda context, workspace: seen.append(orchestrator.load_state())
    assert orchestrator.run(task(repo, test_commands=[])).success
    assert (seen[0].state, seen[0].workspace_path, seen[0].metadata) == (RunnerState.RUNNING, repo, {"phase": "work"})
    after = orchestrator.load_state()
    assert (after.state, after.workspace_path, after.task_id) == (RunnerState.COMPLETED, repo, "1")
    orchestrator.clear_state()
    assert orchestrator.load_state() is None


def test_a_log_file(repo, config, tmp_path):
    """Only while running, as JSON lines."""
    path = tmp_path / "logs" / "run.log"
    RunnerOrchestrator(config(log_file=path)).run(task(repo, test_commands=[]))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert any("work" in line["message"] for line in lines)
    assert not [one for one in logging.getLogger("necrocode").handlers if isinstance(one, logging.FileHandler)]


# ---- push


def test_nothing_is_pushed_unasked(repo, config):
    remote = repo.parent / "remote.git"
    git(repo.parent, "init", "-q", "--bare", str(remote))
    git(repo, "remote", "add", "origin", str(remote))
    assert RunnerOrchestrator(config()).run(task(repo, test_commands=[])).push_result is None
    assert git(remote, "branch", "--list") == ""


def test_push_when_asked(repo, config):
    """The branch is on the remote, and the result says so."""
    remote = repo.parent / "remote.git"
    git(repo.parent, "init", "-q", "--bare", str(remote))
    git(repo, "remote", "add", "origin", str(remote))
    result = RunnerOrchestrator(config(push=True)).run(task(repo, test_commands=[]))
    assert result.success, result.error
    assert result.push_result.success
    assert git(remote, "rev-parse", "feature/task-1") == result.commits[-1] == result.push_result.commit_hash


def test_a_push_that_fails_is_tried_again_and_told(repo, config):
    """S2-33: retries are counted; the work stays on its branch."""
    retry = {"max_retries": 2, "initial_delay_seconds": 0.01}
    orchestrator = RunnerOrchestrator(config(push=True, git_retry_config=retry))
    result = orchestrator.run(task(repo, test_commands=[]))
    assert (result.success, result.error_kind) == (False, "push")
    assert (result.push_result.success, result.push_result.retry_count) == (False, 2)
    assert orchestrator.last_metrics.retries == 2
    assert git(repo, "show", "feature/task-1:done.txt")
