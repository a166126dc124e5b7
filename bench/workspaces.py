"""Workspaces of a repository with many files: one, and eight at once, against plain git one after another."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from bench.compare import interleaved, less, place, timed, told
from necrocode import git, workspace

FILES, AT_ONCE, ROUNDS = 10_000, 8, 5


def main() -> None:
    root = Path(tempfile.mkdtemp(dir=place(), prefix="necrocode-bench-"))
    try:
        repository = root / "repository"
        files = less(FILES)
        for n in range(files):
            path = repository / f"d{n % 50}" / f"f{n}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"file {n}\n" * 20)
        for argv in (
            ["init", "-q"],
            ["add", "-A"],
            ["-c", "user.name=b", "-c", "user.email=b@b", "commit", "-qm", "1"],
        ):
            subprocess.run(["git", *argv], cwd=repository, check=True)
        told(
            f"one workspace, {files} files",
            interleaved({"git worktree add": lambda: _git(root, 1), "necrocode": lambda: _ours(root, 1)}, ROUNDS),
            "ms",
        )
        both = {
            f"git, {AT_ONCE} one after another": lambda: _git(root, AT_ONCE),
            f"necrocode, {AT_ONCE} at once": lambda: _ours(root, AT_ONCE),
        }
        told(f"{AT_ONCE} workspaces, {files} files", interleaved(both, ROUNDS), "ms")
    finally:
        shutil.rmtree(root)


def _git(root: Path, count: int) -> float:
    def add() -> None:
        for n in range(count):
            subprocess.run(
                ["git", "worktree", "add", "-q", "-b", f"g{n}", str(root / f"g{n}")],
                cwd=root / "repository",
                check=True,
            )

    seconds = timed(add)
    for n in range(count):
        subprocess.run(
            ["git", "worktree", "remove", "--force", str(root / f"g{n}")], cwd=root / "repository", check=True
        )
        subprocess.run(["git", "branch", "-qD", f"g{n}"], cwd=root / "repository", check=True)
    return seconds


def _ours(root: Path, count: int) -> float:
    def prepare() -> None:
        pids = [_forked(root, n) for n in range(count)]
        assert all(os.waitpid(pid, 0)[1] == 0 for pid in pids)

    seconds = timed(prepare)
    repository = git.open_repository(root / "repository")
    for left in workspace.list_leftovers(repository, root / "state"):
        workspace.retire(left.workspace, landed=True, force=True)
    return seconds


def _forked(root: Path, n: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    (root / "state" / "mutex").mkdir(parents=True, exist_ok=True)
    repository = git.open_repository(root / "repository")
    workspace.prepare(
        repository, state_root=root / "state", path=root / "ours" / f"w{n}", branch=f"necrocode/w{n}", holder=f"w{n}"
    )
    os._exit(0)
