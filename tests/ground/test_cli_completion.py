"""What a shell is offered: runs, tasks, runners and keys that there are; fast, and never a word when it cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_call import Cli, calls
from click.shell_completion import ShellComplete

from necrocode.claim import Claim
from necrocode.cli import group
from necrocode.door import Door
from necrocode.lease import Request
from necrocode.ledger.files import FileLedger
from necrocode.runs import Plan, new_run
from necrocode.statedir import StateDir
from necrocode.task import parse_tasks

Offered = Callable[[str], list[str]]
TASKS = """
[[task]]
id = "alpha"
command = ["true"]
workspace = "none"

[[task]]
id = "beta"
command = ["true"]
workspace = "none"
"""


@pytest.fixture
def cli(state_root: Path, tmp_path: Path) -> Iterator[Cli]:
    with calls(state_root, tmp_path) as cli:
        yield cli


@pytest.fixture
def run(cli: Cli) -> str:
    """A run of two tasks, as it lies on the disk before anything has begun."""
    state, tasks = StateDir(cli.state), parse_tasks(TASKS).tasks
    plan = Plan(new_run(state), tasks, {task.id: () for task in tasks}, 2)
    plan.save(state)
    return plan.run_id


@pytest.fixture
def offered(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Offered:
    """What completes the last word of a line; behind a space, a word not begun. As the printed lines call it, but
    within this process."""
    monkeypatch.chdir(cli.where)
    monkeypatch.setenv("NECROCODE_STATE_DIR", str(cli.state))

    def complete(line: str) -> list[str]:
        *words, begun = line.split(" ")[1:]
        shell = ShellComplete(group, {"obj": Door()}, "necrocode", "_NECROCODE_COMPLETE")
        return [item.value for item in shell.get_completions(words, begun)]

    return complete


def test_runs_tasks_and_runners_of_the_state_directory_are_offered(cli: Cli, run: str, offered: Offered) -> None:
    ledger = FileLedger(cli.state)
    lease = ledger.register(Request("runner-1", (Claim.parse("gpu:0"),)))
    assert offered("necrocode report ") == [run]
    assert offered(f"necrocode report {run[:2]}") == [run]
    assert offered("necrocode metrics --run ") == [run]
    assert offered("necrocode logs ") == ["alpha", "beta", f"{run}/alpha", f"{run}/beta"]
    assert offered("necrocode logs b") == ["beta"]
    assert offered("necrocode release ") == ["runner-1"]
    assert offered("necrocode why ") == ["runner-1", run, "alpha", "beta", f"{run}/alpha", f"{run}/beta"]
    assert offered("necrocode stop run") == ["runner-1"]
    assert offered(f"necrocode wait {run} al") == ["alpha"]
    assert offered("necrocode retry x be") == ["beta"]
    assert offered("necrocode run --resume ") == [run]
    ledger.release(lease)


def test_the_state_directory_is_the_one_that_the_words_name(
    cli: Cli, run: str, offered: Offered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "none-yet"
    assert offered(f"necrocode report --state-dir {other} ") == []
    assert offered(f"necrocode --state-dir {other} report ") == []
    monkeypatch.setenv("NECROCODE_STATE_DIR", str(other))
    assert offered(f"necrocode report --state-dir {cli.state} ") == [run]
    assert not other.exists()


def test_keys_and_values_are_offered(offered: Offered) -> None:
    assert offered("necrocode config j") == ["jobs"]
    assert offered("necrocode config set ret") == ["retries", "retention_days"]
    assert offered("necrocode config set workspace_mode ") == ["worktree", "clone", "none"]
    assert offered("necrocode config set li") == ["limit"]
    assert "codex" in offered("necrocode run --agent co")
    assert offered("necrocode run --workspace cl") == ["clone"]


def test_what_cannot_be_looked_at_offers_nothing_and_says_nothing(
    cli: Cli, run: str, offered: Offered, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cli.state / "runs" / run / "plan.json").write_text("{")
    assert offered("necrocode logs ") == []
    (cli.state / "VERSION").write_text("nonsense")
    assert offered("necrocode why ") == []
    (cli.where / "necrocode.toml").write_text("this is no TOML")
    monkeypatch.delenv("NECROCODE_STATE_DIR")
    assert offered("necrocode why ") == []


@pytest.fixture
def path(tmp_path: Path) -> str:
    shim = tmp_path / "bin" / "necrocode"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m necrocode "$@"\n')
    shim.chmod(0o755)
    return f"{shim.parent}{os.pathsep}{os.environ['PATH']}"


def shell(cli: Cli, path: str, *argv: str) -> str:
    done = subprocess.run(argv, env=cli.environment(PATH=path), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_bash_offers_a_task(cli: Cli, run: str, path: str) -> None:
    """As a person has it: the lines are read, a word is begun, and the function of the shell is called."""
    script = (
        'eval "$(necrocode completion bash)"; COMP_WORDS=(necrocode logs al); COMP_CWORD=2;'
        ' _necrocode_completion necrocode; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    assert shell(cli, path, "bash", "-c", script).split() == ["alpha"]


def test_fish_offers_a_task(cli: Cli, run: str, path: str) -> None:
    if not shutil.which("fish"):
        pytest.skip("fish is not installed")
    script = "necrocode completion fish | source; complete --do-complete 'necrocode logs al'"
    assert shell(cli, path, "fish", "-c", script).split() == ["alpha"]


def test_a_shell_that_is_not_named_is_asked_for_in_one_line(cli: Cli) -> None:
    done = cli("completion")
    assert done.returncode == 2 and "Choose from: bash, zsh, fish\n" in done.stderr
