"""What a run of the RunnerOrchestrator leaves behind: artifacts, metrics, state, logs, a pushed branch."""

from __future__ import annotations

import hashlib
import json
import logging

from s2_repository import clone, git, task

from necrocode.agent_runner import (
    RunnerOrchestrator,
    RunnerState,
)

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


def test_a_push_overwrites_nothing(repo, config):
    """Somebody else's commits on the remote's branch stay; the push fails instead."""
    remote = repo.parent / "remote.git"
    git(repo.parent, "clone", "-q", "--bare", str(repo), str(remote))
    other = clone(remote, "other")
    settled = ["-c", "user.name=O", "-c", "user.email=o@e.org", "commit", "-q", "--allow-empty", "-m", "theirs"]
    git(other, "checkout", "-q", "-b", "feature/task-1")
    git(other, *settled)
    git(other, "push", "-q", "origin", "feature/task-1")
    theirs = git(remote, "rev-parse", "feature/task-1")
    git(repo, "remote", "add", "origin", str(remote))
    retry = {"max_retries": 0}
    result = RunnerOrchestrator(config(push=True, git_retry_config=retry)).run(task(repo, test_commands=[]))
    assert (result.success, result.error_kind) == (False, "push")
    assert git(remote, "rev-parse", "feature/task-1") == theirs


def test_metrics_are_of_one_run(repo, config):
    """A second run of the same orchestrator counts its own work only."""
    orchestrator = RunnerOrchestrator(config())
    for number in (1, 2):
        orchestrator.run(task(repo, number, description=f"{number}", test_commands=["true"]))
        assert (orchestrator.last_metrics.files_changed, orchestrator.last_metrics.tests_run) == (1, 1)


def test_a_push_that_fails_is_tried_again_and_told(repo, config):
    """S2-33: retries are counted; the work stays on its branch."""
    retry = {"max_retries": 2, "initial_delay_seconds": 0.01}
    orchestrator = RunnerOrchestrator(config(push=True, git_retry_config=retry))
    result = orchestrator.run(task(repo, test_commands=[]))
    assert (result.success, result.error_kind) == (False, "push")
    assert (result.push_result.success, result.push_result.retry_count) == (False, 2)
    assert orchestrator.last_metrics.retries == 2
    assert git(repo, "show", "feature/task-1:done.txt")
