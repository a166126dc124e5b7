"""The S2 coordinator among real processes: races, deaths, stops, priorities, quotas."""

from __future__ import annotations

import os
import signal

import pytest
from s2_runners import Runner, Told, add, race, runners

from necrocode.agent_runner import (
    ParallelCoordinator,
)
from necrocode.testing import check, wait_for

# ---- processes


def test_eight_processes_at_a_limit(state):
    """S2-01, S2-06, S2-07, S2-39: exactly three of eight, every time."""
    with runners(8, state, max_parallel_runners=3) as contenders:
        for number in range(20):
            calls = [("register_runner", f"r{n}", "t", "s", f"/tmp/ws{n}") for n in range(8)]
            granted = race(contenders, calls)
            assert sum(granted) == 3, f"round {number}"
            assert contenders[number % 8].call("get_concurrent_count") == 3
            assert check(state)
            for n, one in enumerate(contenders):
                if granted[n]:
                    one.call("unregister_runner", f"r{n}")


@pytest.mark.parametrize("what", [{"workspace": "/tmp/one"}, {"branches": ["fix"]}, {"files": ["a.py"]}])
def test_eight_processes_want_the_same(state, what):
    """S2-02, S2-38: one of eight, whether work space, branch or file; checked and claimed in one step."""
    what = dict(what)
    workspace = what.pop("workspace", "/tmp/ws{}")
    with runners(8, state) as contenders:
        for number in range(10):
            for n, one in enumerate(contenders):
                one.ask("register_runner", f"r{n}", "t", "s", workspace.format(n), **what)
            granted = [one.answer() for one in contenders]
            assert sum(granted) == 1, f"round {number}"
            contenders[granted.index(True)].call("unregister_runner", f"r{granted.index(True)}")


def test_one_branch_for_eight_that_update(state):
    """S2-29: update_resources refuses all but one of eight running processes."""
    with runners(8, state) as contenders:
        for n, one in enumerate(contenders):
            assert one.call("register_runner", f"r{n}", "t", "s", f"/tmp/ws{n}")
        for n, one in enumerate(contenders):
            one.ask("update_resources", f"r{n}", branches=["fix"])
        refused = []
        for one in contenders:
            try:
                one.answer()
            except Told as told:
                refused.append(told.kind)
        assert refused == ["ResourceConflictError"] * 7


def test_nobody_is_missed_while_records_are_rewritten(state):
    """S2-06, S2-37: the count is right while six runners change what they hold as fast as they can."""
    coordinator = ParallelCoordinator(state)
    with runners(3, state) as busy:
        names = [[f"r{n}-{k}" for k in range(2)] for n in range(3)]
        for one, ours in zip(busy, names, strict=True):
            for name in ours:
                assert one.call("register_runner", name, "t", "s", f"/tmp/ws-{name}")
        for _ in range(40):
            for one, ours in zip(busy, names, strict=True):
                for name in ours:
                    for step in range(10):
                        one.ask("update_resources", name, files=[f"{name}-{step}"])
            assert {coordinator.get_concurrent_count() for _ in range(10)} == {6}
            assert len(coordinator.get_runners()) == 6
            for one in busy:
                for _ in range(20):
                    one.answer()


def test_a_killed_runner_blocks_nobody(state):
    """S2-13, S2-40: slot, work space and branch are free at once after kill -9, whatever the heartbeat timeout."""
    with runners(2, state, max_parallel_runners=1) as (doomed, heir):
        assert doomed.call("register_runner", "r1", "t", "s", "/tmp/ws", ["a.py"], ["fix"])
        assert heir.call("try_register", "r2", "t", "s", "/tmp/ws")[2] == "workspace"
        doomed.kill()
        assert heir.call("get_concurrent_count") == 0
        assert heir.call("register_runner", "r2", "t", "s", "/tmp/ws", ["a.py"], ["fix"])
        assert check(state)


def test_a_killed_runners_id_may_be_used_again(state):
    """S2-58: its task can be taken up by another under the same id."""
    with runners(2, state) as (doomed, heir):
        assert doomed.call("register_runner", "r1", "t", "s", "/tmp/ws")
        assert heir.call("try_register", "r1", "t", "s", "/tmp/ws2")[2] == "duplicate"
        doomed.kill()
        assert heir.call("register_runner", "r1", "t", "s", "/tmp/ws")


def test_a_stopped_runner_loses_its_slot_but_not_its_workspace(state):
    """S2-57: frozen beyond its timeout; its slot goes on, its work space does not, and it is told."""
    with runners(2, state, max_parallel_runners=1, heartbeat_timeout_seconds=0.2) as (frozen, other):
        assert frozen.call("register_runner", "r1", "t", "s", "/tmp/ws", ["a.py"], ["fix"])
        os.kill(frozen.process.pid, signal.SIGSTOP)
        wait_for(lambda: other.call("get_concurrent_count") == 0)
        assert other.call("try_register", "r2", "t", "s", "/tmp/ws")[2] == "workspace"
        assert other.call("detect_conflicts", "r2", ["a.py"], ["fix"]) == ["Branch conflict with runner r1: fix"]
        assert other.call("register_runner", "r2", "t", "s", "/tmp/ws2", ["a.py"])
        os.kill(frozen.process.pid, signal.SIGCONT)
        with pytest.raises(Told, match="LeaseLost"):
            frozen.call("update_heartbeat", "r1")


def test_time_zones_do_not_matter(state):
    """A western runner is not taken for dead by an eastern one."""
    western = Runner(state, env={"TZ": "America/Los_Angeles"})
    eastern = Runner(state, env={"TZ": "Asia/Tokyo"})
    try:
        assert western.call("register_runner", "west", "t", "s", "/tmp/west")
        assert eastern.call("register_runner", "east", "t", "s", "/tmp/east")
        assert eastern.call("get_concurrent_count") == 2
        elapsed = [runner["elapsed_seconds"] for runner in eastern.call("get_status")["runners"]]
        assert all(0 <= seconds < 60 for seconds in elapsed)
        western.call("update_heartbeat", "west")
    finally:
        western.end()
        eastern.end()


def test_a_new_process_sees_everything(coordinator, state):
    """S2-10: the state is in the files."""
    add(coordinator, 1, files=["a.py"], branches=["fix"])
    with runners(1, state) as (stranger,):
        (seen,) = stranger.call("get_status")["runners"]
        assert (seen["runner_id"], seen["files"], seen["branches"]) == ("runner-1", ["a.py"], ["fix"])
        assert seen["pid"] == os.getpid()


def test_nobody_else_can_release(coordinator, state):
    """Another process can neither renew nor release by id."""
    add(coordinator, 1)
    with runners(1, state) as (stranger,):
        stranger.call("unregister_runner", "runner-1")
        stranger.call("update_heartbeat", "runner-1")
    assert coordinator.get_concurrent_count() == 1


def test_higher_priority_is_served_first(state):
    """S2-52: among those who wait, whoever came first."""
    coordinator = ParallelCoordinator(state, max_parallel_runners=1)
    assert add(coordinator, 1)
    with runners(2, state, max_parallel_runners=1) as (low, high):
        low.ask("try_register", "low", "t", "s", "/tmp/low", wait=True, timeout=30, priority=-10)
        wait_for(lambda: len(coordinator.get_status()["waiting"]) == 1)
        high.ask("try_register", "high", "t", "s", "/tmp/high", wait=True, timeout=30, priority=10)
        wait_for(lambda: len(coordinator.get_status()["waiting"]) == 2)
        assert [one["runner_id"] for one in coordinator.get_status()["waiting"]] == ["high", "low"]
        coordinator.unregister_runner("runner-1")
        assert high.answer()[0] is True
        assert [one["runner_id"] for one in high.call("get_status")["runners"]] == ["high"]
        high.call("unregister_runner", "high")
        assert low.answer()[0] is True


def test_quotas_per_spec(state):
    """S2-53: so many of one spec at once, whoever starts them."""
    coordinator = ParallelCoordinator(state)
    coordinator.ledger.configure(quotas={"spec:small": 1})
    with runners(2, state) as (one, two):
        assert one.call("register_runner", "r1", "t", "small", "/tmp/w1")
        assert two.call("try_register", "r2", "t", "small", "/tmp/w2")[2] == "quota"
        assert two.call("register_runner", "r3", "t", "other", "/tmp/w3")
