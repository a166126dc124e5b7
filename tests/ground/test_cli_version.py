"""necrocode version, schema and completion: what a person, an editor and a shell are told."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_call import ROOT, Cli, calls

import necrocode


@pytest.fixture
def cli(state_root: Path, tmp_path: Path) -> Iterator[Cli]:
    with calls(state_root, tmp_path) as cli:
        yield cli


def test_the_versions_of_everything_are_told(cli: Cli) -> None:
    told = cli.json("version")
    assert told["necrocode"] == necrocode.__version__
    assert told["python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert told["git"][0].isdigit()
    assert told["packages"]["filelock"].partition(".")[0] >= "4"
    shown = cli("version").stdout
    assert all(name in shown for name in ("necrocode", "python", "git", *told["packages"]))


def test_a_missing_git_is_a_missing_version(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert cli.json("version", PATH=str(tmp_path / "empty"))["git"] is None
    assert cli("version", PATH=str(tmp_path / "empty")).returncode == 0


def test_the_shipped_schema_is_that_of_the_models(cli: Cli) -> None:
    printed = cli("schema")
    assert printed.returncode == 0
    assert printed.stdout == (ROOT / "necrocode" / "tasks.schema.json").read_text()
    assert cli.json("schema") == json.loads(printed.stdout)


def test_the_schema_takes_what_the_reader_takes_and_refuses_a_typo(cli: Cli) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = cli.json("schema")
    jsonschema.Draft202012Validator.check_schema(schema)
    good = {"task": [{"id": "a", "command": ["true"], "files": ["src/**"], "retries": 2}]}
    jsonschema.validate(good, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"task": [{"id": "a", "comand": ["true"]}]}, schema)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_what_the_shell_can_read(cli: Cli, shell: str, tmp_path: Path) -> None:
    printed = cli("completion", shell)
    assert printed.returncode == 0 and "_NECROCODE_COMPLETE" in printed.stdout
    assert cli.json("completion", shell)["script"] == printed.stdout
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "script").write_text(printed.stdout)
    assert subprocess.run([shell, "-n", tmp_path / "script"], check=False).returncode == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [("necrocode sta", "status"), ("necrocode status --wat", "--watch"), ("necrocode completion f", "fish")],
)
def test_what_was_begun_is_completed(cli: Cli, words: str, expected: str) -> None:
    at = str(len(words.split()) - 1)
    found = cli(COMP_WORDS=words, COMP_CWORD=at, _NECROCODE_COMPLETE="bash_complete")
    assert expected in found.stdout, found.stderr


def test_an_unknown_command_completes_to_nothing_and_says_nothing(cli: Cli) -> None:
    found = cli(COMP_WORDS="necrocode bogus x", COMP_CWORD="2", _NECROCODE_COMPLETE="bash_complete")
    assert (found.stdout.strip(), found.stderr) == ("", "")


def test_another_shell_is_a_mistake(cli: Cli) -> None:
    wrong = cli("completion", "tcsh")
    assert wrong.returncode == 2 and "bash" in wrong.stderr


def test_bash_completes_with_the_printed_lines(cli: Cli, tmp_path: Path) -> None:
    """The whole way: bash reads the lines, calls the function on a half-written word, and has the candidates."""
    shim = tmp_path / "bin" / "necrocode"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m necrocode "$@"\n')
    shim.chmod(0o755)
    script = (
        'eval "$(necrocode completion bash)"; COMP_WORDS=(necrocode do); COMP_CWORD=1;'
        " _necrocode_completion necrocode; echo ${COMPREPLY[@]}"
    )
    env = cli.environment(PATH=f"{shim.parent}{os.pathsep}{os.environ['PATH']}")
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert "doctor" in done.stdout, done.stderr
