"""Nothing that only one directory holds is lost: it is saved to refs/necrocode/snap/<name>/<n> first."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from necrocode import git
from necrocode.errors import GitFailed, WorkspaceKept
from necrocode.git import Repository
from necrocode.workspace.entries import git_link, refs_under
from necrocode.workspace.place import SNAPSHOTS, Workspace, ref_name


def preserve_linked(workspace: Workspace) -> tuple[str, ...]:
    path, repository = workspace.path, workspace.repo
    link = git_link(path, repository)
    if not any(path.iterdir()):
        return ()
    if link == "own" or (link == "foreign" and os.path.lexists(path / ".git")):
        raise WorkspaceKept(str(path), "its .git leads to another repository now")
    if link != "linked":
        parent = git.branch_tip(workspace.branch, cwd=repository.common_dir) or workspace.base
        return save_files(workspace, parent, git_dir=repository.common_dir)
    head = head_of(workspace)
    if saved := save_files(workspace, head):
        return saved
    return () if git.is_held(head, cwd=repository.common_dir) else (save_ref(repository, path, head),)


def head_of(workspace: Workspace) -> str:
    """The commit that is checked out, or, on a branch without commits, the base."""
    return git.rev_parse("HEAD" if git.has_commit(workspace.path) else workspace.base, cwd=workspace.path)


def save_files(workspace: Workspace, parent: str, git_dir: Path | None = None) -> tuple[str, ...]:
    tree = git.work_tree(workspace.path, parent=parent, git_dir=git_dir)
    if not tree.dirty:
        return ()
    return (
        _next_snapshot(
            workspace.repo, workspace.path,
            lambda ref: git.snapshot(workspace.path, ref, parent=parent, git_dir=git_dir, tree=tree),
        ),
    )  # fmt: skip


def save_ref(repository: Repository, path: Path, commit: str) -> str:
    return _next_snapshot(repository, path, lambda ref: git.update_ref(ref, commit, "", cwd=repository.common_dir))


def _next_snapshot(repository: Repository, path: Path, save: Callable[[str], Any]) -> str:
    """Save under the first free number; the numbers of one name only grow, whoever else saves at the same time."""
    number = 0
    for attempt in range(20):
        number = max(number, _last_number(repository, path)) + 1
        ref = f"{SNAPSHOTS}/{ref_name(path)}/{number}"
        try:
            save(ref)
        except GitFailed:
            locked = os.path.lexists(repository.common_dir / f"{ref}.lock")
            if attempt == 19 or not (locked or git.ref_tip(ref, cwd=repository.common_dir)):
                raise
        else:
            return ref
    raise AssertionError("unreachable")


def _last_number(repository: Repository, path: Path) -> int:
    refs = refs_under(f"{SNAPSHOTS}/{ref_name(path)}", repository.common_dir)
    return max((int(last) for last in (ref.rpartition("/")[2] for ref in refs) if last.isdigit()), default=0)
