"""necrocode wait and retry: real runs that end, fail, are tried again, and lose their launcher."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_call import CONFLICT, Cli, calls, kill, until

from necrocode.ending import ends
from necrocode.lookup import Found
from necrocode.order import take, taken_by
from necrocode.process import end_tree, identity
from necrocode.runs import Plan, attempt_folder, runs
from necrocode.statedir import StateDir, mark, put, to_json
from necrocode.task import Task


@pytest.fixture
def cli(state_root: Path, repository: Path) -> Iterator[Cli]:
    with calls(state_root, repository) as cli:
        yield cli
        cli("stop", "--all", "--grace", "0")


def write(cli: Cli, **tasks: str | tuple[str, str]) -> None:
    """A task file of shell scripts; with a second text, further keys."""
    text = ""
    for task_id, told in tasks.items():
        script, keys = told if isinstance(told, tuple) else (told, "")
        text += (
            f'[[task]]\nid = "{task_id}"\ncommand = ["sh", "-c", {json.dumps(script)}]\nworkspace = "none"\n{keys}\n'
        )
    (cli.where / "tasks.toml").write_text(text)


def gate(cli: Cli) -> tuple[str, Path]:
    """A script that goes on once a file is there."""
    path = cli.where.parent / "go"
    return f"while [ ! -e {path} ]; do sleep 0.02; done", path


def started(cli: Cli, task_id: str) -> str:
    """The run, once an attempt at that task is under way."""
    state = until(lambda: cli.state.joinpath("VERSION").exists() and StateDir(cli.state))
    return until(
        lambda: next((run for run in runs(state) if list((state.runs / run).glob(f"{task_id}.*/runner.json"))), "")
    )


def test_a_run_is_waited_for_and_its_exit_code_is_passed_on(cli: Cli) -> None:
    script, go = gate(cli)
    write(cli, good=script, bad=f"{script}; exit 3")
    launcher = cli.start("run", "tasks.toml", "-n", "2")
    run = started(cli, "bad")
    waiter = cli.start("wait", run)
    assert cli("wait", run, "--timeout", "0.2").returncode == 124
    assert waiter.poll() is None
    go.touch()
    assert launcher.wait(60) == 1
    out, err = waiter.communicate(timeout=60)
    assert waiter.returncode == 1, err
    assert "1 task done, 1 not" in out and f"{run}/bad: failed" in out


def test_a_task_is_waited_for_while_its_run_goes_on(cli: Cli) -> None:
    script, go = gate(cli)
    write(cli, slow=script, quick="true", bad="exit 3")
    launcher = cli.start("run", "tasks.toml", "-n", "3")
    run = started(cli, "slow")
    done = cli("wait", f"{run}/quick")
    assert (done.returncode, done.stdout.partition(" after")[0]) == (0, f"{run}/quick: done")
    assert cli("wait", "quick", "bad").returncode == 1
    assert cli("wait", "slow", "--timeout", "0.1").returncode == 124
    assert launcher.poll() is None
    go.touch()
    assert launcher.wait(60) == 1
    assert cli("wait", "slow", "--quiet").stdout == ""


def test_a_task_that_is_tried_again_has_not_ended(cli: Cli) -> None:
    script, go = gate(cli)
    second = f"if [ -e {cli.where.parent}/once ]; then {script}; else touch {cli.where.parent}/once; exit 1; fi"
    write(cli, flaky=(second, "retries = 1"))
    launcher = cli.start("run", "tasks.toml")
    run = started(cli, "flaky")
    waiter = cli.start("wait", f"{run}/flaky")
    until(lambda: (cli.state / "runs" / run / "flaky.2" / "runner.json").exists())
    assert waiter.poll() is None
    go.touch()
    assert (launcher.wait(60), waiter.wait(60)) == (0, 0)
    told = cli.json("wait", f"{run}/flaky.1")
    assert told["exit_code"] == 1 and told["ended"][0]["status"] == "failed"


def test_a_run_that_lost_its_launcher_ends_with_its_runners(cli: Cli) -> None:
    script, go = gate(cli)
    write(cli, slow=script, later=("true", 'after = ["slow"]'))
    launcher = cli.start("run", "tasks.toml")
    run = started(cli, "slow")
    launcher.kill()
    launcher.wait()
    assert cli("wait", run, "--timeout", "0.2").returncode == 124  # its runner goes on
    go.touch()
    told = cli.json("wait", run)
    assert {end["name"]: end["status"] for end in told["ended"]} == {f"{run}/slow": "done", f"{run}/later": "not_begun"}
    assert told["exit_code"] == 1


def test_who_took_an_attempt_and_has_no_lease_yet_is_not_lost(state_root: Path) -> None:
    """Its launcher has died in that very moment."""
    state = StateDir(state_root)
    (state.runs / "r").mkdir()
    Plan("r", (Task("t", command=("true",)),), {"t": ()}, 1, mode="none").save(state)
    (state.runs / "r" / "launcher.json").write_text('{"since": 1.0}')
    folder = attempt_folder(state, "r", "t", 1)
    folder.mkdir()
    (folder / "task.json").touch()
    assert ends(state, Found("r", "t")) is None, "it may have been handed over just now"
    os.utime(folder / "task.json", (1, 1))
    assert [end.status for end in ends(state, Found("r", "t")) or ()] == ["lost"]
    take(folder)
    assert ends(state, Found("r", "t")) is None
    (folder / "runner.json").unlink()
    ours = identity()
    put(folder / "runner.json", to_json(ours._replace(start_ticks=ours.start_ticks - 1)._asdict()))
    assert [end.status for end in ends(state, Found("r", "t")) or ()] == ["lost"]


def test_who_cannot_be_read_is_waited_for_by_its_lifeline(cli: Cli) -> None:
    script, go = gate(cli)
    write(cli, slow=script, lost="exec sleep 300")
    launcher = cli.start("run", "tasks.toml", "-n", "2")
    run = started(cli, "slow")
    until(lambda: len(list((cli.state / "runners").iterdir())) == 2)
    launcher.kill()
    launcher.wait()
    folders = [cli.state / "runs" / run / f"{task_id}.1" for task_id in ("slow", "lost")]
    lost = taken_by(folders[1])
    for folder in folders:
        (folder / "runner.json").unlink()
        (folder / "runner.json").touch()
    assert cli("wait", run, "--timeout", "0.2").returncode == 124
    assert lost
    kill(lost.pid)
    end_tree(mark(cli.state, f"{run}.lost.1"), grace=0)
    go.touch()
    told = cli.json("wait", run)
    assert {end["name"]: end["status"] for end in told["ended"]} == {f"{run}/slow": "done", f"{run}/lost": "lost"}


def test_a_runner_is_waited_for(cli: Cli) -> None:
    script, go = gate(cli)
    runner = cli.start("exec", "--name", "mine", "--", "sh", "-c", script)
    until(lambda: list((cli.state / "runners").glob("mine.*")) if cli.state.joinpath("VERSION").exists() else None)
    assert cli("wait", "mine", "--timeout", "0.1").returncode == 124
    go.touch()
    assert cli("wait", "mine").stdout.startswith("mine: released")
    assert runner.wait(30) == 0


def test_a_runner_that_died_is_1(cli: Cli) -> None:
    owner = subprocess.Popen(["sleep", "300"])
    told = cli.json("claim", "--pid", str(owner.pid), "gpu:0", "--name", "mine")
    kill(told["pid"])
    assert cli("wait", "mine").returncode == 1
    owner.kill()
    owner.wait()


def test_a_task_that_will_not_be_started_has_ended_while_its_run_goes_on(cli: Cli) -> None:
    script, go = gate(cli)
    write(cli, slow=script, bad="exit 1", never=("true", 'after = ["bad"]'))
    launcher = cli.start("run", "tasks.toml", "-n", "2")
    run = started(cli, "slow")
    told = cli.json("wait", f"{run}/never")
    assert told["exit_code"] == 1 and told["ended"][0]["status"] == "cancelled"
    assert launcher.poll() is None
    go.touch()
    assert launcher.wait(60) == 1


def test_an_interrupted_run_is_130(cli: Cli) -> None:
    script, _ = gate(cli)
    write(cli, slow=script, later=("true", 'after = ["slow"]'))
    launcher = cli.start("run", "tasks.toml")
    run = started(cli, "slow")
    waiter = cli.start("wait", run)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(60) == 143
    assert waiter.wait(60) == 130


def test_a_conflict_is_3(cli: Cli) -> None:
    """What is not started after it says nothing beside it."""
    (cli.where / "tasks.toml").write_text(CONFLICT)
    assert cli("run", "tasks.toml").returncode == 3
    assert cli("wait", runs(StateDir(cli.state))[0]).returncode == 3
    assert (cli("wait", "both").returncode, cli("wait", "never").returncode) == (3, 1)
    assert cli("run", "--resume", "last").returncode == 3


def test_what_is_unknown_is_a_mistake(cli: Cli) -> None:
    assert cli("wait", "nothing").returncode == 2
    assert cli("retry", "nothing").returncode == 2


def test_retry_does_what_failed_and_not_what_was_done(cli: Cli) -> None:
    log = cli.where.parent / "log"
    write(
        cli, good=f"echo good >>{log}", bad=f"echo bad >>{log}; test -e {cli.where.parent}/mended",
        later=(f"echo later >>{log}", 'after = ["bad"]'),
    )  # fmt: skip
    assert cli("run", "tasks.toml").returncode == 1
    (run,) = runs(StateDir(cli.state))
    assert cli("retry", run).returncode == 1
    (cli.where.parent / "mended").touch()
    again = cli("retry", "last", "-n", "1")
    assert again.returncode == 0 and "again: bad, later" in again.stderr, again.stderr
    assert log.read_text().split().count("good") == 1
    assert log.read_text().split()[-2:] == ["bad", "later"]
    assert cli("wait", run, "later").returncode == 0  # that it was cancelled once is over
    nothing = cli("retry", run)
    assert nothing.returncode == 0 and "nothing to try again" in nothing.stderr
    assert cli.json("retry", run)["tasks"] == []


def test_retry_of_one_task_takes_what_it_needs_and_leaves_the_rest(cli: Cli) -> None:
    mended = cli.where.parent / "mended"
    write(cli, one="exit 1", two=f"test -e {mended}", three=("true", 'after = ["two"]'))
    assert cli("run", "tasks.toml").returncode == 1
    (run,) = runs(StateDir(cli.state))
    mended.touch()
    told = cli.json("retry", run, "three")
    assert {task["task_id"]: task["status"] for task in told["tasks"]} == {"two": "done", "three": "done"}
    assert not (cli.state / "runs" / run / "one.2").exists()
    wrong = cli("retry", run, "two")
    assert wrong.returncode == 2 and "done already" in wrong.stderr
    assert cli("retry", run, "four").returncode == 2


def test_retry_is_refused_while_somebody_follows_the_run(cli: Cli) -> None:
    script, go = gate(cli)
    write(cli, slow=script, bad="exit 1")
    launcher = cli.start("run", "tasks.toml", "-n", "2")
    run = started(cli, "slow")
    refused = cli("retry", run)
    assert refused.returncode == 75 and f"necrocode wait {run}" in refused.stderr
    go.touch()
    assert launcher.wait(60) == 1
