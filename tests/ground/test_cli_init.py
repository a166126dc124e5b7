"""necrocode init: what it writes runs, says nothing by itself, and never replaces anything."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_call import ROOT, Cli, calls

from necrocode.declared import SETTINGS


@pytest.fixture
def cli(state_root: Path, repository: Path) -> Iterator[Cli]:
    with calls(state_root, repository) as cli:
        yield cli


FILES = ["necrocode.toml", "tasks.toml", ".necrocode/tasks.schema.json"]


def test_what_is_written_runs(cli: Cli) -> None:
    told = cli.json("init", where=cli.where / "src")
    assert told == {"directory": str(cli.where), "wrote": FILES, "kept": []}
    done = cli.json("run", "tasks.toml")
    assert {task["task_id"]: task["status"] for task in done["tasks"]} == {"hello": "done", "shout": "done"}


def test_the_configuration_explains_every_setting_and_says_none(cli: Cli) -> None:
    before = cli.json("config")
    cli("init")
    text = (cli.where / "necrocode.toml").read_text()
    assert tomllib.loads(text) == {}
    assert cli.json("config") == before
    for name, setting in SETTINGS.items():
        assert setting.described in text and re.search(rf"^# {name} = ", text, re.MULTILINE)
    bare = re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE)  # every # taken away: all of it can be meant
    assert set(tomllib.loads(bare)) == set(SETTINGS)
    (cli.where / "necrocode.toml").write_text(bare)
    assert cli("config", "--show-origin").returncode == 0


def test_a_setting_takes_the_place_of_its_comment(cli: Cli) -> None:
    cli("init")
    before = (cli.where / "necrocode.toml").read_text().splitlines()
    assert cli("config", "set", "jobs", "2").returncode == 0
    after = (cli.where / "necrocode.toml").read_text().splitlines()
    changed = [(was, now) for was, now in zip(before, after, strict=True) if was != now]
    assert changed == [("# jobs = 4", "jobs = 2")]


def test_the_schema_is_where_the_first_line_says(cli: Cli) -> None:
    cli("init")
    first = (cli.where / "tasks.toml").read_text().splitlines()[0]
    named = cli.where / first.removeprefix("#:schema ")
    assert named.read_text() == (ROOT / "necrocode" / "tasks.schema.json").read_text()


def test_nothing_is_replaced(cli: Cli, tmp_path: Path) -> None:
    (cli.where / "tasks.toml").write_text("mine\n")
    (cli.where / "necrocode.toml").symlink_to(tmp_path / "nowhere")
    told = cli("init")
    assert told.returncode == 0 and "kept" in told.stderr
    assert (cli.where / "tasks.toml").read_text() == "mine\n"
    assert not (tmp_path / "nowhere").exists()
    assert cli.json("init")["kept"] == FILES


def test_a_directory_that_is_named(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    assert cli.json("init", str(tmp_path / "place"))["wrote"] == FILES
    assert not (cli.where / "tasks.toml").exists()
    assert cli("init", str(tmp_path / "missing")).returncode == 2
