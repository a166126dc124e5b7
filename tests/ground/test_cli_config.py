"""necrocode config, and what settings do: who says what counts, and what is a mistake."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from cli_call import Cli, calls

from necrocode import configured, settings
from necrocode.declared import FIELDS, SETTINGS, checked
from necrocode.errors import ConfigError
from necrocode.runs import Plan, runs
from necrocode.statedir import StateDir
from necrocode.task import parse_tasks

TASK = '[[task]]\nid = "a"\ncommand = ["true"]\n'


@pytest.fixture
def cli(state_root: Path, repository: Path) -> Iterator[Cli]:
    with calls(state_root, repository) as cli:
        yield cli


def user_file(cli: Cli) -> Path:
    path = Path(os.environ["XDG_CONFIG_HOME"]) / "necrocode" / "config.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def held(cli: Cli, key: str, **env: str) -> tuple[Any, str]:
    told = cli.json("config", **env)
    return told["settings"][key], told["origins"][key]


def test_each_place_counts_more_than_the_next(cli: Cli) -> None:
    assert held(cli, "jobs") == (None, "default")
    user_file(cli).write_text("jobs = 1\nretries = 1\n")
    assert held(cli, "jobs") == (1, str(user_file(cli)))
    (cli.where / "pyproject.toml").write_text("[tool.necrocode]\njobs = 2\n")
    assert held(cli, "jobs") == (2, f"{cli.where}/pyproject.toml [tool.necrocode]")
    (cli.where / "necrocode.toml").write_text("jobs = 3\n")
    assert held(cli, "jobs") == (3, f"{cli.where}/necrocode.toml")
    assert held(cli, "jobs", NECROCODE_JOBS="4") == (4, "environment NECROCODE_JOBS")
    assert held(cli, "retries") == (1, str(user_file(cli)))  # each key for itself
    below = cli.where / "src"
    assert cli.json("config", where=below)["settings"]["jobs"] == 3
    shown = cli("config", "--show-origin").stdout
    assert re.search(rf"^jobs +3  \({re.escape(str(cli.where))}/necrocode.toml\)$", shown, re.MULTILINE)
    assert re.search(r"^grace +10  \(default\)$", shown, re.MULTILINE)


def plan_of(cli: Cli, *args: str, **env: str) -> Plan:
    """The plan that a run has under these flags and this environment."""
    done = cli("run", "tasks.toml", "-q", *args, **env)
    assert done.returncode == 0, done.stderr
    state = StateDir(cli.state)
    return Plan.load(state, runs(state)[0])


def test_a_run_obeys_flag_environment_task_file_and_configuration(cli: Cli) -> None:
    (cli.where / "tasks.toml").write_text(TASK)
    (cli.where / "necrocode.toml").write_text(
        'jobs = 3\nretries = 2\ntimeout = 60\nworkspace_mode = "none"\n'
        "patience = 5\ngrace = 1\nheartbeat_timeout = 30\n"
    )
    plan = plan_of(cli)
    (task,) = plan.tasks
    assert (plan.jobs, task.retries, task.timeout, plan.mode) == (3, 2, 60.0, "none")
    assert (plan.patience, plan.grace, plan.heartbeat_timeout, plan.fail_fast) == (5.0, 1.0, 30.0, False)
    head = '[defaults]\njobs = 5\nretries = 0\nworkspace = "clone"\n'
    (cli.where / "tasks.toml").write_text(head + TASK)
    plan = plan_of(cli)
    assert (plan.jobs, plan.tasks[0].retries, plan.tasks[0].timeout, plan.mode) == (5, 0, 60.0, "clone")
    plan = plan_of(cli, NECROCODE_JOBS="6", NECROCODE_WORKSPACE_MODE="none", NECROCODE_FAIL_FAST="1")
    assert (plan.jobs, plan.mode, plan.fail_fast) == (6, "none", True)
    flags = ["-n", "7", "--retries", "4", "--keep-going", "--grace", "2", "--workspace", "none"]
    plan = plan_of(cli, *flags, NECROCODE_JOBS="6", NECROCODE_FAIL_FAST="1")
    assert (plan.jobs, plan.tasks[0].retries, plan.fail_fast, plan.grace) == (7, 4, False, 2.0)


def test_the_configured_agent_gets_the_prompts(cli: Cli) -> None:
    (cli.where / "tasks.toml").write_text('[[task]]\nid = "a"\nprompt = "do it"\n')
    assert cli("run", "tasks.toml", "--dry-run").returncode == 2
    (cli.where / "necrocode.toml").write_text("agent = 'sh -c \"exit 0\" {prompt}'\n")
    assert cli("run", "tasks.toml", "--dry-run").returncode == 0


def test_workspaces_and_state_are_where_the_file_says(cli: Cli, tmp_path: Path) -> None:
    state = tmp_path / "other-state"
    (cli.where / "necrocode.toml").write_text('state_dir = "../other-state"\nworkspaces = "../trees"\n')
    (cli.where / "tasks.toml").write_text(TASK)
    done = cli("run", "tasks.toml", "--keep", where=cli.where, NECROCODE_STATE_DIR="")
    assert done.returncode == 0, done.stderr
    assert (state / "VERSION").exists() and len(os.listdir(tmp_path / "trees")) == 1
    assert not (cli.state / "VERSION").exists()
    assert cli.json("status", where=cli.where / "src", NECROCODE_STATE_DIR="")["state_dir"] == str(state)
    assert cli.json("status")["state_dir"] == str(cli.state)  # the environment counts more
    assert cli.json("status", "--state-dir", str(tmp_path / "third"))["state_dir"] == str(tmp_path / "third")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("job = 3\n", "did you mean jobs"),
        ("retry = 3\n", "did you mean retries"),
        ("limit = 3\n", "necrocode config set limit"),
        ('jobs = "3"\n', "jobs"),
        ("jobs = 0\n", "at least 1"),
        ("jobs = true\n", "jobs"),
        ("timeout = nan\n", "timeout: it must be a number"),
        ("timeout = 0\n", "more than 0"),
        ("fail_fast = 1\n", "true or false"),
        ('workspace_mode = "cloud"\n', "clone"),
        ("jobs = \n", "necrocode.toml:1"),
        ("[jobs]\n", "jobs"),
    ],
)
def test_what_cannot_be_meant_names_the_file_and_the_word(cli: Cli, text: str, said: str) -> None:
    (cli.where / "necrocode.toml").write_text(text)
    (cli.where / "tasks.toml").write_text(TASK)
    for args in (["config"], ["run", "tasks.toml"]):
        wrong = cli(*args)
        assert wrong.returncode == 2, wrong.stderr
        assert said in wrong.stderr and "necrocode.toml" in wrong.stderr


def test_a_variable_that_cannot_be_meant_is_named(cli: Cli) -> None:
    wrong = cli("config", NECROCODE_JOBS="many")
    assert wrong.returncode == 2 and "$NECROCODE_JOBS" in wrong.stderr


def test_a_pyproject_that_is_not_about_us_is_not_read(cli: Cli) -> None:
    (cli.where / "pyproject.toml").write_text("this is not TOML\n")
    assert cli("config").returncode == 0
    (cli.where / "pyproject.toml").write_text('[project]\nname = "necrocode-user"\n')
    assert cli("config").returncode == 0


def test_the_machine_s_terms_are_set_as_ever(cli: Cli) -> None:
    assert cli("config").stdout == "limit none\n"
    assert cli("config", "set", "limit", "2").stdout == "limit 2\n"
    assert cli("config", "limit").stdout == "2\n"
    assert not (cli.where / "necrocode.toml").exists()


def test_setting_a_key_changes_its_line_and_no_other(cli: Cli) -> None:
    file = cli.where / "necrocode.toml"
    file.write_text("# ours\n# jobs = 4        how many\ngrace = 3  # patient\n\n# the end\n")
    file.chmod(0o640)
    assert cli("config", "set", "jobs", "6").returncode == 0
    assert file.read_text() == "# ours\njobs = 6\ngrace = 3  # patient\n\n# the end\n"
    assert file.stat().st_mode & 0o777 == 0o640
    assert cli("config", "set", "agent", 'mine "{prompt}"').returncode == 0
    assert cli("config", "set", "fail_fast", "yes").returncode == 0
    assert cli("config", "set", "grace", "none").returncode == 0
    assert file.read_text().splitlines()[:2] == ["# ours", "jobs = 6"]
    assert cli("config", "agent").stdout == 'mine "{prompt}"\n'
    assert cli("config", "fail_fast").stdout == "true\n"
    assert held(cli, "grace") == (10.0, "default")
    assert os.listdir(cli.where).count("necrocode.toml") == 1 and not list(cli.where.glob(".necrocode.toml*"))


@pytest.mark.parametrize(
    ("key", "text"), [("jobs", "1234567"), ("timeout", "1234567"), ("grace", "0.125"), ("timeout", "1234567.25")]
)
def test_a_number_is_written_as_it_was_meant(cli: Cli, key: str, text: str) -> None:
    assert cli("config", "set", key, text).returncode == 0
    assert f"{key} = {text}\n" in (cli.where / "necrocode.toml").read_text()
    assert cli("config", key).stdout == f"{text}\n"


def test_setting_for_oneself_writes_the_user_s_file(cli: Cli) -> None:
    assert cli("config", "set", "jobs", "6", "--user").returncode == 0
    assert held(cli, "jobs") == (6, str(user_file(cli)))
    assert not (cli.where / "necrocode.toml").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["set", "job", "3"], "did you mean jobs"),
        (["set", "jobs", "0"], "at least 1"),
        (["set", "workspace_mode", "none-at-all"], "worktree"),
        (["set"], "cannot be set"),
        (["set", "quota", "api"], "cannot be set"),
        (["show", "jobs"], "cannot be understood"),
        (["job"], "did you mean jobs"),
    ],
)
def test_what_cannot_be_set_changes_nothing(cli: Cli, words: list[str], said: str) -> None:
    wrong = cli("config", *words)
    assert wrong.returncode == 2 and said in wrong.stderr, wrong.stderr
    assert not (cli.where / "necrocode.toml").exists()


def test_a_file_that_a_program_should_not_change_is_left_alone(cli: Cli) -> None:
    file = cli.where / "necrocode.toml"
    text = 'agent = """\njobs = 3\n{prompt}"""\n'
    file.write_text(text)
    wrong = cli("config", "set", "agent", "codex")
    assert wrong.returncode == 2 and 'write into it: agent = "codex"' in wrong.stderr
    assert file.read_text() == text


CHANGES = {
    ("", "jobs = 1"): "jobs = 1\n",
    ("a = 1\n[t]\njobs = 5\n", "jobs = 1"): "a = 1\njobs = 1\n[t]\njobs = 5\n",
    ("jobs=2\r\na = 1\n", "jobs = 1"): "jobs = 1\na = 1\n",
    ("jobs = 2\n", None): "\n",
    ("a = 1\n", None): "a = 1\n",
}


@pytest.mark.parametrize(("before", "line"), CHANGES)
def test_the_text_of_a_file_is_changed_in_one_place(before: str, line: str | None) -> None:
    assert configured.changed(before, "jobs", line, Path("f")) == CHANGES[before, line]


# One declaration


def test_flags_of_run_are_made_of_the_declaration() -> None:
    from necrocode.commands.run import command

    made = {option.name: option for option in command.params if isinstance(option, click.Option)}
    for key, setting in SETTINGS.items():
        if setting.of == "run":
            assert made[key].help == setting.described
            assert {*made[key].opts, *made[key].secondary_opts} == set(re.split(r",|/", ",".join(setting.options)))


def test_what_a_program_is_told_comes_from_the_same_declaration() -> None:
    """RunnerConfig: the names, bounds and sentences of what the command line knows too."""
    from necrocode.agent_runner import RunnerConfig

    assert set(FIELDS) <= set(RunnerConfig.model_fields)
    for field, setting in FIELDS.items():
        made = RunnerConfig.model_fields[field]
        assert (made.default, made.description) == (setting.program, setting.described)
        if setting.least is not None:
            wrong = setting.least if setting.above else setting.least - 1
            with pytest.raises(ConfigError, match=field):
                RunnerConfig(**{field: wrong})
            with pytest.raises(ConfigError, match=setting.key):
                checked({setting.key: wrong}, "a file")


def test_a_program_may_take_what_files_and_environment_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RunnerConfig.load: file, environment, and what is given, in the order of the command line."""
    from necrocode.agent_runner import RunnerConfig

    for setting in SETTINGS.values():
        monkeypatch.delenv(setting.variable, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))
    assert RunnerConfig.load(tmp_path) == RunnerConfig()
    (tmp_path / "necrocode.toml").write_text(
        'agent = "codex"\ngrace = 1\ntimeout = 60\nheartbeat_timeout = 20\nstate_dir = "s"\njobs = 3\n'
    )
    monkeypatch.setenv("NECROCODE_GRACE", "2")
    config = RunnerConfig.load(tmp_path, heartbeat_timeout_seconds=30, max_parallel_runners=2)
    assert (config.grace_seconds, config.default_timeout_seconds, config.heartbeat_timeout_seconds) == (2.0, 60.0, 30.0)
    assert config.coordination_dir == tmp_path / "s" and config.max_parallel_runners == 2
    assert config.agent[0] == "codex" and any("{prompt}" in part for part in config.agent)
    assert config.capacity_timeout_seconds == 3600.0  # nobody said anything
    (tmp_path / "necrocode.toml").write_text("grase = 1\n")
    with pytest.raises(ConfigError, match="grase") as wrong:
        RunnerConfig.load(tmp_path)
    assert "did you mean grace" in wrong.value.hint


@pytest.mark.parametrize("args", [["status"], ["config", "--show-origin"]])
def test_looking_needs_no_models(cli: Cli, args: list[str]) -> None:
    """Whoever only looks does not import what reads task files: that takes longer than the looking."""
    code = f"import sys; from necrocode.cli import main; main({args!r}); sys.exit('pydantic' in sys.modules)"
    environment = cli.environment()
    ran = subprocess.run([sys.executable, "-c", code], cwd=cli.where, env=environment, capture_output=True)
    assert ran.returncode == 0, ran.stderr


def test_the_files_say_what_task_files_leave_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "necrocode.toml").write_text('agent = "x {prompt}"\nretries = 3\n')
    found = settings.resolve(tmp_path, {"jobs": 2})
    assert found.now("jobs") == 2 and found.now("agent") is None
    text = json.dumps({"task": [{"id": "a", "prompt": "p"}, {"id": "b", "prompt": "p", "retries": 0, "agent": "y"}]})
    first, second = parse_tasks(text, format="json", base=found.base).tasks
    assert (first.agent, first.retries, second.agent, second.retries) == ("x {prompt}", 3, "y", 0)
    with pytest.raises(ConfigError, match="the command line"):
        settings.resolve(tmp_path, {"jobs": 0})
