"""File and branch names of the S2 coordinator belong to repositories, however a work space reaches them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from necrocode.agent_runner import ParallelCoordinator
from necrocode.errors import ConfigError


def git(where: Path, *args: str) -> None:
    subprocess.run(["git", "-c", "user.name=T", "-c", "user.email=t@e.org", *args], cwd=where, check=True)


def repository(path: Path) -> Path:
    path.mkdir()
    git(path, "init", "-q", "-b", "main")
    (path / "src").mkdir()
    (path / "src" / "a.py").touch()
    git(path, "add", ".")
    git(path, "commit", "-qm", "first")
    return path


@pytest.fixture
def coordinator(tmp_path: Path):
    made = ParallelCoordinator(tmp_path / "state")
    yield made
    for seen in made.ledger.snapshot().runners:
        made.unregister_runner(seen.record.runner_id)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return repository(tmp_path / "repo")


def reason(coordinator: ParallelCoordinator, workspace: Path, **what) -> str | None:
    return coordinator.try_register("two", "t", "s", workspace, **what).reason


@pytest.mark.parametrize("kind", ["worktree", "clone", "clone of a clone"])
def test_every_place_of_one_repository_meets(coordinator, repo, tmp_path, kind):
    """S2-03, S2-04: linked work trees and clones are the same files and branches."""
    other = tmp_path / "other"
    if kind == "worktree":
        git(repo, "worktree", "add", "-q", str(other), "-b", "side")
    else:
        git(tmp_path, "clone", "-q", str(repo), str(other))
    if kind == "clone of a clone":
        other, first = tmp_path / "third", other
        git(tmp_path, "clone", "-q", str(first), str(other))
    assert coordinator.register_runner("one", "t", "s", repo, files=["src/a.py"], branches=["fix"])
    assert reason(coordinator, other, files=["./src/../src/a.py"]) == "file"
    assert reason(coordinator, other, files=["src"]) == "file"
    assert reason(coordinator, other, branches=["fix"]) == "branch"
    assert reason(coordinator, other, branches=["refs/heads/fix/deep"]) == "branch"
    assert reason(coordinator, other, files=["src/b.py"], branches=["other"]) is None


def test_two_repositories_do_not_meet(coordinator, repo, tmp_path):
    """The same names elsewhere are other files and branches."""
    assert coordinator.register_runner("one", "t", "s", repo, files=["src/a.py"], branches=["fix"])
    other = repository(tmp_path / "unrelated")
    assert reason(coordinator, other, files=["src/a.py"], branches=["fix"]) is None


def test_a_path_into_another_repository_is_that_repositorys(coordinator, repo, tmp_path):
    """Whoever reaches it from outside, with or without a repository of its own, meets those inside."""
    assert coordinator.register_runner("one", "t", "s", repo, files=["src/a.py"])
    other, plain = repository(tmp_path / "unrelated"), tmp_path / "plain"
    plain.mkdir()
    for elsewhere in (other, plain):
        for spelling in (repo / "src" / "a.py", "../repo/src/a.py", "../repo/*/a.py", repo / "src"):
            assert reason(coordinator, elsewhere, files=[str(spelling)]) == "file", spelling
        assert reason(coordinator, elsewhere, files=[str(repo / "src" / "b.py")]) is None
        coordinator.unregister_runner("two")


def test_a_name_with_brackets_meets_itself(coordinator, repo, tmp_path):
    """In one work tree the file is there and so is its name; in the other one it might be a pattern."""
    git(repo, "worktree", "add", "-q", str(tmp_path / "other"), "-b", "side")
    (tmp_path / "other" / "src" / "[id].tsx").touch()
    assert coordinator.register_runner("one", "t", "s", repo, files=["src/[id].tsx"])
    assert reason(coordinator, tmp_path / "other", files=["src/[id].tsx"]) == "file"


def test_a_subdirectory_names_its_own_files(coordinator, repo):
    """A work space below the top of its repository: names are relative to it."""
    assert coordinator.register_runner("one", "t", "s", repo / "src", files=["a.py"])
    question = coordinator.detect_conflicts("asker", files=["src/a.py"], workspace_path=repo)
    assert "File conflict with runner one: src/a.py" in question


def test_a_workspace_made_anew_is_asked_again(coordinator, tmp_path):
    """First no repository, then one: what is known of a directory does not outlive it."""
    place = tmp_path / "place"
    place.mkdir()
    assert coordinator.register_runner("one", "t", "s", place, files=["a.py"])
    (before,) = coordinator.get_runners()
    coordinator.unregister_runner("one")
    place.rmdir()
    repository(place)
    assert coordinator.register_runner("one", "t", "s", place, files=["a.py"])
    (after,) = coordinator.get_runners()
    assert [claim.kind for claim in before.claims if claim.family == "file"] == ["file:"]
    assert [claim.kind for claim in after.claims if claim.family == "file"] == [f"file:{place / '.git'}"]


@pytest.mark.parametrize("branch", ["..", "a b", "-x", "a.lock", "HEAD"])
def test_a_name_that_git_would_not_take(coordinator, repo, branch):
    with pytest.raises(ConfigError):
        coordinator.register_runner("one", "t", "s", repo, branches=[branch])
    assert coordinator.get_concurrent_count() == 0


def test_patterns(coordinator, repo):
    """Globs are claims on all they can name, now or later."""
    assert coordinator.register_runner("one", "t", "s", repo, files=["src/*.py"])
    assert coordinator.register_runner("asker", "t", "s", repo.parent / "elsewhere")
    question = ["src/new.py", "README"]
    assert coordinator.detect_conflicts("asker", files=question, workspace_path=repo) == [
        "File conflict with runner one: src/new.py",
        f"Workspace conflict with runner one: {repo}",
    ]


ASKED = {
    "text": lambda: ["../main.py"],
    "a path": lambda: [Path("../main.py")],
    "a generator": lambda: (name for name in ["../main.py"]),
}


@pytest.mark.parametrize("kind", ASKED)
def test_a_question_takes_what_a_registration_takes(coordinator, repo, kind):
    """S2-03: also out of a subdirectory; and whoever asks for what is its own is told of nobody."""
    assert coordinator.register_runner("one", "t", "s", repo / "src", files=ASKED[kind]())
    assert coordinator.detect_conflicts("one", files=ASKED[kind]()) == []
    found = coordinator.detect_conflicts("two", files=ASKED[kind](), workspace_path=repo / "src")
    assert found[0] == "File conflict with runner one: main.py"


def test_a_stranger_asks_with_paths(coordinator, repo):
    """Names of no place are taken as they are written, a path's too."""
    assert coordinator.register_runner("one", "t", "s", repo, files=[Path("main.py")], branches=["fix"])
    asked = {"files": (path for path in [Path("main.py")]), "branches": (name for name in ["fix"])}
    assert coordinator.detect_conflicts("two", **asked) == [
        "File conflict with runner one: main.py",
        "Branch conflict with runner one: fix",
    ]
