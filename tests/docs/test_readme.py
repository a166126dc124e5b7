"""What README and docs show is what runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "bench").glob("*.md"),
        *(ROOT / "examples").glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
    ]
)


def block(name: str) -> str:
    match = re.search(rf"<!-- ci: {re.escape(name)} -->\n```\w*\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert match, name
    return match[1]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A shell's environment in which `necrocode` is this checkout's, with a state directory of its own."""
    shim = tmp_path / "bin" / "necrocode"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m necrocode "$@"\n')
    shim.chmod(0o755)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("GIT_", "NECROCODE_"))}
    path = f"{shim.parent}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "PATH": path, "PYTHONPATH": str(ROOT), "NECROCODE_STATE_DIR": str(tmp_path / "state")}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    place = tmp_path / "repository"
    place.mkdir()
    identity = ["-c", "user.name=reader", "-c", "user.email=reader@localhost"]
    (place / "README").write_text("a repository\n")
    for argv in (["init", "-q", "-b", "main"], ["add", "--all"], [*identity, "commit", "-qm", "start"]):
        subprocess.run(["git", *argv], cwd=place, check=True)
    return place


def test_the_ten_lines_of_the_readme_run(repository: Path, environment: dict[str, str]) -> None:
    (repository / "tasks.toml").write_text(block("tasks.toml"))
    done = subprocess.run(
        ["bash", "-euxc", block("first-run")],
        cwd=repository,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    branches = subprocess.run(
        ["git", "branch", "--list", "necrocode/*", "--format=%(refname:short)"],
        cwd=repository,
        capture_output=True,
        text=True,
    ).stdout.split()
    shout = next(branch for branch in branches if branch.endswith("/shout"))
    shown = subprocess.run(["git", "show", f"{shout}:hello.py"], cwd=repository, capture_output=True, text=True)
    assert shown.stdout == 'print("HELLO")\n'


def test_the_python_of_the_readme_runs(tmp_path: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", block("library")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "admitted with token" in done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_the_python_about_configuration_runs(tmp_path: Path, environment: dict[str, str]) -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    (snippet,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    argv = [sys.executable, "-c", f"{snippet}\nassert config.max_parallel_runners == 3"]
    done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_page_about_task_files_names_every_key() -> None:
    from necrocode.task import Task

    page = (ROOT / "docs" / "task-files.md").read_text()
    missing = [key for key in Task._fields if f"`{key}`" not in page]
    assert not missing


def test_a_fresh_state_directory_explains_itself(tmp_path: Path) -> None:
    """Every folder that is made is named in the README that is written beside it."""
    from necrocode.statedir import FOLDERS, StateDir

    StateDir(tmp_path / "state")
    text = (tmp_path / "state" / "README.md").read_text()
    assert [folder for folder in FOLDERS if folder not in text] == []
