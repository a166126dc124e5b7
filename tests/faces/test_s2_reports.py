"""What a run reports when it could not be carried out, had no slot, or has no console to report to."""

from __future__ import annotations

import io
import json
import sys
import threading

import pytest
from s2_repository import nothing_is_held, task

from necrocode.agent_runner import MetricsReporter, ParallelCoordinator, RunnerOrchestrator
from necrocode.testing import wait_for


def test_a_run_without_a_slot_counts_itself_when_it_is_left_behind_too(repo, config, state):
    """S2-09: beside one holder, at its deadline, while its Python still goes on."""
    end = threading.Event()
    holder = ParallelCoordinator(state, 1)
    assert holder.register_runner("other", "t", "s", "/tmp/other")
    configuration = config(
        max_parallel_runners=1, capacity_timeout_seconds=0.05, degrade=True, grace_seconds=0.1,
        agent=lambda context, workspace: end.wait(60),
    )  # fmt: skip
    result = RunnerOrchestrator(configuration).run(task(repo, timeout_seconds=0.3))
    assert (result.error_kind, result.concurrent_runners) == ("timeout", 2)
    end.set()
    wait_for(lambda: not holder.get_status()["without_slot"])
    holder.unregister_runner("other")
    wait_for(lambda: nothing_is_held(state))


@pytest.mark.parametrize("trouble", ["no agent", "no directory", "no journal"])
def test_a_failure_is_an_error_in_the_metrics_wherever_it_came(repo, config, state, tmp_path, trouble):
    """S2-33: also when there was nobody to work, or nowhere to write down what happened."""
    if trouble == "no directory":
        state.write_text("")
    elif trouble == "no journal":
        ParallelCoordinator(state)
        (state / "events").rmdir()
        (state / "events").write_text("")
    agent = None if trouble == "no agent" else ["false"]
    orchestrator = RunnerOrchestrator(
        config(max_parallel_runners=1, agent=agent, metrics_enabled=True, metrics_dir=tmp_path / "metrics")
    )
    result = orchestrator.run(task(repo))
    assert not result.success
    assert orchestrator.last_metrics.errors == 1
    (written,) = (tmp_path / "metrics").iterdir()
    assert json.loads(written.read_text())["errors"] == 1


def closed() -> io.StringIO:
    console = io.StringIO()
    console.close()
    return console


@pytest.mark.parametrize("console", [None, closed()], ids=["none", "closed"])
def test_a_run_needs_no_console(repo, config, tmp_path, console, monkeypatch, caplog):
    """S2-33: what cannot be shown is told in the log, and written all the same."""
    folder = tmp_path / "metrics"
    orchestrator = RunnerOrchestrator(config(metrics_enabled=True, metrics_dir=folder))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", console)
        result = orchestrator.run(task(repo, test_commands=[]))
        MetricsReporter().report_summary([orchestrator.last_metrics])
    assert result.success, result.error
    assert len(list(folder.iterdir())) == 1
    assert caplog.text.count("metrics were not shown") == 2
