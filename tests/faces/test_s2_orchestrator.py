"""RunnerOrchestrator on real repositories: the whole way, with every kind of agent, judged by real tests."""

from __future__ import annotations

import json

import pytest
from s2_repository import WRITE, events, git, nothing_is_held, task

from necrocode.agent_runner import (
    ImplementationResult,
    RunnerOrchestrator,
    RunnerState,
    TaskContext,
)

# ---- the whole way


def test_the_documents_usage_example(repo, config, state):
    """S2-47: as printed, with an agent. S2-09: the result tells where, and beside how many."""
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


def test_usage_that_is_no_number_fails_no_work(repo, config):
    """S2-46: what can be counted is; the rest is the reader's."""
    usage = {"tokens": 3, "cost": 0.5, "model": "m1", "tools": ["sh"], "cache": None}
    orchestrator = RunnerOrchestrator(config(agent=lambda context, workspace: ImplementationResult(True, usage=usage)))
    result = orchestrator.run(task(repo, test_commands=[]))
    assert result.success, result.error
    assert result.impl_result.usage == usage


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


# ---- what it changed is claimed


def make_odd_names(context, workspace) -> None:
    """An executor that leaves what is easily taken for something else."""
    for name, target in {"self": ".", "up": "..", "out": "/etc/passwd", "round": "round"}.items():
        (workspace.path / name).symlink_to(target)
    for name in ("a*b", "[id].tsx", "Upper.py"):
        (workspace.path / name).touch()


@pytest.mark.parametrize(("folder", "ignorecase"), [(".", "false"), ("sub", "false"), (".", "true")])
def test_a_changed_link_is_claimed_not_what_it_leads_to(repo, config, folder, ignorecase):
    """S2-29: names as git tells them, from the root on: no link is followed, and no name is a pattern."""
    git(repo, "config", "core.ignorecase", ignorecase)
    (repo / folder).mkdir(exist_ok=True)
    orchestrator = RunnerOrchestrator(config(max_parallel_runners=2))
    seen = []
    orchestrator.task_executor.execute = make_odd_names
    orchestrator.test_runner.commands = lambda *_: seen.extend(orchestrator.parallel_coordinator.get_runners())
    result = orchestrator.run(task(repo / folder))
    assert result.success, result.error
    upper = "Upper.py" if ignorecase == "false" else "upper.py"
    names = [upper, "[[]id].tsx", "a[*]b", "out", "round", "self", "up"]
    assert seen[0].files_locked == {name if folder == "." else f"{folder}/{name}" for name in names}
