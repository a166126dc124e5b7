"""The heartbeat renews while its body runs, tells a loss once, and does not mistake trouble for one."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from stalls import unstalled

from necrocode.errors import GateTimeout, LeaseLost, StateUnusable
from necrocode.heartbeat import Heartbeat
from necrocode.lease import Lease, Request
from necrocode.ledger.files import FileLedger
from necrocode.ledger.memory import MemoryLedger
from necrocode.testing import wait_for


def test_keeps_a_lease_that_would_fall_silent(state_root: Path) -> None:
    for scene in unstalled(0.25):
        ledger = FileLedger(state_root / str(scene.turn))
        lease = ledger.register(Request("a", heartbeat_timeout=0.5))
        with scene, Heartbeat(ledger, lease, 0.02):
            until = time.monotonic() + 1.0
            while scene.step() < until:
                assert ledger.sweep() == 0
                time.sleep(0.02)
    wait_for(lambda: ledger.sweep() == 1)


def test_tells_the_loss_once_and_keeps_it() -> None:
    ledger, told = MemoryLedger(), []
    lease = ledger.register(Request("a"))
    with Heartbeat(ledger, lease, 0.01, on_lost=told.append) as heartbeat:
        heartbeat.check()
        ledger.fence("a")
        wait_for(lambda: told)
    assert len(told) == 1 and heartbeat.lost is told[0]
    with pytest.raises(LeaseLost):
        heartbeat.check()


def test_calls_after_each_beat_and_not_after_the_end() -> None:
    ledger, beats = MemoryLedger(), []
    with Heartbeat(ledger, ledger.register(Request("a")), 0.01, on_beat=lambda: beats.append(1)) as heartbeat:
        wait_for(lambda: len(beats) >= 3)
    count = len(beats)
    assert not [one for one in threading.enumerate() if one.name == "heartbeat-a"]
    heartbeat.stop()
    assert len(beats) == count


def test_a_lease_that_is_given_back_soon_has_no_thread_of_its_own() -> None:
    ledger = MemoryLedger()
    with Heartbeat(ledger, ledger.register(Request("a")), 60.0):
        assert not [one for one in threading.enumerate() if one.name == "heartbeat-a"]


def test_one_that_is_due_soon_does_not_wait_for_those_that_rest() -> None:
    ledger, beats = MemoryLedger(), []
    with (
        Heartbeat(ledger, ledger.register(Request("late")), 60.0),
        Heartbeat(ledger, ledger.register(Request("soon")), 0.01, on_beat=lambda: beats.append(1)),
    ):
        wait_for(lambda: len(beats) >= 3)


@pytest.mark.parametrize("trouble", [StateUnusable("/state", "out of descriptors"), GateTimeout("/state", 1, "pid 1")])
def test_trouble_with_the_state_is_no_loss(monkeypatch: pytest.MonkeyPatch, trouble: Exception) -> None:
    ledger, beats = MemoryLedger(), []
    lease = ledger.register(Request("a"))
    renew, failures = ledger.renew, iter(range(3))

    def sometimes(lease: Lease) -> None:
        if next(failures, None) is not None:
            raise trouble
        renew(lease)

    monkeypatch.setattr(ledger, "renew", sometimes)
    with Heartbeat(ledger, lease, 0.01, on_beat=lambda: beats.append(1)) as heartbeat:
        wait_for(lambda: beats)
    assert heartbeat.lost is None


def test_may_be_stopped_from_its_own_thread() -> None:
    ledger, stopped = MemoryLedger(), []

    def stop() -> None:
        heartbeat.stop()
        stopped.append(1)

    with Heartbeat(ledger, ledger.register(Request("a")), 0.01, on_beat=stop) as heartbeat:
        wait_for(lambda: stopped)


def test_without_a_thread_for_it_nothing_is_begun_and_the_next_one_beats() -> None:
    ledger = MemoryLedger()
    lease = ledger.register(Request("a"))
    usual = threading.stack_size(1 << 46)  # bytes; more than can be addressed
    try:
        with pytest.raises(OSError, match="no heartbeat"):
            Heartbeat(ledger, lease, 0.01).__enter__()
    finally:
        threading.stack_size(usual)
    beats: list[int] = []
    with Heartbeat(ledger, lease, 0.01, on_beat=lambda: beats.append(1)):
        wait_for(lambda: beats)
