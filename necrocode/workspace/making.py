"""How a workspace comes to be: what was there is saved, the checkout is made, files are added, or all is undone."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from necrocode import git
from necrocode.errors import ConfigError
from necrocode.git import Repository
from necrocode.workspace import torn
from necrocode.workspace.checkout import cloned, linked
from necrocode.workspace.entries import CameBack, git_link
from necrocode.workspace.included import copy_included
from necrocode.workspace.leftovers import all_found
from necrocode.workspace.place import OURS, Mode, Wanted, Workspace
from necrocode.workspace.removal import discard, few, preserve


def prepare(
    repository: Repository | None,
    *,
    state_root: Path,
    path: git.StrPath,
    branch: str = "",
    base: str = "HEAD",
    mode: Mode = "worktree",
    holder: str = "",
    fresh: bool | None = None,
    join: str = "",
    setup: Callable[[Workspace], object] | None = None,
) -> Workspace:
    """Make `path` ready to work on `branch`, and run `setup` in it.

    A new branch starts at `base` (any revision). An existing one goes on from its tip, with `join` from its tip and
    that revision merged, or, when `fresh` (default: for branches below `necrocode/`), starts at `base` again after its
    own commits were saved as a snapshot. What an earlier workspace of necrocode left at `path` is saved and replaced;
    anything else there is refused. When a step fails, directory and branch are as they were before.

    Raises ConfigError for what cannot be meant (names, places, bases), LandingConflict when tip and `join` do not go
    together, WorkspaceKept when remains cannot be saved,
    GitFailed for what git refuses, OSError for what the machine does (disk full, out of descriptors; its `filename`
    says where), and whatever `setup` raises."""
    if mode == "none" or repository is None:
        return _set_up(_plain(Path(path), state_root), setup)
    git.checked_branch(branch)
    if mode == "given":
        return _set_up(_given(repository, Path(path), branch, base, state_root), setup)
    if mode == "clone":
        _check_shareable(repository)
    place = Path(os.path.realpath(path))
    torn.mend(repository, state_root)
    with ExitStack() as undo:
        with git.checkout_turn(state_root):
            start = git.rev_parse(base, cwd=repository.root)
            anew = branch.startswith(OURS) if fresh is None else fresh
            wanted = Wanted(repository, state_root, place, branch, start, holder, anew, join)
            _make_parent(place.parent)
            workspace = _made(wanted, cloned if mode == "clone" else linked, undo)
        copy_included(repository.root, workspace.path)
        _set_up(workspace, setup)
        undo.pop_all()
    return workspace


def _made(
    wanted: Wanted, make: Callable[[Wanted, ExitStack, tuple[str, ...]], Workspace], undo: ExitStack
) -> Workspace:
    saved: tuple[str, ...] = ()
    for attempt in range(3):
        saved += _clear(wanted)
        try:
            return make(wanted, undo, saved)
        except CameBack:
            # A git whose starter was killed made it after we had looked; the mutex waited for that git to end.
            if attempt == 2:
                raise
    raise AssertionError("unreachable")


def _set_up(workspace: Workspace, setup: Callable[[Workspace], object] | None) -> Workspace:
    if setup is not None:
        setup(workspace)
    return workspace


def _check_shareable(repository: Repository) -> None:
    if "\n" in str(repository.common_dir):
        raise ConfigError(
            f"{str(repository.common_dir)!r}: git cannot share objects from a path with a line break",
            hint="use work trees (--workspace worktree), or move the repository",
        )


def _make_parent(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        hint = "choose another place for workspaces"
        raise ConfigError(f"{path} cannot hold workspaces: {error.strerror}", hint=hint) from error


def _plain(path: Path, state_root: Path) -> Workspace:
    _make_parent(path)
    return Workspace(path, "", "", None, "none", state_root)


def _given(home: Repository, path: Path, branch: str, base: str, state_root: Path) -> Workspace:
    repository = git.open_repository(path)
    if repository.identity != home.identity:
        raise ConfigError(f"{path} belongs to {repository.identity}, not to {home.identity}")
    here, dirty = git.current_branch(path), git.status(path)
    start = git.rev_parse(base, cwd=path)
    if dirty and here != branch:
        raise ConfigError(
            f"{path} has uncommitted work on {here or 'a detached HEAD'} ({few(dirty)}), and {branch} is wanted there",
            hint="commit or stash it, or name another directory",
        )
    tip = git.branch_tip(branch, cwd=path)
    if here != branch:
        new = ("--no-track", "-b", branch, start) if tip is None else (branch,)
        with git.repository_mutex(state_root, repository) as lock:
            git.run("checkout", "--quiet", *new, "--", cwd=path, keep=(lock,))
    return Workspace(path, branch, start, repository, "given", state_root)


def _clear(wanted: Wanted) -> tuple[str, ...]:
    """Save and remove what an earlier workspace of ours left at this place; returns the snapshot refs."""
    path = wanted.path
    if not os.path.lexists(path):
        return ()
    if not path.is_dir():
        raise ConfigError(f"{path} is in the way: a workspace needs a directory there")
    with git.directory_lock(path):
        return _replace(wanted)


def _replace(wanted: Wanted) -> tuple[str, ...]:
    path = wanted.path
    if not any(path.iterdir()):
        return ()
    found = next(
        (left for left in all_found(wanted.repository, wanted.state_root) if left.workspace.path == path), None
    )
    if found is None and git_link(path, wanted.repository) == "gone":
        # git's entry is gone, the directory is not: it was a work tree of this repository all the same.
        old = Workspace(path, wanted.branch, wanted.base, wanted.repository, "worktree", wanted.state_root)
    elif found is None:
        raise ConfigError(
            f"{path} is in the way: it holds files, and necrocode did not put them there",
            hint="move it, or choose another place",
        )
    else:
        old = found.workspace
    saved = preserve(old)
    discard(old)
    return saved
