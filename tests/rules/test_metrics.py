"""Metrics by tables of events; concurrency also against a count at every moment."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from necrocode.event import Event
from necrocode.load import Spread
from necrocode.metrics import Fold, Metrics, Phase, fold


def event(kind, mono, runner="r1", task="", run_id="", at=None, **facts):
    return Event(kind, mono + 1e9 if at is None else at, mono, runner, task, "", run_id, facts)


def granted(mono, runner, token, **facts):
    return event("lease.granted", mono, runner, token=token, **facts)


def released(mono, runner, token, kind="lease.released"):
    return event(kind, mono, runner, token=token)


def test_nothing():
    assert fold([]) == Metrics()


def test_concurrency_over_time():
    found = fold(
        [
            granted(10, "a", 1),
            granted(11, "b", 2, live=5),
            released(13, "a", 1),
            granted(13, "c", 3),
            released(14, "b", 2),
        ]
    ).concurrency
    assert found.timeline == ((0, 1), (1, 2), (3, 2), (4, 1))
    assert found.max == 2 and found.mean == pytest.approx((1 + 2 * 2 + 2) / 4) and found.live == 5


def test_a_lease_ends_once_however_many_notice():
    ends = [released(2, "a", 1, kind) for kind in ("lease.fenced", "lease.reaped", "lease.released")]
    metrics = fold([granted(1, "a", 1), granted(1, "b", 2), *ends])
    assert metrics.concurrency.timeline[-1] == (1, 1)
    assert (metrics.total.fenced, metrics.total.reaped) == (1, 1)


def test_a_grant_told_twice_is_one():
    assert fold([granted(1, "a", 1), granted(2, "a", 1)]).concurrency.max == 1


def test_leases_from_before_the_first_event_count_from_the_start():
    found = fold([granted(5, "b", 20), released(6, "a", 11), released(7, "b", 20)]).concurrency
    assert found.timeline == ((0, 2), (1, 1), (2, 0)) and found.max == 2


def test_an_end_without_a_beginning_that_came_later_is_nothing():
    assert fold([granted(5, "a", 20), released(6, "b", 21, "lease.reaped")]).concurrency.timeline == ((0, 1),)


def test_leases_without_a_slot_are_not_counted():
    assert fold([granted(1, "a", 1, slot=False), released(2, "a", 1)]).concurrency.max == 0


def test_without_tokens_the_runner_is_the_lease():
    events = [event("lease.granted", 1, "a"), event("lease.released", 2, "a"), event("lease.granted", 3, "a")]
    assert fold(events).concurrency.timeline == ((0, 1), (1, 0), (2, 1))


def test_a_reboot_ends_all_leases_and_time_goes_on():
    found = fold([granted(5000, "a", 1, at=100), granted(3, "b", 1 << 32, at=160)]).concurrency
    assert found.timeline == ((0, 0), (60, 1))


def test_late_written_events_are_put_in_order():
    found = fold([granted(10, "a", 1), granted(12, "b", 2), released(11, "a", 1)]).concurrency
    assert found.max == 1 and found.timeline == ((0, 1), (1, 0), (2, 1))


def test_waits():
    waits = [0.0] * 90 + [1.0] * 8 + [5.0, 9.0]
    events = [granted(n, f"r{n}", n, waited=wait) for n, wait in enumerate(waits)]
    found = fold(events).total.waits
    assert found == Spread(100, 22.0, 0.0, 1.0, 9.0)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([], Spread()), ([3], Spread(1, 3, 3, 3, 3)), ([1, 2], Spread(2, 3, 1, 2, 2)), ([2, 1, 3], Spread(3, 6, 2, 3, 3))],
)
def test_spread(values, expected):
    assert Spread.of(values) == expected


def test_hand_over_pairs_each_waiter_with_one_end():
    events = [
        granted(1, "a", 1), granted(1, "b", 2), released(2.0, "a", 1), granted(2.001, "c", 3, waited=1),
        granted(2.5, "x", 4), released(3.0, "b", 2), granted(3.002, "d", 5, waited=2), granted(3.003, "e", 6, waited=2),
    ]  # fmt: skip
    found = fold(events).hand_over
    assert found.samples == 2 and found.max == pytest.approx(0.002)


CLAIM = {"claims": ["file:a"], "blockers": ["b"]}


@pytest.mark.parametrize(
    ("events", "detected"),
    [
        ([event("lease.refused", 1, reason="file", **CLAIM)], 1),
        ([event("lease.queued", 1, reason="branch", **CLAIM)], 1),
        ([event("conflict.found", 1, **CLAIM)], 1),
        ([event("lease.queued", 1, reason="queue", **CLAIM)], 1),
        ([event("lease.queued", 1, reason="queue", claims=[], blockers=["b"])], 0),
        ([event("lease.refused", 1, reason="limit", **CLAIM)], 0),
        ([event("lease.refused", 1, reason="quota", **CLAIM)], 0),
        ([event("lease.refused", 1, reason="duplicate")], 0),
        (
            [event("conflict.found", n, **CLAIM) for n in range(5)]
            + [event("lease.refused", 9, reason="file", **CLAIM)],
            1,
        ),
        ([event("conflict.found", 1, **CLAIM), event("conflict.found", 1, "r2", **CLAIM)], 2),
        ([event("conflict.found", 1, **CLAIM), event("conflict.found", 1, claims=["file:a"], blockers=["c"])], 2),
        ([event("conflict.avoided", 1, "", "t", "run", after="s")], 0),
    ],
)
def test_conflicts_detected(events, detected):
    assert fold(events).total.conflicts_detected == detected


def test_conflicts_avoided_count_pairs():
    pairs = [("t", "s"), ("t", "s"), ("t", "u"), ("v", "s")]
    events = [event("conflict.avoided", 1, "", task, "run", after=after, claims=["file:a"]) for task, after in pairs]
    metrics = fold(events)
    assert metrics.total.conflicts_avoided == metrics.runs["run"].conflicts_avoided == 3
    assert metrics.tasks["run", "t"].conflicts_avoided == 2


def test_attempts_retries_losses_and_errors():
    events = [
        event("attempt.finished", 1, "a", "t", "run", attempt=1, status="failed", seconds=2),
        event("attempt.retried", 2, "", "t", "run", attempt=1),
        event("attempt.retried", 2, "", "t", "run", attempt=1),
        event("attempt.lost", 3, "", "t", "run", attempt=2),
        event("attempt.finished", 4, "c", "t", "run", attempt=3, status="done", seconds=3),
        event("attempt.finished", 5, "", "t", "run", attempt=3, status="done", seconds=3),
        event("error.recorded", 5, "c", "t", "run", error="x"),
    ]
    found = fold(events).tasks["run", "t"]
    assert found.attempts == {"failed": 1, "done": 1} and found.seconds == 5
    assert (found.retries, found.lost, found.errors, found.elapsed) == (1, 1, 1, 4)


@pytest.mark.parametrize(
    ("events", "ended"),
    [
        ([event("attempt.finished", 1, "a", "t", "r", attempt=1, status="failed")], {"failed": 1}),
        ([event("attempt.finished", 1, "a", "t", "r", attempt=1, status="lost")], {}),
        (
            [
                event("attempt.finished", 1, "a", "t", "r", attempt=1, status="failed"),
                event("attempt.retried", 2, "", "t", "r", attempt=1),
            ],
            {},
        ),
        (
            [
                event("attempt.finished", 1, "a", "t", "r", attempt=1, status="failed"),
                event("attempt.started", 3, "b", "t", "r", attempt=2),
                event("task.cancelled", 2, "", "t", "r", reason="x"),
                event("task.cancelled", 4, "", "t", "r", reason="x"),
                event("task.cancelled", 4, "", "t", "other", reason="x"),
            ],
            {"cancelled": 2},
        ),
        (
            [
                event("attempt.finished", 1, "b", "t", "r", attempt=2, status="done"),
                event("attempt.finished", 9, "a", "t", "r", attempt=1, status="lost"),
            ],
            {"done": 1},
        ),
    ],
)
def test_how_tasks_ended_last(events, ended):
    assert fold(events).total.ended == fold(reversed(events)).total.ended == ended


def test_waiting_is_no_work():
    events = [
        granted(9, "run.t.1", 1, waited=8.0, task="t"),
        event("attempt.started", 9, "run.t.1", "t", "run", attempt=1),
        event("attempt.finished", 11, "run.t.1", "t", "run", attempt=1, status="done", seconds=10.0),
        granted(9, "stranger", 2, waited=100.0),
    ]
    metrics = fold(events)
    assert metrics.total.seconds == metrics.tasks["run", "t"].seconds == pytest.approx(2.0)


def test_phases():
    passes = [("work", 2, True), ("work", 4, False), ("verify", 1, True)]
    events = [event("phase.finished", n, phase=name, seconds=s, ok=ok) for n, (name, s, ok) in enumerate(passes)]
    assert fold(events).total.phases == {"work": Phase(2, 1, 6.0, 4.0), "verify": Phase(1, 0, 1.0, 1.0)}


def test_work_and_resources():
    events = [
        event("work.recorded", 1, files_changed=2, lines_added=10, lines_removed=1),
        event("work.recorded", 2, files_changed=1),
        event("tests.recorded", 3, run=5, passed=4, failed=1),
        event("artifacts.recorded", 3, count=3, bytes=1000),
        event("resources.sampled", 4, cpu_percent=50.0, memory_mb=10),
        event("resources.sampled", 5, cpu_percent=100.0, memory_mb=30),
        event("resources.sampled", 6, "r2", cpu_percent=0.0, memory_mb=20),
    ]
    total = fold(events).total
    assert total.work == {
        "files_changed": 3, "lines_added": 10, "lines_removed": 1, "tests_run": 5, "tests_passed": 4,
        "tests_failed": 1, "artifacts": 3, "artifact_bytes": 1000,
    }  # fmt: skip
    assert (total.memory_mb, total.cpu_percent) == (30.0, 50.0)


def test_leases_are_put_down_to_the_run_and_task_of_their_runner():
    events = [
        event("lease.granted", 1, "x", "t", token=1, waited=3.0),
        event("attempt.started", 2, "x", "t", "run", attempt=1),
        event("lease.granted", 3, "y", "u", token=2, waited=4.0),
        event("lease.queued", 4, "x", reason="file", **CLAIM),
        event("lease.granted", 5, "x", "v", token=3, waited=1.0),
    ]
    metrics = fold(events)
    assert metrics.runs["run"].waits.total == 3.0 and set(metrics.runs) == {"run"}
    assert metrics.tasks["run", "t"].conflicts_detected == 1
    assert metrics.tasks["", "u"].waits.total == 4.0 and metrics.tasks["", "v"].waits.total == 1.0
    assert metrics.total.waits.total == 8.0


def test_odd_facts_do_no_harm_and_everything_is_json():
    odd = [
        event("lease.granted", 1, token="x", waited=None, live=None),
        event("phase.finished", 2, seconds="long"),
        event("work.recorded", 3, files_changed=["a"]),
        event("attempt.finished", 4, attempt=[1], status=None),
        event("conflict.found", 5, claims={"a": 1}),
        event("unheard.of", 6),
    ]
    json.dumps(fold(odd).to_dict())
    assert json.loads(json.dumps(fold([event("attempt.lost", 1, "", "t", "run")]).to_dict()))["tasks"][0]["lost"] == 1


def test_asking_between_changes_nothing():
    events = [granted(n, f"r{n}", n, waited=n) for n in range(5)] + [released(9, f"r{n}", n) for n in range(5)]
    folded = Fold()
    for told in events:
        folded.add(told)
        folded.result()
    assert folded.result() == fold(events)


SPANS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 10)), min_size=1, max_size=12)


@given(SPANS)
def test_concurrency_equals_a_count_at_every_moment(spans):
    events = []
    for token, (begin, length) in enumerate(spans, 1):
        events += [granted(begin, f"r{token}", token), released(begin + length, f"r{token}", token)]
    events.sort(key=lambda told: told.mono)  # stable: a grant comes before its own release
    start = events[0].mono
    found = fold(events).concurrency
    counts = [sum(b <= moment < b + n for b, n in spans) for moment in range(41)]
    for moment in range(int(start), 41):
        at = [count for when, count in found.timeline if when <= moment - start]
        assert at[-1] == counts[moment]
    length = found.timeline[-1][0]
    if length:
        assert found.mean == pytest.approx(sum(counts) / length)
    assert found.max >= max(counts)
