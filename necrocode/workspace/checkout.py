"""The two ways to a checkout, a linked work tree and a shared clone: git's own steps under the mutex, files outside."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from necrocode import git
from necrocode.errors import ConfigError, GateTimeout, GitFailed, LandingConflict, WorkspaceKept
from necrocode.workspace.clones import carried_settings, record_clone
from necrocode.workspace.entries import checked_out, drop_broken, drop_entry, drop_stale_lock, is_ours, text_of
from necrocode.workspace.place import Wanted, Workspace
from necrocode.workspace.removal import delete_half, discard
from necrocode.workspace.saving import save_ref


def linked(wanted: Wanted, undo: ExitStack, saved: tuple[str, ...]) -> Workspace:
    """A work tree of the repository itself; `undo` learns how to take it back, `saved` goes into the result."""
    tip = git.branch_tip(wanted.branch, cwd=wanted.home)
    with git.repository_mutex(wanted.state_root, wanted.repository) as lock:
        drop_broken(wanted.repository, wanted.path.name)
        drop_stale_lock(wanted.home / wanted.ref)
        _make_room(wanted, lock)
        start, kept = _starting_point(wanted, tip)
        workspace = Workspace(
            wanted.path, wanted.branch, wanted.base, wanted.repository, "worktree", wanted.state_root, saved + kept
        )
        undo.callback(_roll_back, workspace, tip, start)
        # The entry comes first, and its lock names the branch: no kill can leave a branch that nobody knows.
        _add_entry(wanted, start, lock)
        if tip is not None:
            git.run("symbolic-ref", "-m", "necrocode", "HEAD", wanted.ref, cwd=wanted.path, keep=(lock,))
            _move_branch(wanted, start, tip, lock)
    fill = ("reset", "--hard") if tip is not None else ("checkout", "--force", "--no-track", "-b", wanted.branch)
    with git.directory_lock(wanted.path) as lock, _clash_told(wanted):
        git.run(*fill, "--quiet", "--no-recurse-submodules", cwd=wanted.path, keep=(lock,))
    return workspace


def cloned(wanted: Wanted, undo: ExitStack, saved: tuple[str, ...]) -> Workspace:
    """A repository of its own that shares the objects; it appears under its name when it is whole."""
    with git.repository_mutex(wanted.state_root, wanted.repository) as lock:
        drop_broken(wanted.repository)
        drop_stale_lock(wanted.home / wanted.ref)
        _make_room(wanted, lock)
        tip = git.branch_tip(wanted.branch, cwd=wanted.home)
        start, kept = _starting_point(wanted, tip)
        workspace = Workspace(
            wanted.path, wanted.branch, wanted.base, wanted.repository, "clone", wanted.state_root, saved + kept
        )
        undo.callback(_roll_back, workspace, tip, start)
        # The record comes first: no kill can orphan the branch, nor a gc at home take the shared objects away.
        record_clone(wanted, lock)
        _move_branch(wanted, start, tip, lock)
    half = delete_half(wanted.path)
    _make_in(half.parent, half.mkdir)
    options = ("--quiet", "--shared", "--no-checkout", "--no-tags", "--template=", *carried_settings(wanted.home))
    with git.directory_lock(half) as lock:
        git.run("clone", *options, "--", str(wanted.home), str(half), cwd=wanted.home, keep=(lock,))
        git.run("checkout", "--quiet", "--no-track", "-B", wanted.branch, start, "--", cwd=half, keep=(lock,))
    if wanted.path.is_dir():
        wanted.path.rmdir()
    half.rename(wanted.path)
    return workspace


def _add_entry(wanted: Wanted, start: str, lock: int) -> None:
    options = ("--quiet", "--detach", "--no-checkout", "--lock", "--reason", wanted.reason)
    argv = ("worktree", "add", *options, str(wanted.path), start)
    _make_in(wanted.path.parent, lambda: git.run(*argv, cwd=wanted.home, keep=(lock,)))


def _make_in(folder: Path, make: Callable[[], object]) -> None:
    """Make something in this folder. Whoever removes the last of other workspaces takes it along: then once more."""
    for attempt in range(3):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            make()
            return
        except (FileNotFoundError, GitFailed) as error:
            if attempt == 2 or not _went(error):
                raise


def _went(error: FileNotFoundError | GitFailed) -> bool:
    return isinstance(error, FileNotFoundError) or "could not create leading directories" in error.stderr


def _roll_back(workspace: Workspace, tip: str | None, start: str) -> None:
    # The error that brought us here is the one to tell; what cannot be undone now, the next prepare finds.
    home = workspace.repo.common_dir
    with suppress(GitFailed, GateTimeout, WorkspaceKept, OSError):
        discard(workspace)
    with suppress(GitFailed, GateTimeout), ExitStack() as held:
        there = checked_out(workspace)
        lock = held.enter_context(git.repository_mutex(workspace.state_root, workspace.repo))
        if tip is None and not there:
            git.delete_branch(workspace.branch, start, cwd=home, keep=(lock,))
        elif tip is not None and tip != start:
            git.update_ref(f"refs/heads/{workspace.branch}", tip, start, cwd=home, keep=(lock,))


def _starting_point(wanted: Wanted, tip: str | None) -> tuple[str, tuple[str, ...]]:
    """The commit to start from, and the snapshot refs made of the branch's tip (None: no such branch) if it moves."""
    if tip is None or tip == wanted.base:
        return wanted.base, ()
    if not wanted.fresh:
        return (_joined(wanted) if wanted.join else tip), ()
    if git.is_ancestor(tip, wanted.base, cwd=wanted.home):
        return wanted.base, ()
    return wanted.base, (save_ref(wanted.repository, wanted.path, tip),)


def _joined(wanted: Wanted) -> str:
    message = f"Merge {wanted.join.removeprefix('refs/heads/')} into {wanted.branch}"
    try:
        return git.merge([wanted.ref, wanted.join], cwd=wanted.home, message=message)
    except LandingConflict as conflict:
        conflict.hint = f"merge them by hand in {wanted.branch}, or give the task another branch"
        raise


def _move_branch(wanted: Wanted, start: str, tip: str | None, lock: int) -> None:
    if tip != start:
        with _clash_told(wanted):
            git.update_ref(wanted.ref, start, tip or "", cwd=wanted.home, keep=(lock,))


@contextmanager
def _clash_told(wanted: Wanted) -> Iterator[None]:
    try:
        yield
    except GitFailed as error:
        if clash := re.search(r".*'refs/heads/(.+?)' exists; cannot create", error.stderr, re.DOTALL):
            raise ConfigError(
                f"there cannot be a branch {wanted.branch} beside {clash[1]}: git keeps one as a folder of the other",
                hint="choose a branch name that does not begin with the other's",
            ) from error
        raise


def _make_room(wanted: Wanted, lock: int) -> None:
    """Drop entries of vanished workspaces that are in the way; refuse when a living one has the branch or the place."""
    if not _mentioned(wanted):
        return
    for entry in git.work_trees(wanted.home):
        if entry.path != wanted.path and entry.branch != wanted.branch:
            continue
        if not is_ours(entry) or (os.path.lexists(entry.path) and entry.path != wanted.path):
            what = f"branch {wanted.branch} is checked out in" if entry.branch == wanted.branch else "git knows another"
            raise ConfigError(
                f"{what} work tree {entry.path}",
                hint="use another name, or `git worktree remove` it when it is done with",
            )
        drop_entry(wanted.repository, entry.path, lock)


def _mentioned(wanted: Wanted) -> bool:
    """Whether any work tree may have this place or branch: a look at git's files, to spare a call of git."""
    home = wanted.home
    if (home / "reftable").exists():
        return True
    heads = [home / "HEAD", *home.glob("worktrees/*/HEAD")]
    places = home.glob("worktrees/*/gitdir")
    return any(text_of(head).strip() == f"ref: {wanted.ref}" for head in heads) or any(
        os.path.basename(os.path.dirname(text_of(place).strip())) == wanted.path.name for place in places
    )
