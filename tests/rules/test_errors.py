"""Every error: its sentence, its facts, its hint, and that all of them cross a process border."""

import copy
import pickle
from datetime import UTC, datetime

import pytest

from necrocode import errors
from necrocode.claim import Claim
from necrocode.errors import NecrocodeError
from necrocode.lease import Holder
from necrocode.life import InvalidMove
from necrocode.outcome import Status

SINCE = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
HOLDER = Holder("r2", claim=Claim.file("a.py"), token=7, pid=42, since=SINCE)
SAMPLES = {
    "NecrocodeError": (NecrocodeError("it broke", hint="mend it"), "it broke"),
    "ConfigError": (errors.ConfigError("bad", where="t.toml:3", hint="h"), "t.toml:3: bad"),
    "Refused": (errors.Refused("no", runner_id="r1", reason="limit", blockers=[HOLDER], waited=1.0), "no"),
    "ResourceConflictError": (
        errors.ResourceConflictError("r1", [HOLDER], reason="file", waited=1.5),
        "r1 was refused after 1.5 s (file): file:a.py is held by r2 (token 7, pid 42, since 03:04:05 UTC)",
    ),
    "ResourceLimitError": (
        errors.ResourceLimitError("r1", 3, 3, [HOLDER]),
        "r1 was refused (limit): 3 of 3 slots are taken",
    ),
    "LeaseLost": (
        errors.LeaseLost("r1", ours=4, found=6),
        "r1: the lease with token 4 is gone (the ledger has token 6)",
    ),
    "Deadlock": (errors.Deadlock(["a", "b", "a"]), "waiting here would never end: a -> b -> a"),
    "GateTimeout": (
        errors.GateTimeout("/s", 2.5, "pid 3"),
        "/s: the gate did not open within 2.5 s; inside: pid 3",
    ),
    "StateUnusable": (errors.StateUnusable("/s", "it is another user's"), "/s: it is another user's"),
    "StateUnreadable": (errors.StateUnreadable("/s/x", "cut off", "/s/q/x"), "/s/x: cut off; kept as /s/q/x"),
    "TaskFailed": (errors.TaskFailed("no result", task_id="t", hint="h"), "no result"),
    "PlaybookExecutionError": (
        errors.PlaybookExecutionError("step x failed", step="x", returncode=3, task_id="t"),
        "step x failed",
    ),
    "TaskTimeoutError": (
        errors.TaskTimeoutError(2.0, 1.5, {"at": 3}, task_id="t"),
        "timed out after 2.0 s (limit 1.5 s)",
    ),
    "WorkspaceKept": (errors.WorkspaceKept("/w", "it has uncommitted work"), "/w was kept: it has uncommitted work"),
    "LandingConflict": (
        errors.LandingConflict("refs/heads/main", "refs/heads/fix", ["a", "b"]),
        "fix and main are in conflict: both changed a, b",
    ),
    "GitFailed": (errors.GitFailed(["git", "x"], 128, "w\nfatal: y\n"), "git x ended with 128: fatal: y"),
    "InvalidMove": (
        InvalidMove("t", Status.DONE, Status.FAILED, ["1.000 running"]),
        "t cannot go from done to failed; its story: 1.000 running",
    ),
}


def test_every_error_of_the_tree_has_a_sample():
    tree = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert tree | {"InvalidMove"} == set(SAMPLES)


@pytest.mark.parametrize("name", SAMPLES)
def test_it_says_what_happened_and_survives(name):
    error, expected = SAMPLES[name]
    assert type(error).__name__ == name and str(error) == expected
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(error, protocol))
        assert type(again) is type(error) and str(again) == str(error) and vars(again) == vars(error)
    assert vars(copy.copy(error)) == vars(error)


@pytest.mark.parametrize("name", SAMPLES)
def test_what_a_user_can_do_is_said(name):
    error, _ = SAMPLES[name]
    said_by_the_raiser = ("Refused", "PlaybookExecutionError", "GitFailed")
    assert error.hint or name in said_by_the_raiser


def test_builtins_that_callers_know():
    assert issubclass(errors.ResourceConflictError, RuntimeError) and issubclass(
        errors.ResourceLimitError, RuntimeError
    )
    assert issubclass(errors.TaskTimeoutError, TimeoutError)
    assert errors.ResourceConflictError("r1", [HOLDER]).conflicts == [str(HOLDER)]


def test_a_refusal_without_known_holders():
    assert "it is not free" in str(errors.ResourceConflictError("r1"))
    assert str(errors.GitFailed(["git"], 1, "")).endswith("no message")
    said = "warning: w\nerror: no space\nerror: x not written\nfatal: adding files failed\n"
    assert str(errors.GitFailed(["git"], 1, said)) == "git ended with 1: error: no space; fatal: adding files failed"
    assert str(errors.StateUnreadable("/x", "why")) == "/x: why"
    assert "no lease" in str(errors.LeaseLost("r1", ours=None))
