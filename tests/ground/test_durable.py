"""What is flushed to the disk; that it is enough is tried by `python -m tests.soak power`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from necrocode import git, order, workspace
from necrocode.errors import StateUnusable
from necrocode.statedir import StateDir


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The places that this process has flushed, in order."""
    found: list[str] = []
    fsync = os.fsync

    def told(descriptor: int) -> None:
        found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", told)
    return found


def test_the_version_of_a_fresh_state_directory(state_root: Path, flushed: list[str]) -> None:
    StateDir(state_root / "state")
    assert [Path(place).name.partition(".")[0] for place in flushed] == ["VERSION", "state"]


def test_who_carries_an_attempt_once_for_each_process(state_root: Path, flushed: list[str]) -> None:
    for name in ("a.1", "b.1"):
        (state_root / name).mkdir()
        order._card = None if name == "a.1" else order._card
        assert order.take(state_root / name)
    assert [Path(place).name.partition(".")[0] for place in flushed] == ["runner"]


@pytest.mark.parametrize("mode", ["worktree", "clone"])
@pytest.mark.parametrize("by", ["agent", "runner"])
def test_a_commit_and_all_that_it_needs(
    repository: Path, state_root: Path, tmp_path: Path, mode: workspace.Mode, by: str, flushed: list[str]
) -> None:
    home = git.open_repository(repository)
    made = workspace.prepare(
        home, state_root=state_root, path=tmp_path / "work", branch="necrocode/r/t", holder="r", mode=mode
    )
    (made.path / "new").write_text("work\n")
    if by == "agent":
        subprocess.run(["git", "add", "new"], cwd=made.path, check=True)
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "w"], cwd=made.path, check=True
        )
    commit = workspace.commit(made, "work") or workspace.collect(made)
    names = [f"{name}^{{{kind}}}" for name, kind in ((commit, "commit"), (commit, "tree"))]
    objects = [git.run("rev-parse", name, cwd=repository).stdout.strip() for name in (*names, f"{commit}:new")]
    loose = [home.common_dir / "objects" / name[:2] / name[2:] for name in objects]
    wanted = [path for path in loose if path.exists()]  # what was fetched lies in a pack, which git has flushed
    assert wanted or (by, mode) == ("agent", "clone")
    wanted += [path.parent for path in wanted] + [home.common_dir / "refs/heads/necrocode/r/t"]
    assert set(map(str, wanted)) <= set(flushed)


def test_a_disk_that_cannot_flush_is_told(
    repository: Path, state_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = git.open_repository(repository)
    made = workspace.prepare(home, state_root=state_root, path=tmp_path / "work", branch="necrocode/r/t", holder="r")
    (made.path / "new").write_text("work\n")

    def refuse(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StateUnusable, match="Input/output error"):
        workspace.commit(made, "work")


def test_our_gits_flush_their_objects_and_refs(repository: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace2"
    (repository / "new").write_text("work\n")
    env = {"GIT_TRACE2_PERF": str(trace), "GIT_TRACE2_CONFIG_PARAMS": "core.fsync"}
    git.run("add", "new", cwd=repository, env=env)
    assert "core.fsync:objects,derived-metadata,reference" in trace.read_text()
