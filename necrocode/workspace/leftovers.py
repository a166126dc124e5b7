"""The workspaces that necrocode made and that still exist, whoever made them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from necrocode import git
from necrocode.errors import ConfigError, GitFailed, WorkspaceKept
from necrocode.git import Repository
from necrocode.workspace import torn
from necrocode.workspace.clones import clone_records, fetched
from necrocode.workspace.entries import listed
from necrocode.workspace.place import REASON, Workspace
from necrocode.workspace.saving import head_of


class Leftover(NamedTuple):
    """A workspace that necrocode made and that still exists, or whose entry does: who held it, whether its directory
    is gone, holds uncommitted work, how many commits only its branch has, and why no snapshot can save it ("": one
    can)."""

    workspace: Workspace
    holder: str
    missing: bool
    dirty: bool
    ahead: int
    unsavable: str = ""


def list_leftovers(repository: Repository, state_root: Path) -> list[Leftover]:
    """All workspaces of this repository that necrocode made, living or not: the caller knows whose lease is gone.

    Each can be given to `retire`; what cannot be judged counts as dirty."""
    torn.mend(repository, state_root)
    return [_judged(left) for left in all_found(repository, state_root)]


def all_found(repository: Repository, state_root: Path) -> Iterator[Leftover]:
    for entry in listed(repository, state_root):
        said = REASON.fullmatch(entry.locked or "")
        if said:
            branch, base = said["branch"] or entry.branch, said["base"] or entry.head
            workspace = Workspace(entry.path, branch, base, repository, "worktree", state_root)
            yield Leftover(workspace, said["holder"], not os.path.lexists(entry.path), False, 0)
    for record in clone_records(repository):
        path, branch = Path(record["path"]), record["branch"]
        workspace = Workspace(path, branch, record["base"], repository, "clone", state_root)
        yield Leftover(workspace, record["holder"], not os.path.lexists(path), False, 0)


def _judged(left: Leftover) -> Leftover:
    workspace, root = left.workspace, left.workspace.repo.common_dir
    if left.missing:
        tip = git.branch_tip(workspace.branch, cwd=root) if workspace.branch else None
        return left._replace(ahead=len(git.commits(workspace.base, tip, cwd=root)) if tip else 0)
    try:
        with _tip(workspace) as tip:
            git_dir = workspace.repo.common_dir if workspace.mode == "clone" else None
            tree = git.work_tree(workspace.path, parent=tip, git_dir=git_dir)
            return left._replace(dirty=tree.dirty, ahead=len(git.commits(workspace.base, tip, cwd=root)))
    except WorkspaceKept as kept:
        return left._replace(dirty=True, unsavable=kept.reason)
    except (GitFailed, ConfigError):
        return left._replace(dirty=True)


@contextmanager
def _tip(workspace: Workspace) -> Iterator[str]:
    if workspace.mode != "clone":
        yield head_of(workspace)
        return
    home, known = workspace.repo.common_dir, git.branch_tip(workspace.branch, cwd=workspace.repo.common_dir)
    with fetched(workspace) as tip:
        yield known if known is not None and git.is_ancestor(tip, known, cwd=home) else tip
