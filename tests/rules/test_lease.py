"""Requests and records: what may be asked, and that a record comes back from its file as it went in."""

import json
import pickle
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from necrocode.claim import Claim
from necrocode.errors import ConfigError
from necrocode.lease import Holder, Identity, Lease, Request, RunnerInstance, checked_id

THEN = datetime(2026, 1, 2, 3, 4, 5, 678900, tzinfo=UTC)
WHO = Identity(42, 1234, "boot", 1, 2, "host", "me")
CLAIMS = (Claim.file("a.py", "R"), Claim.branch("fix", "R"), Claim.workspace("/w"), Claim("gpu", "0", True))
FULL = RunnerInstance(
    "r1", "t", "spec", "/w", THEN, THEN, claims=CLAIMS, token=9, waited_seconds=1.25, limit=3, priority=-2,
    heartbeat_timeout=5.0, slot=False, tree=True, holder=WHO, details={"k": "v"}, mono=77.5,
).with_claims(CLAIMS)  # fmt: skip


@pytest.mark.parametrize("text", ["a", "A-1", "_x", "-x", "run.task.1", "x" * 128])
def test_ids(text):
    assert checked_id(text) == text


@pytest.mark.parametrize("text", ["", ".a", "a/b", "a b", "a\n", "\u00e9", "x" * 129, None, 3])
def test_what_is_no_id(text):
    with pytest.raises(ConfigError, match="cannot be an id"):
        checked_id(text)


WRONG = [
    {"runner_id": "a/b"}, {"limit": 0}, {"limit": -1}, {"limit": True}, {"limit": 1.5}, {"priority": 50},
    {"priority": -51}, {"heartbeat_timeout": 0}, {"heartbeat_timeout": -1}, {"heartbeat_timeout": True},
    {"heartbeat_timeout": float("nan")}, {"heartbeat_timeout": "5"}, {"heartbeat_timeout": None},
    {"heartbeat_timeout": 10**20}, {"priority": 1.0}, {"priority": True}, {"priority": "1"}, {"task_id": 7},
    {"task_id": None}, {"spec_name": None}, {"workspace_path": Path("/w")},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_asked(wrong):
    with pytest.raises(ConfigError):
        Request(**{"runner_id": "r", **wrong}).checked()


def test_what_can_be_asked():
    request = Request("r", CLAIMS, limit=1, priority=49, heartbeat_timeout=0.1)
    assert request.checked() is request
    assert Request("r", priority=-50).checked().limit is None


def test_the_lists_of_the_document_follow_the_claims():
    assert FULL.files_locked == {"a.py"} and FULL.branches_used == {"fix"}
    assert FULL.with_claims(()).files_locked == frozenset()


@pytest.mark.parametrize("record", [FULL, RunnerInstance("r", "", "", "", THEN, THEN)])
def test_a_record_comes_back(record):
    assert RunnerInstance.from_dict(json.loads(json.dumps(record.to_dict()))) == record


def test_its_age_is_told_by_the_clock_that_does_not_jump():
    """By the boot's clock if that is the same for both; else by the other one, which may have been set back."""
    later = THEN + timedelta(seconds=5)
    assert FULL.age(WHO, later, 80.0) == 2.5
    for strange in (WHO._replace(boot_id="later"), WHO._replace(time_namespace=3)):
        assert FULL.age(strange, later, 80.0) == 5.0
        assert FULL.age(strange, THEN - timedelta(hours=1), 80.0) == 0.0
    assert FULL._replace(mono=None).age(WHO, later, 80.0) == FULL._replace(holder=None).age(WHO, later, 80.0) == 5.0


def test_the_file_is_flat_with_the_fields_of_the_document_in_utc():
    local = FULL._replace(start_time=THEN.astimezone(timezone(timedelta(hours=9))))
    data = local.to_dict()
    assert data["start_time"] == data["last_heartbeat"] == "2026-01-02T03:04:05.678900+00:00"
    assert data["files_locked"] == ["a.py"] and data["branches_used"] == ["fix"]
    assert (data["pid"], data["host"], data["lifeline"], data["schema"]) == (42, "host", "tree", 1)
    assert RunnerInstance.from_dict({**data, "from a later version": 1}) == FULL


@pytest.mark.parametrize(
    "change",
    [
        {"runner_id": 3}, {"start_time": "yesterday"}, {"start_time": 3}, {"claims": [["file"]]}, {"claims": 3},
        {"files_locked": [3]}, {"priority": "high"}, {"details": 3}, {"claims": [[1, 2, 3]]}, {"waited_seconds": "x"},
    ],
)  # fmt: skip
def test_what_is_no_record(change):
    with pytest.raises((KeyError, TypeError, ValueError)):
        RunnerInstance.from_dict({**FULL.to_dict(), **change})


@pytest.mark.parametrize("key", ["runner_id", "task_id", "spec_name", "workspace_path", "start_time", "last_heartbeat"])
def test_what_every_record_has(key):
    data = FULL.to_dict()
    del data[key]
    with pytest.raises(KeyError):
        RunnerInstance.from_dict(data)


ODD = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.text(max_size=3)
    | st.lists(st.integers(), max_size=2)
)


VALUES = [None, True, -1, 10**400, 1e308, float("nan"), "x", [], [1], {}, {"a": 1}, [["a"]], [["a", "b", "c", "d"]]]


@pytest.mark.parametrize("key", sorted(set(FULL.to_dict()) - {"schema", "lifeline"}))
def test_a_value_of_another_type_never_gets_into_a_record(key):
    types = {name: type(value) for name, value in FULL._asdict().items()}
    for value in VALUES:
        try:
            read = RunnerInstance.from_dict({**FULL.to_dict(), key: value})
        except (KeyError, TypeError, ValueError):
            continue
        for name, found in read._asdict().items():
            assert type(found) is types[name] or found is None, (name, found)
        assert read.holder and tuple(map(type, read.holder)) == tuple(map(type, WHO))


@given(st.dictionaries(st.sampled_from(sorted(FULL.to_dict())), ODD, max_size=4))
def test_any_record_is_read_or_refused(change):
    try:
        RunnerInstance.from_dict({**FULL.to_dict(), **change})
    except (KeyError, TypeError, ValueError):
        pass


def test_who_is_in_the_way_is_said_in_words():
    assert str(Holder("r2")) == "a slot is held by r2"
    assert str(Holder("r2", "waiting", Claim.file("a"))) == "file:a is awaited ahead of you by r2"
    assert str(Holder("r2", "fenced", Claim.branch("b"), token=3)) == (
        "branch:b is held by r2 (token 3, fenced, still alive)"
    )
    assert pickle.loads(pickle.dumps(Holder("r2", claim=Claim.file("a")))) == Holder("r2", claim=Claim.file("a"))


def test_a_handle_shows_its_record():
    lease = Lease(FULL)
    assert (lease.runner_id, lease.claims, lease.token) == ("r1", CLAIMS, None)
    assert repr(lease) == "<Lease r1 token=None 4 claims>"
