"""ParallelExecutionContext of S2, and the wait estimate."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import threading
import time

import pytest
from s2_runners import Runner, add, leaves_when_awaited, let_go, runners
from stalls import unstalled

from necrocode.agent_runner import (
    ParallelCoordinator,
    ParallelExecutionContext,
    ResourceConflictError,
    ResourceLimitError,
)
from necrocode.agent_runner.estimate import expected_wait
from necrocode.errors import ConfigError, LeaseLost
from necrocode.testing import check, wait_for

# ---- the estimate


def test_wait_estimate_from_facts(coordinator, state):
    """S2-36: as long as leases have lasted so far, less what the oldest has already had."""
    for number in range(20, 23):
        add(coordinator, number)
    held = time.monotonic()
    wait_for(lambda: time.monotonic() - held > 0.4)
    for number in range(20, 23):
        coordinator.unregister_runner(f"runner-{number}")
    for scene in unstalled(0.4):
        with scene:
            for number in (1, 2, 3):
                add(coordinator, number)
            assert 0 < coordinator.get_wait_time() < 30
        let_go(coordinator)


@pytest.mark.parametrize(
    ("turn", "ages", "observed", "seconds"),
    [
        (1, [0.0], [10.0], 10.0),
        (1, [4.0], [10.0, 20.0, 30.0], 16.0),
        (1, [15.0], [10.0, 20.0, 30.0], 10.0),
        (1, [2.0, 8.0], [10.0], 2.0),
        (2, [2.0, 8.0], [10.0], 8.0),
        (3, [2.0, 8.0], [10.0], 12.0),
        (1, [40.0], [10.0, 20.0], math.inf),
        (1, [40.0, 1.0], [10.0], 9.0),
        (1, [1.0], [], math.inf),
        (1, [], [1.0], math.inf),
    ],
)
def test_expected_wait(turn, ages, observed, seconds):
    """The next slot is that of the lease that should end first; one that outlived all others tells nothing."""
    assert expected_wait(turn, ages, observed) == seconds


@pytest.mark.parametrize(
    ("turn", "ages", "surplus", "seconds"),
    [
        (1, [2.0, 8.0], 1, 8.0),
        (2, [2.0, 8.0], 1, 18.0),
        (1, [1.0, 2.0, 8.0], 2, 9.0),
        (2, [1.0, 2.0, 8.0], 1, 9.0),
        (1, [40.0, 1.0], 1, math.inf),
        (1, [2.0, 8.0], 2, math.inf),
    ],
)
def test_slots_over_a_lowered_limit_are_not_used_again(turn, ages, surplus, seconds):
    """S2-36: what is over the limit ends without anybody coming after it, and only then a slot becomes free."""
    assert expected_wait(turn, ages, [10.0], surplus=surplus) == seconds


# ---- the context


def test_the_context_beats_by_itself(state):
    """S2-16: a body much longer than the heartbeat timeout stays counted, without a call."""
    coordinator = ParallelCoordinator(state, heartbeat_timeout_seconds=0.6)
    for scene in unstalled(0.3):
        with scene, ParallelExecutionContext(coordinator, "runner-1", "t", "s", "/tmp/w"):
            started = time.monotonic()
            while scene.step() - started < 1.5:
                assert coordinator.get_concurrent_count() == 1
                time.sleep(0.01)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_the_context_cleans_up_whatever_is_raised(coordinator, error):
    """S2-17: and the exception passes through."""
    with pytest.raises(error), ParallelExecutionContext(coordinator, "runner-1", "t", "s", "/tmp/w"):
        raise error
    assert coordinator.get_concurrent_count() == 0
    assert threading.active_count() == 1 or not [t for t in threading.enumerate() if "heartbeat-runner-1" in t.name]


def test_the_context_refuses_conflicts(coordinator):
    """S2-18, S2-20: files and branches are claimed with the registration."""
    add(coordinator, 1, branches=["fix"])
    with (
        pytest.raises(ResourceConflictError) as raised,
        ParallelExecutionContext(coordinator, "runner-2", "t", "s", "/tmp/w2", branches=["fix/more"]),
    ):
        pytest.fail("the body ran")
    assert raised.value.reason == "branch"
    assert coordinator.get_concurrent_count() == 1


def test_the_context_waits_its_turn(state):
    """S2-26 for the context: wait= and timeout=."""
    coordinator = ParallelCoordinator(state, max_parallel_runners=1)
    with runners(1, state, max_parallel_runners=1) as (other,):
        assert other.call("register_runner", "other", "t", "s", "/tmp/other")
        with (
            pytest.raises(ResourceLimitError),
            ParallelExecutionContext(coordinator, "runner-1", "t", "s", "/tmp/w", wait=True, timeout=0.05),
        ):
            pytest.fail("the body ran")
        leaves_when_awaited(other, "other", state)
        with ParallelExecutionContext(coordinator, "runner-1", "t", "s", "/tmp/w", wait=True, timeout=20) as context:
            assert context.waited > 0
            assert coordinator.get_concurrent_count() == 1


def test_the_context_tells_that_it_was_lost(state):
    """S2-57: the body learns it before it writes, and a body that ended well is not believed."""
    coordinator = ParallelCoordinator(state)
    told = []
    context = ParallelExecutionContext(
        coordinator, "runner-1", "t", "s", "/tmp/w", heartbeat_interval=0.02, on_lost=told.append
    )
    with pytest.raises(LeaseLost), context:
        coordinator.ledger.fence("runner-1")
        wait_for(lambda: context.lost)
        with pytest.raises(LeaseLost):
            context.update_heartbeat_if_needed()
        with pytest.raises(LeaseLost), context.publishing():
            pytest.fail("published without a lease")
    assert len(told) == 1
    assert coordinator.get_concurrent_count() == 0


def test_publishing_gives_the_token(coordinator):
    """A window in which the registration cannot be revoked."""
    with (
        ParallelExecutionContext(coordinator, "runner-1", "t", "s", "/tmp/w") as context,
        context.publishing() as token,
    ):
        assert token == context.token


# ---- a registration that is lost or replaced inside the block


def test_a_loss_that_no_beat_has_noticed_yet(state):
    """S2-57: the body ends before the next beat is due; that the registration had gone is told all the same."""
    coordinator = ParallelCoordinator(state)
    context = ParallelExecutionContext(coordinator, "runner-1", "t", "s", "/tmp/w", heartbeat_interval=60)
    with pytest.raises(LeaseLost) as raised, context:
        ParallelCoordinator(state).ledger.fence("runner-1")
        assert context.lost is None
    assert context.lost is raised.value
    with context:
        assert context.lost is None
    assert context.lost is None
    assert check(state)


STOPPED = """
import sys
from necrocode.agent_runner import ParallelCoordinator, ParallelExecutionContext
from necrocode.errors import ConfigError, LeaseLost
coordinator = ParallelCoordinator(sys.argv[1], 1, 0.6)
try:
    with ParallelExecutionContext(coordinator, "stopped", "t", "s", "/tmp/stopped"):
        print("in", flush=True)
        sys.stdin.readline()
    print("ended well", flush=True)
except LeaseLost:
    print("lost", flush=True)
"""


def test_a_stopped_runner_learns_at_the_end_of_its_body(state):
    """S2-57: stopped for longer than its timeout, succeeded by another, continued, and at once at its end."""
    coordinator = ParallelCoordinator(state, 1, 0.6)
    child = subprocess.Popen(
        [sys.executable, "-c", STOPPED, str(state)], env=Runner.environment(), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    with child:
        assert child.stdout.readline() == "in\n"
        child.send_signal(signal.SIGSTOP)
        wait_for(lambda: coordinator.register_runner("next", "t", "s", "/tmp/next"))
        child.stdin.write("\n")
        child.stdin.flush()
        child.send_signal(signal.SIGCONT)
        assert child.stdout.readline() == "lost\n"
    coordinator.unregister_runner("next")


def test_what_the_body_raises_counts_more_than_a_loss(state, caplog):
    """S2-17: and the loss is logged."""
    coordinator = ParallelCoordinator(state)
    context = ParallelExecutionContext(coordinator, "runner-1", "t", "s", "/tmp/w", heartbeat_interval=60)
    with pytest.raises(ValueError, match="mine"), context:
        coordinator.ledger.fence("runner-1")
        raise ValueError("mine")
    assert isinstance(context.lost, LeaseLost)
    assert "had lost its registration" in caplog.text


@pytest.mark.parametrize("ended", ["unregistered", "fenced"])
def test_leaving_frees_no_later_registration_of_the_same_id(coordinator, ended):
    """S2-12, S2-15: the block gives back what it was given, and nothing else."""
    context = ParallelExecutionContext(coordinator, "runner-1", "t", "s", "/tmp/w", heartbeat_interval=60)
    with pytest.raises(LeaseLost), context:
        if ended == "fenced":
            coordinator.ledger.fence("runner-1")
        else:
            coordinator.unregister_runner("runner-1")
        assert coordinator.register_runner("runner-1", "t2", "s", "/tmp/w2")
        with pytest.raises(LeaseLost):
            context.update_resources(files=["a.py"])
        with pytest.raises(LeaseLost), context.publishing():
            pytest.fail("published under the registration of another")
    assert [(one.task_id, one.files_locked) for one in coordinator.get_runners()] == [("t2", frozenset())]
    coordinator.update_heartbeat("runner-1")


@pytest.mark.parametrize("interval", [0, -5, math.nan, True])
def test_an_interval_that_cannot_be_meant(coordinator, interval):
    with pytest.raises(ConfigError, match=str(interval)) as raised:
        ParallelExecutionContext(coordinator, "runner-1", "t", "s", "/tmp/w", heartbeat_interval=interval)
    assert "seconds" in raised.value.hint
