"""`necrocode run` on an earlier run: what may be said anew, what is refused, what is told, and what is passed over."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from test_run_command import NO_WORKSPACE, Command

from necrocode.runs import runs
from necrocode.statedir import StateDir


@pytest.fixture
def plain(tmp_path: Path) -> Command:
    return Command(tmp_path, tmp_path)


def failing(command: Command, **tasks: str) -> Path:
    """A file whose run has ended: `good` is done, `p` and `q` fail until there is `go`."""
    scripts = {"good": "true", "p": f"test -e {command.go}", "q": f"test -e {command.go}", **tasks}
    file = command.write(scripts, head=NO_WORKSPACE)
    command.run(file, "-n", "1", code=1)
    command.log.write_text("")
    return file


# -- what is said beside --failed and --resume


@pytest.mark.parametrize(
    "said",
    [
        ("--retries", "2"), ("--base", "main"), ("--agent", "zzz {prompt}"), ("--workspace", "none"),
        ("--workspaces", "w"), ("--heartbeat-timeout", "9"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("again", [("--failed",), ("--resume", "last")])
def test_what_stands_in_the_plan_is_refused_by_its_name(
    plain: Command, said: tuple[str, str], again: tuple[str, ...]
) -> None:
    told = plain.run(failing(plain), *again, *said, code=2).stderr
    assert f"necrocode: {said[0]}: this stands in the plan" in told and "hint: leave it out" in told
    assert plain.begun == []


def test_only_some_of_the_failed(plain: Command) -> None:
    file = failing(plain)
    plain.go.touch()
    plain.run(file, "--failed", "--only", "p")
    assert plain.begun == ["p"]
    assert "nosuch" in plain.run(file, "--failed", "--only", "nosuch", code=2).stderr
    plain.run(file, "--failed")
    assert plain.begun == ["p", "q"]


@pytest.mark.parametrize(("first", "then", "begun"), [("--fail-fast", "--keep-going", 2), ("-q", "--fail-fast", 1)])
def test_whether_it_fails_fast_is_said_anew(plain: Command, first: str, then: str, begun: int) -> None:
    file = plain.write({"p": "false", "q": "false"}, head=NO_WORKSPACE)
    plain.run(file, "-n", "1", first, code=1)
    plain.log.write_text("")
    plain.run(file, "--failed", then, code=1)
    assert len(plain.begun) == begun


def test_a_time_for_each_attempt_is_said_anew(plain: Command) -> None:
    file = failing(plain, p=f"test ! -e {plain.tmp}/second || sleep 60")
    plain.go.touch()
    (plain.tmp / "second").touch()
    plain.run(file, "--failed")  # p was done the first time
    file = plain.write({"slow": f"test -e {plain.tmp}/third && sleep 60; exit 1"}, name="slow.toml", head=NO_WORKSPACE)
    plain.run(file, code=1)
    (plain.tmp / "third").touch()
    assert "timed_out" in plain.run(file, "--failed", "--timeout", "0.5", code=1).stdout


def test_a_run_of_another_file_is_not_what_was_meant(plain: Command) -> None:
    failing(plain)
    (run_id,) = plain.runs
    other = plain.write({"x": "true"}, name="other.toml", head=NO_WORKSPACE)
    assert f"run {run_id} is not one of " in plain.run(other, "--resume", run_id, code=2).stderr
    assert "there is no earlier run of " in plain.run(other, "--failed", code=2).stderr and plain.begun == []


def test_a_file_that_was_edited_is_told_and_the_plan_holds(plain: Command) -> None:
    file = failing(plain)
    assert "note:" not in plain.run(file, "--failed", code=1).stderr
    plain.go.touch()
    plain.log.write_text("")
    edited = {"good": "true", "p": "echo edited >> GO.log", "new": "true"}
    plain.write(edited, head=NO_WORKSPACE, good='retries = 1\nafter = ["new"]')
    told = plain.run("--resume", "last", "--failed").stderr
    (run_id,) = plain.runs
    assert (
        f"note: run {run_id} goes on as it was planned, although {file} differs now in new (not in the run), " in told
    )
    assert "good (retries), p (command), q (not in the file)" in told
    assert sorted(plain.begun) == ["p", "q"] and not Path(f"{plain.go}.log").exists()


def test_a_file_that_cannot_be_read_any_more_is_told_and_the_plan_holds(plain: Command) -> None:
    file = failing(plain)
    plain.go.touch()
    file.write_text("[[task]\n")
    assert "its file cannot be used now: " in plain.run(file, "--failed").stderr
    file.unlink()
    plain.run("--resume", "last")
    assert sorted(plain.begun) == ["p", "q"]


def test_what_was_done_when_it_was_tried_again_stays_done(plain: Command) -> None:
    """A failure before that is not what the task came to, also for those that come after it."""
    file = failing(plain, late="true")
    plain.go.touch()
    plain.run(file, "--failed")
    plain.log.write_text("")
    assert plain.run("--resume", "last").stdout.count("done") == 4 and plain.begun == []


def test_a_task_whose_runners_died_three_times_is_over_until_it_is_asked_for(plain: Command) -> None:
    """The third death is told as a failure, and is none of its attempts all the same."""
    file = plain.write({"p": f"test -e {plain.go} || kill -9 $PPID"}, head=NO_WORKSPACE, p="retries = 1")
    plain.run(file, code=1)
    assert json.loads(plain.run("--resume", "last", "--dry-run", "--json").stdout)["tasks"] == []
    plain.go.touch()
    plain.run(file, "--failed")
    plain.run("--resume", "last")


def test_what_was_said_of_the_first_run_is_no_difference(plain: Command) -> None:
    file = plain.write({"p": "false", "q": "false"}, head=NO_WORKSPACE, p="retries = 1")
    plain.run(file, "--timeout", "60", "--retries", "0", "--only", "p", code=1)
    assert "note:" not in plain.run("--resume", "last", code=1).stderr
    plain.write({"p": "exit 3", "q": "false"}, head=NO_WORKSPACE, p="retries = 1")
    assert "differs now in p (command) " in plain.run("--resume", "last", code=1).stderr


# -- dry runs


def test_a_dry_run_leaves_out_what_is_done(plain: Command) -> None:
    scripts = {"good": "true", "p": "false", "late": "true"}
    file = plain.write(scripts, head=NO_WORKSPACE, late='after = ["good", "p"]')
    plain.run(file, code=1)
    again = plain.run(file, "--failed", "--dry-run", "--json")
    rows = [(row["task_id"], row["after"]) for row in json.loads(again.stdout)["tasks"]]
    assert rows == [("p", []), ("late", ["p"])] and "left out, because they are done: good" in again.stderr
    resumed = plain.run("--resume", "last", "--dry-run", "--json")
    assert json.loads(resumed.stdout)["tasks"] == []
    assert "not tried again without --failed: late, p" in resumed.stderr
    assert sorted(plain.begun) == ["good", "p"]


def test_a_dry_run_and_a_refused_file_make_no_state_directory(plain: Command) -> None:
    plain.run(plain.write({"a": "true"}, head=NO_WORKSPACE), "--dry-run")
    plain.run(plain.write({}), code=2)
    plain.run("--resume", "last", code=2)
    assert not plain.state.exists()


def test_a_dry_run_needs_no_state_directory_that_can_be_written(plain: Command) -> None:
    file = plain.write({"a": "true"}, head=NO_WORKSPACE)
    plain.state = Path("/proc/none/state")
    assert "a" in plain.run(file, "--dry-run").stdout


# -- plans that cannot be read


@pytest.mark.parametrize("damage", ["", "{}", "[]"])
def test_a_damaged_plan_is_passed_over_and_told(plain: Command, damage: str) -> None:
    file = failing(plain)
    (run_id,) = plain.runs
    plain.go.touch()
    state = StateDir(plain.state)
    (state.runs / "broken").mkdir()
    (state.runs / "broken" / "plan.json").write_text(damage)
    for args in ((file, "--failed"), ("--resume", "last")):
        os.utime(state.runs / "broken")
        assert runs(state)[0] == "broken"
        assert "note: run broken is passed over: " in plain.run(*args).stderr
    assert plain.begun.count("p") == 1
    assert "plan.json" in plain.run("--resume", "broken", code=125).stderr
    assert run_id in plain.runs
