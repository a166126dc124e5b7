"""Every command line that a page shows is one that the command line takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from necrocode.cli import VERBS, group
from necrocode.door import Door

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


def lines() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            for found in re.findall(r"(?:^|\$\(|')necrocode ([^\n|>&#)]*)", block, re.MULTILINE):
                yield page.name, found.split("' ")[0].strip()


@pytest.mark.parametrize(("page", "line"), sorted(set(lines())))
def test_a_command_line_of_a_page_is_understood(page: str, line: str) -> None:
    words = shlex.split(re.sub(r"\$\$", "4711", line))
    context = click.Context(group, obj=Door())
    arguments = list(words)
    while arguments and arguments[0].startswith("-"):
        if arguments.pop(0) in ("--version", "-h", "--help"):
            return
    command = group.get_command(context, arguments[0])
    assert command is not None, f"{page} shows `necrocode {line}`"
    command.make_context(arguments[0], arguments[1:], parent=context)


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_has_its_page_and_its_row(verb: str) -> None:
    page = ROOT / "docs" / "commands" / f"{verb}.md"
    assert page.read_text().startswith(f"# necrocode {verb}\n")
    assert f"[necrocode {verb}]({verb}.md)" in (ROOT / "docs" / "commands" / "README.md").read_text()


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_told_by_its_help(verb: str) -> None:
    context = click.Context(group, obj=Door())
    command = group.get_command(context, verb)
    assert command is not None
    shown = command.get_help(click.Context(command, info_name=verb, parent=context))
    assert "--json" in shown and "--state-dir" in shown
