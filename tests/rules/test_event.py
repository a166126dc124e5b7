"""Events and outcomes: the vocabulary, and that both come back from JSON as they went in."""

import json
import re

import pytest

from necrocode.event import KINDS, Event
from necrocode.outcome import Outcome, Status


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_are_a_thing_and_what_happened_to_it(kind):
    assert re.fullmatch(r"[a-z]+\.[a-z]+", kind) and KINDS[kind]
    fixed = set(Event._fields)
    said = KINDS[kind].partition(": ")[2]
    assert not fixed & set(re.findall(r"\w+", re.sub(r"\([^)]*\)", "", said))), "a fact would hide a field"


@pytest.mark.parametrize(
    "event",
    [
        Event("lease.granted", 1.5, 2.25, "r", "t", "s", "run", {"token": 3, "claims": ["file:a"], "limit": None}),
        Event("run.finished", 1.0, 2.0),
    ],
)
def test_an_event_comes_back(event):
    assert Event.from_dict(json.loads(json.dumps(event.to_dict()))) == event


def test_an_event_says_only_what_it_knows():
    assert Event("run.started", 1.0, 2.0, facts={"tasks": 3}).to_dict() == {
        "kind": "run.started", "at": 1.0, "mono": 2.0, "tasks": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    "data", [{}, {"kind": "x"}, {"kind": "x", "at": "y", "mono": 1}, {"kind": "x", "at": 1, "mono": None}]
)
def test_what_is_no_event(data):
    with pytest.raises((KeyError, TypeError, ValueError)):
        Event.from_dict(data)


FULL = Outcome(
    "t", Status.FAILED, 2, "tests failed", "verify", 1, "r", 7, "/w", "b", "main", ("c1",), ("a.py",), 3, 4, 10.0, 12.5,
    1.0, 4, {"work": 2.0}, {"cpu_seconds": 1.0}, {"diff": "diff.patch"}, {"k": [1]},
)  # fmt: skip


@pytest.mark.parametrize("outcome", [FULL, Outcome("t", Status.DONE)])
def test_an_outcome_comes_back(outcome):
    data = json.loads(json.dumps(outcome.to_dict()))
    assert Outcome.from_dict(data) == outcome
    assert Outcome.from_dict({**data, "from a later version": 1}) == outcome


def test_what_an_outcome_answers():
    assert FULL.seconds == 2.5 and not FULL.ok and Outcome("t", Status.DONE).ok
    assert Outcome("t", Status.DONE, started=5.0, ended=3.0).seconds == 0.0


@pytest.mark.parametrize("data", [{}, {"task_id": "t"}, {"task_id": "t", "status": "good"}])
def test_what_is_no_outcome(data):
    with pytest.raises((KeyError, ValueError)):
        Outcome.from_dict(data)


def test_final_statuses():
    assert {status for status in Status if status.is_final} == {
        Status.DONE, Status.FAILED, Status.TIMED_OUT, Status.CANCELLED,
    }  # fmt: skip
