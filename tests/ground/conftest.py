"""What the ground tests stand on: real repositories, made with plain git, away from the user's settings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from byhand import copied, sh


def _settle(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / ".gitconfig").write_text(
        "[user]\n\tname = Ada\n\temail = ada@example.org\n[init]\n\tdefaultBranch = main\n[gc]\n\tauto = 0\n"
    )
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _own_git_settings(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    _settle(tmp_path_factory.mktemp("home"), monkeypatch)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as monkeypatch:
        _settle(tmp_path_factory.mktemp("home"), monkeypatch)
        sh("git", "init", "-q", "-b", "main", cwd=root)
        (root / "README.md").write_text("one\n")
        (root / ".gitignore").write_text("*.log\n.env\nnode_modules/\n")
        sh("git", "add", "-A", cwd=root)
        sh("git", "commit", "-qm", "first", cwd=root)
        (root / "src").mkdir()
        (root / "src" / "a.py").write_text("a = 1\n" * 20)
        (root / "src" / "b.py").write_text("b = 1\n" * 20)
        sh("git", "add", "-A", cwd=root)
        sh("git", "commit", "-qm", "second", cwd=root)
    return root


@pytest.fixture
def repository(template: Path, tmp_path: Path) -> Path:
    """A repository with two commits on `main`: README.md, src/a.py, src/b.py, and a .gitignore with *.log, .env."""
    return copied(template, tmp_path / "repo")
