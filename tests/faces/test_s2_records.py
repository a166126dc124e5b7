"""The records, settings, metrics and playbooks of S2, each by itself."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from s2_runners import Runner

import necrocode.agent_runner as face
from necrocode.agent_runner import (
    ExecutionMetrics,
    MetricsCollector,
    MetricsReporter,
    Playbook,
    PlaybookEngine,
    PlaybookExecutionError,
    PlaybookStep,
    ResourceConflictError,
    ResourceLimitError,
    RetryConfig,
    RunnerConfig,
    RunnerError,
    RunnerState,
    RunnerStateSnapshot,
    TaskContext,
    TaskContextValidationError,
)
from necrocode.errors import ConfigError, NecrocodeError, StateUnreadable
from necrocode.testing import wait_for

# ---- exports


def test_exports():
    """S2-35: the document's names, here and at the top; TimeoutError only by name."""
    names = {
        "ParallelCoordinator", "ParallelExecutionContext", "RunnerInstance", "ResourceConflictError",
        "ResourceLimitError", "PlaybookExecutionError", "RunnerOrchestrator", "RunnerConfig", "TaskContext",
    }  # fmt: skip
    assert names <= set(face.__all__)
    assert "TimeoutError" not in face.__all__
    assert issubclass(face.TimeoutError, TimeoutError)
    for name in face.__all__:
        assert getattr(face, name) is getattr(__import__("necrocode"), name), name
    with pytest.raises(AttributeError):
        __import__("necrocode").TimeoutError


def test_the_documents_modules_exist():
    """Its files under the names it gives them."""
    from necrocode.agent_runner.config import RunnerConfig as config
    from necrocode.agent_runner.exceptions import ResourceConflictError as conflict
    from necrocode.agent_runner.metrics import MetricsCollector as collector
    from necrocode.agent_runner.models import RunnerInstance as instance
    from necrocode.agent_runner.parallel_coordinator import ParallelCoordinator as coordinator
    from necrocode.agent_runner.parallel_coordinator import ParallelExecutionContext as context
    from necrocode.agent_runner.runner_orchestrator import RunnerOrchestrator as orchestrator

    for found in (config, conflict, collector, instance, coordinator, context, orchestrator):
        assert getattr(face, found.__name__) is found


def test_importing_costs_next_to_nothing():
    """Neither pydantic nor psutil nor threads of work until a name is used."""
    script = (
        "import sys, necrocode, necrocode.agent_runner\n"
        "print([name for name in ('pydantic', 'psutil', 'filelock', 'subprocess', 'asyncio') if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", script], env=Runner.environment(), capture_output=True, text=True)
    assert said.stdout.strip() == "[]", said.stderr


def test_one_error_to_catch():
    """S2-20: RunnerError catches all; limit and conflict are RuntimeErrors too."""
    assert RunnerError is NecrocodeError
    for name in face.__all__:
        if name.endswith("Error"):
            assert issubclass(getattr(face, name), RunnerError), name
    assert issubclass(ResourceLimitError, RuntimeError)
    assert issubclass(ResourceConflictError, RuntimeError)


# ---- settings


def test_the_documents_settings():
    """S2-34, S2-42, S2-47: names and defaults."""
    config = RunnerConfig(max_parallel_runners=3, default_timeout_seconds=1800)
    assert config.max_parallel_runners == 3
    assert (RunnerConfig().default_timeout_seconds, RunnerConfig().heartbeat_timeout_seconds) == (1800, 300)
    assert RunnerConfig().max_parallel_runners is None
    config.validate()
    assert RunnerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"max_parallel_runners": 0}, "max_parallel_runners"),
        ({"max_parallel_runners": -1}, "max_parallel_runners"),
        ({"max_parallel_runners": True}, "max_parallel_runners"),
        ({"max_parallel_runners": "3"}, "max_parallel_runners"),
        ({"max_parallel_runners": 2.5}, "max_parallel_runners"),
        ({"max_paralel_runners": 3}, "did you mean 'max_parallel_runners'"),
        ({"execution_mode": "docker"}, "processes of this machine"),
        ({"docker_image": "x"}, "no meaning here"),
        ({"default_timeout_seconds": 0}, "default_timeout_seconds"),
        ({"default_timeout_seconds": math.inf}, "default_timeout_seconds"),
        ({"heartbeat_timeout_seconds": math.nan}, "heartbeat_timeout_seconds"),
        ({"artifact_store_url": "s3://bucket"}, "file:///"),
        ({"on_conflict": "steal"}, "on_conflict"),
        ({"agent": 7}, "agent"),
        ({"agent": "one | two"}, "no shell"),
        ({"agent": []}, "names no program"),
        ({"log_level": "LOUD"}, "DEBUG"),
    ],
)
def test_settings_that_cannot_be_meant(wrong, told):
    with pytest.raises(ConfigError, match=told):
        RunnerConfig(**wrong)


def test_a_setting_is_checked_when_it_is_changed_too():
    config = RunnerConfig()
    with pytest.raises(ConfigError, match="max_parallel_runners"):
        config.max_parallel_runners = 0
    with pytest.raises(ConfigError, match="does not exist"):
        RunnerConfig(default_playbook_path="/no/such/book.yaml").validate()


PATHS = ["default_playbook_path", "coordination_dir", "repository_path", "log_file", "metrics_dir", "state_file_path"]


@pytest.mark.parametrize("field", PATHS)
def test_paths_are_those_of_the_moment_and_the_user(tmp_path, monkeypatch, field):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    config = RunnerConfig(**{field: "~/there"})
    assert getattr(config, field) == tmp_path / "home" / "there"
    setattr(config, field, "below/../here")
    assert getattr(config, field) == tmp_path / "here"
    assert RunnerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert MetricsReporter("~/metrics").output_dir == tmp_path / "home" / "metrics"


def test_the_state_is_found_from_elsewhere(tmp_path, monkeypatch):
    """S2-10: with a coordination directory that was given relative, after the process has gone elsewhere."""
    monkeypatch.chdir(tmp_path)
    orchestrator = face.RunnerOrchestrator(RunnerConfig(coordination_dir="state", persist_state=True, agent=["true"]))
    (tmp_path / "work").mkdir()
    assert orchestrator.run(TaskContext(task_id="1", slot_path=tmp_path / "work", test_commands=[])).success
    monkeypatch.chdir("/")
    assert orchestrator.load_state().state is RunnerState.COMPLETED


def test_retry_delays():
    """min(initial * base**n, max)."""
    assert [RetryConfig().get_delay(n) for n in (0, 1, 2, 10, 10_000)] == [1.0, 2.0, 4.0, 60.0, 60.0]


# ---- records


def test_task_context_round_trip():
    context = TaskContext(task_id="1.2", spec_name="s", slot_path="/tmp/slot", acceptance_criteria=["it works"])
    assert TaskContext.from_dict(json.loads(json.dumps(context.to_dict()))) == context
    assert context.slot_path == Path("/tmp/slot")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({}, "task_id is missing"),
        ({"task_id": "../evil"}, "cannot be an id"),
        ({"task_id": "1", "tittle": "x"}, "did you mean 'title'"),
        ({"task_id": "1", "timeout_seconds": -1}, "timeout_seconds"),
        ({"task_id": "1", "priority": 50}, "priority"),
    ],
)
def test_task_contexts_that_cannot_be_meant(wrong, told):
    with pytest.raises(TaskContextValidationError, match=told):
        TaskContext(**wrong)


def test_snapshot_round_trip():
    """S2-08: with its work space; UTC."""
    now = datetime.now(UTC)
    snapshot = RunnerStateSnapshot(
        "r", RunnerState.RUNNING, "t", "s", now, now, {"phase": "work"}, workspace_path=Path("/tmp/w")
    )
    assert RunnerStateSnapshot.from_json(snapshot.to_json()) == snapshot


def test_a_broken_state_file_is_told(tmp_path):
    orchestrator = face.RunnerOrchestrator(RunnerConfig(state_file_path=tmp_path / "state.json", persist_state=True))
    for text in ("", "{", "[]", '{"state": "dancing"}'):
        (tmp_path / "state.json").write_text(text)
        with pytest.raises(StateUnreadable):
            orchestrator.load_state()
        assert (tmp_path / "state.json").read_text() == text


# ---- metrics


def test_the_collector_folds_what_it_is_told():
    """S2-19, S2-21, S2-22, S2-32, S2-33: waits add up, conflicts and errors count, phases are timed."""
    collector = MetricsCollector("runner-1", "task-1", "spec")
    collector.start_phase("implement")
    collector.end_phase("implement")
    collector.end_phase("never begun")
    collector.sample_resources()
    collector.record_implementation(3, lines_added=10, lines_removed=4)
    collector.record_tests(5, 4, 1)
    collector.record_artifacts(2, 1000)
    collector.record_error()
    collector.record_retry()
    collector.record_retry()
    collector.record_concurrent_runners(3)
    collector.record_wait_time(1.5)
    collector.record_wait_time(2.0)
    collector.record_resource_conflict()
    collector.record_resource_conflict()
    metrics = collector.finalize()
    assert (metrics.runner_id, metrics.task_id, metrics.spec_name) == ("runner-1", "task-1", "spec")
    assert (metrics.concurrent_runners, metrics.wait_time_seconds, metrics.resource_conflicts_detected) == (3, 3.5, 2)
    assert (metrics.files_changed, metrics.lines_added, metrics.lines_removed) == (3, 10, 4)
    assert (metrics.tests_run, metrics.tests_passed, metrics.tests_failed) == (5, 4, 1)
    assert (metrics.artifacts_uploaded, metrics.artifacts_size_bytes) == (2, 1000)
    assert (metrics.errors, metrics.retries) == (1, 2)
    assert list(metrics.phase_timings) == ["implement"]
    assert metrics.memory_mb > 1
    assert collector.finalize() == metrics


def test_the_collector_counts_from_its_making():
    """S2-32: also the time in which it was told nothing."""
    began = time.monotonic()
    collector = MetricsCollector("runner-1", "task-1", "spec")
    made = time.monotonic()
    wait_for(lambda: time.monotonic() - made > 0.05)
    first = collector.finalize()
    assert 0.05 < first.total_duration_seconds < time.monotonic() - began
    assert first.start_time < first.end_time
    collector.record_error()
    later = collector.finalize()
    assert later.start_time == first.start_time
    assert later.total_duration_seconds > first.total_duration_seconds
    assert collector.finalize() == later


def test_the_report(tmp_path, capsys):
    """S2-23: a parallel section with the three numbers, and a file that never hides another."""
    metrics = ExecutionMetrics("runner-1", "task-1", "spec", concurrent_runners=2, wait_time_seconds=1.25)
    metrics.end_time = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    reporter = MetricsReporter(tmp_path / "metrics")
    first, second = reporter.report(metrics), reporter.report(metrics)
    assert first.name == "metrics_runner-1_20260102_030405.json"
    assert first != second
    assert json.loads(first.read_text())["wait_time_seconds"] == 1.25
    assert json.loads(first.read_text())["end_time"] == "2026-01-02T03:04:05+00:00"
    reporter.report_summary([metrics, metrics])
    told = capsys.readouterr().out
    assert "Concurrent runners: 2" in told
    assert "Wait time: 1.25 s" in told
    assert "Resource conflicts: 0" in told
    assert "2 runs, 2.5 s waited, 0 conflicts" in told


# ---- playbooks


@pytest.mark.parametrize("suffix", ["yaml", "json", "toml"])
def test_playbooks_in_every_format(tmp_path, suffix):
    texts = {
        "yaml": "name: book\nsteps:\n  - name: one\n    command: touch a\n    timeout_seconds: 5\nmetadata: {x: 1}\n",
        "json": json.dumps({"name": "book", "steps": [{"name": "one", "command": "touch a", "timeout_seconds": 5}]}),
        "toml": 'name = "book"\n[[steps]]\nname = "one"\ncommand = "touch a"\ntimeout_seconds = 5\n',
    }
    if suffix == "yaml":
        pytest.importorskip("yaml")
    path = tmp_path / f"book.{suffix}"
    path.write_text(texts[suffix])
    playbook = PlaybookEngine().load_playbook(path)
    assert (playbook.name, playbook.steps[0].timeout_seconds) == ("book", 5)
    PlaybookEngine().execute_playbook(playbook, {}, tmp_path)
    assert (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{}", "name is missing"),
        ('{"name": "b", "steps": []}', "steps"),
        ('{"name": "b", "steps": [{"name": "s", "command": ""}]}', "names no program"),
        ('{"name": "b", "steps": [{"name": "s", "command": "a && b"}]}', "no shell"),
        ('{"name": "b", "steps": [{"name": "s", "comand": "a"}]}', "comand"),
        ("nonsense", "not JSON"),
    ],
)
def test_playbooks_that_cannot_be_meant(tmp_path, text, told):
    path = tmp_path / "book.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told):
        PlaybookEngine().load_playbook(path)


def test_no_playbook_is_none(tmp_path):
    assert PlaybookEngine().load_playbook_or_default(None) is None
    with pytest.raises(ConfigError, match="cannot be read"):
        PlaybookEngine().load_playbook_or_default(tmp_path / "missing.json")


def test_variables_stay_inside_their_argument(tmp_path):
    """A value with spaces, quotes or shell text is one argument and nothing more."""
    hostile = 'x"; touch stolen; echo "$(touch stolen) `touch stolen`'
    book = Playbook(name="b", steps=[PlaybookStep(name="s", command='sh -c "printf %s \\"$1\\" > out" sh ${value}')])
    PlaybookEngine().execute_playbook(book, {"value": hostile}, tmp_path)
    assert (tmp_path / "out").read_text() == hostile
    assert not (tmp_path / "stolen").exists()


@pytest.mark.parametrize(
    ("condition", "runs"),
    [
        ("kind == 'fast'", True), ("kind != fast_one", True), ("count > 2", True), ("count <= 2", False),
        ("flag", True), ("off", False), ("true", True), ("false", False), ("missing", False), ("${count} == 3", True),
        ("count == '3'", False), (None, True),
    ],
)  # fmt: skip
def test_conditions(tmp_path, condition, runs):
    book = Playbook(name="b", steps=[PlaybookStep(name="s", command="touch ran", condition=condition)])
    facts = {"kind": "fast", "count": 3, "flag": True, "off": False, "fast_one": "other"}
    PlaybookEngine().execute_playbook(book, facts, tmp_path)
    assert (tmp_path / "ran").exists() is runs


def test_a_failing_step_says_which(tmp_path):
    """S2-20: PlaybookExecutionError, after its tries, with step and exit code."""
    script = "echo x >> tries; exit 4"
    book = Playbook(name="b", steps=[PlaybookStep(name="bad", command=["sh", "-c", script], retry_count=2)])
    with pytest.raises(PlaybookExecutionError) as raised:
        PlaybookEngine().execute_playbook(book, {}, tmp_path)
    assert (raised.value.step, raised.value.returncode) == ("bad", 4)
    assert (tmp_path / "tries").read_text() == "x\n" * 3


def test_a_step_out_of_time(tmp_path):
    book = Playbook(name="b", steps=[PlaybookStep(name="slow", command="sleep 60", timeout_seconds=0.2)])
    with pytest.raises(PlaybookExecutionError, match="ran out of time"):
        PlaybookEngine().execute_playbook(book, {}, tmp_path)


def test_a_variable_that_is_not_set(tmp_path):
    book = Playbook(name="b", steps=[PlaybookStep(name="s", command="echo ${nothing}")])
    with pytest.raises(PlaybookExecutionError, match="nothing"):
        PlaybookEngine().execute_playbook(book, {}, tmp_path)


def test_a_step_that_is_passed_over_needs_no_variables(tmp_path):
    """What a condition asks for need not be there when the answer is no."""
    optional = PlaybookStep(name="optional", command="touch ${report}", condition="report")
    book = Playbook(name="b", steps=[optional, PlaybookStep(name="s", command="touch ran")])
    PlaybookEngine().execute_playbook(book, {}, tmp_path)
    assert (tmp_path / "ran").exists() and len(list(tmp_path.iterdir())) == 1
    PlaybookEngine().execute_playbook(book, {"report": "told"}, tmp_path)
    assert (tmp_path / "told").exists()


@pytest.mark.parametrize("command", [["sh", "-c", "echo ${title}"], 'bash -lc "echo ${title}"'])
def test_no_text_of_a_task_reaches_a_shell(tmp_path, command):
    with pytest.raises(ConfigError, match=r"step 's': \$\{title\} stands in the script of"):
        PlaybookStep(name="s", command=command)
    book = tmp_path / "book.json"
    book.write_text(json.dumps({"name": "b", "steps": [{"name": "s", "command": command}]}))
    with pytest.raises(ConfigError, match=r"book\.json: step 's'"):
        PlaybookEngine().load_playbook(book)
    with pytest.raises(ConfigError, match=r"RunnerConfig: agent: \{prompt\} stands in"):
        RunnerConfig(agent=["sh", "-c", "echo {prompt}"])
