"""A template in which a shell would read a text of a task as a program is refused; any other is left as it is."""

import re

import pytest

from necrocode.errors import ConfigError
from necrocode.playbook import checked_step
from necrocode.shells import checked
from necrocode.work import checked_agent

HOLE = re.compile("PROMPT")


@pytest.mark.parametrize(
    "argv",
    [
        ["sh", "-c", "echo PROMPT"],
        ["/bin/bash", "-lc", "PROMPT"],
        ["bash", "-e", "-c", "echo PROMPT", "sh"],
        ["bash", "-c", "-e", "echo PROMPT"],
        ["bash", "-ceo", "pipefail", "echo PROMPT"],
        ["bash", "--rcfile", "x", "-c", "echo PROMPT"],
        ["bash", "--norc", "-c", "--", "echo PROMPT"],
        ["zsh", "+x", "-fc", "echo 'PROMPT'"],
        ["fish", "--command", "echo PROMPT"],
        ["fish", "--command=echo PROMPT"],
        ["sh", "-c", 'exec "$@"', "sh", "bash", "-c", "echo PROMPT"],
        ["fish", "-c", "exec $argv", "bash", "-c", "echo PROMPT"],
        ["env", "-i", "A=b", "dash", "-c", "echo PROMPT"],
        ["nice", "-n", "9", "docker", "run", "image", "ksh", "-c", "echo PROMPT"],
    ],
)
def test_what_a_shell_would_read(argv):
    with pytest.raises(ConfigError, match="PROMPT stands in the script of") as told:
        checked(argv, HOLE, "here")
    assert str(told.value).startswith("here: ") and "PROMPT" in told.value.hint


@pytest.mark.parametrize(
    "argv",
    [
        ["sh", "-c", 'echo "$1"', "sh", "PROMPT"],
        ["bash", "-lc", "-e", "exec agent", "PROMPT"],
        ["bash", "-c", 'exec agent "$@"', "bash", "-c", "PROMPT"],
        ["sh", "script.sh", "-c", "PROMPT"],
        ["sh", "PROMPT"],
        ["bash", "--norc", "script", "PROMPT"],
        ["agent", "-c", "PROMPT"],
        ["env", "agent", "PROMPT"],
        ["agent", "PROMPT", "sh"],
        ["sh", "-c"],
        ["sh"],
    ],
)
def test_what_a_shell_does_not_read(argv):
    assert checked(argv, HOLE) == tuple(argv)


@pytest.mark.parametrize(("shell", "argument"), [("bash", "'... \"$1\"' sh PROMPT"), ("fish", "'... $argv[1]' PROMPT")])
def test_it_says_how_a_script_gets_it(shell, argument):
    with pytest.raises(ConfigError) as told:
        checked([shell, "-c", "PROMPT"], HOLE)
    assert told.value.hint.endswith(f": {shell} -c {argument}")


@pytest.mark.parametrize("name", ["prompt", "workspace", "branch", "task_id", "title"])
def test_all_that_is_filled_in_is_looked_for(name):
    with pytest.raises(ConfigError, match=name):
        checked_agent(["sh", "-c", f"x {{{name}}}"])
    with pytest.raises(ConfigError, match=name):
        checked_step(["sh", "-c", f"x ${{{name}}}"])
    assert checked_agent(["sh", "-c", f"${{{name[1:]}}} {{other}}"]) and checked_step(["sh", "-c", f"${name}"])
