"""How a workspace goes: saved, moved aside in one step, forgotten, and only then deleted."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path

from necrocode import git
from necrocode.errors import ConfigError, GitFailed, WorkspaceKept
from necrocode.workspace.clones import collect, forget_clone, preserve_clone, rescued
from necrocode.workspace.entries import drop_broken, drop_entry, git_link, inside, is_ours
from necrocode.workspace.place import HALF_MADE, OURS, WORKTREES, Workspace
from necrocode.workspace.saving import head_of, preserve_linked

_TRASH = ".trash-"


def preserve(workspace: Workspace) -> tuple[str, ...]:
    """Save all that only this workspace holds; returns the refs made (none when everything is safe already).

    Uncommitted and untracked files, commits that no ref reaches; of a clone, its branch and all its other refs.
    Raises WorkspaceKept when anything cannot be saved."""
    try:
        return preserve_clone(workspace) if workspace.mode == "clone" else preserve_linked(workspace)
    except (GitFailed, ConfigError, OSError) as error:
        raise WorkspaceKept(str(workspace.path), f"its work could not be saved: {error}") from error


def retire(workspace: Workspace, *, landed: bool, force: bool = False) -> tuple[str, ...]:
    """Remove a workspace that is done with; returns the snapshot refs that were made of its contents.

    `landed` says that the commits of its branch are where they belong. Refused with WorkspaceKept while it has
    uncommitted work, commits that have not landed, or commits on no branch; `force` removes it all the same once
    everything is saved, and never without. Branches with commits of their own stay. Directories that were given,
    or have no git, are left alone."""
    if workspace.mode in ("none", "given"):
        return ()
    saved = _emptied(workspace, landed, force) if os.path.lexists(workspace.path) else rescued(workspace)
    trouble = discard(workspace)
    if not landed:
        _drop_empty_branch(workspace)
    if trouble:
        raise WorkspaceKept(str(workspace.path), f"it is gone, but its record could not be deleted: {trouble}")
    return saved


def _emptied(workspace: Workspace, landed: bool, force: bool) -> tuple[str, ...]:
    """The snapshots after which nothing is in it that is nowhere else; refused when it must be kept."""
    if not force and (reason := _why_keep(workspace, landed)):
        raise WorkspaceKept(str(workspace.path), reason)
    # A linked work tree that need not be kept holds nothing of its own; a clone may still have other branches.
    return preserve(workspace) if force or workspace.mode == "clone" else ()


def _why_keep(workspace: Workspace, landed: bool) -> str:
    """Why it must stay, "" when it may go; what cannot be judged stays."""
    try:
        return _work_in(workspace, landed)
    except (GitFailed, ConfigError) as error:
        return f"it cannot be judged: {error}"


def _work_in(workspace: Workspace, landed: bool) -> str:
    root, path = workspace.repo.common_dir, workspace.path
    link = git_link(path, workspace.repo)
    if link != ("own" if workspace.mode == "clone" else "linked"):
        return "it is no longer a work tree of its repository"
    if workspace.mode == "clone":
        tip = collect(workspace)
        tree = git.work_tree(path, parent=tip, git_dir=workspace.repo.common_dir)
    else:
        tip = head_of(workspace)
        tree = git.work_tree(path, parent=tip)
    if tree.dirty:
        changed = [change.path for change in git.changes(tree.committed, tree.files, cwd=root)]
        return f"it has uncommitted work: {few(changed) or 'staged changes'}"
    if not git.is_held(tip, cwd=workspace.repo.common_dir):
        return "it has commits that are on no branch"
    ahead = 0 if landed else len(git.commits(workspace.base, tip, cwd=root))
    return f"{ahead} commits of {workspace.branch} have not landed" if ahead else ""


def _drop_empty_branch(workspace: Workspace) -> None:
    """A branch that we named and that never got a commit goes with its workspace."""
    name, home = workspace.branch, workspace.repo.common_dir
    if name.startswith(OURS) and git.branch_tip(name, cwd=home) == workspace.base:
        with suppress(GitFailed), git.repository_mutex(workspace.state_root, workspace.repo) as lock:
            git.delete_branch(name, workspace.base, cwd=home, keep=(lock,))


def discard(workspace: Workspace) -> str:
    """Take the directory out of the way in one step, forget its entry, and only then delete it. Returns why the
    record of a clone is still there, "" when it is not."""
    try:
        trash = _aside(workspace.path)
    except OSError as error:
        raise WorkspaceKept(str(workspace.path), f"it could not be moved aside: {error}") from error
    trouble = ""
    if workspace.mode == "clone":
        delete_half(workspace.path)
        trouble = forget_clone(workspace)
    else:
        with git.repository_mutex(workspace.state_root, workspace.repo) as lock:
            drop_broken(workspace.repo, workspace.path.name)
            known = [entry.path for entry in git.work_trees(workspace.repo.common_dir) if is_ours(entry)]
            if workspace.path in known:
                drop_entry(workspace.repo, workspace.path, lock)
    if trash is not None:
        delete_tree(trash)
    _drop_if_empty(workspace.path.parent)
    return trouble


def _aside(path: Path) -> Path | None:
    if not os.path.lexists(path):
        return None
    trash = Path(tempfile.mkdtemp(prefix=_TRASH, dir=path.parent))
    with ExitStack() as undo:
        undo.callback(trash.rmdir)
        path.rename(trash / "workspace")
        undo.pop_all()
    return trash


def empty_trash(directory: Path) -> list[Path]:
    """Delete what removals that were cut short left in a directory of workspaces; returns what could not be."""
    trash = [entry for entry in inside(directory) if entry.name.startswith(_TRASH)]
    left = [entry for entry in trash if not delete_tree(entry)]
    _drop_if_empty(directory)
    return left


def _drop_if_empty(directory: Path) -> None:
    """The directory of workspaces that we made beside a repository goes with the last of them."""
    if directory.name.endswith(WORKTREES):
        with suppress(OSError):
            directory.rmdir()


def delete_tree(tree: Path) -> bool:
    """Delete a directory, never through a symbolic link; whether it is gone."""
    shutil.rmtree(tree, ignore_errors=True)
    if os.path.lexists(tree):
        _make_writable(tree)
        shutil.rmtree(tree, ignore_errors=True)
    return not os.path.lexists(tree)


def delete_half(path: Path) -> Path:
    """Delete the clone that was to become `path` and never did, once no git works in it; returns its place."""
    half = path.with_name(HALF_MADE + path.name)
    if half.is_dir():
        with git.directory_lock(half):
            delete_tree(half)
    return half


def _make_writable(tree: Path) -> None:
    with suppress(OSError):
        for _, folders, _, handle in os.fwalk(tree):
            for folder in folders:
                if stat.S_ISDIR(os.stat(folder, dir_fd=handle, follow_symlinks=False).st_mode):
                    os.chmod(folder, 0o700, dir_fd=handle)


def few(paths: list[str]) -> str:
    """The first three, and how many more."""
    return ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
