"""What git itself remembers of workspaces: entries of work trees, links to them, locks; and the remains of gits
that were killed.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Literal

from necrocode import git
from necrocode.errors import GitFailed, WorkspaceKept
from necrocode.git import Repository
from necrocode.workspace.place import REASON, Workspace

_TRIES = 3
STALE_LOCK = 1.5
"""Seconds after which a lock file on a ref that is ours alone was left by a git that was killed."""


def listed(repository: Repository, state_root: Path) -> list[git.Listed]:
    """`git.work_trees`, after removing what killed gits left; takes the mutex for that, so do not hold it."""
    if not any(map(_is_broken, inside(repository.common_dir / "worktrees"))):
        with suppress(GitFailed):  # one that is being made at this moment
            return git.work_trees(repository.common_dir)
    with git.repository_mutex(state_root, repository):
        drop_broken(repository)
        return git.work_trees(repository.common_dir)


def is_ours(entry: git.Listed) -> bool:
    """Whether necrocode made this work tree: the lock says so."""
    return entry.locked is not None and entry.locked.startswith("necrocode ")


def checked_out(workspace: Workspace) -> list[Path]:
    """Where the workspace's branch is checked out, itself included when it is a linked work tree."""
    trees = listed(workspace.repo, workspace.state_root)
    return [entry.path for entry in trees if entry.branch == workspace.branch]


def drop_entry(repository: Repository, path: Path, lock: int) -> None:
    """Make git forget a work tree whose directory is gone or empty. Raises CameBack when it is neither."""
    if path.is_dir() and not any(path.iterdir()):
        path.rmdir()
    if os.path.lexists(path):
        raise CameBack(str(path), "somebody made it again meanwhile")
    git.run("worktree", "remove", "--force", "--force", str(path), cwd=repository.common_dir, keep=(lock,))


class CameBack(WorkspaceKept):
    """The place was free, and is taken now."""


def drop_broken(repository: Repository, name: str = "") -> None:
    """Remove what a killed `git worktree add` left; call it under the mutex. One such entry can make every git in
    the repository fail ("failed to read commondir").

    It is ours when its lock says so, or it has the name that we are about to use; a stranger's may still be in the
    making, so it must have been there for a while."""
    for entry in inside(repository.common_dir / "worktrees"):
        if not _is_broken(entry):
            continue
        said = REASON.fullmatch(text_of(entry / "locked").removesuffix("\n"))
        if said and said["path"]:
            _drop_unfilled(Path(said["path"]), entry)
        if said or entry.name == name or age_of(entry) > 60:
            shutil.rmtree(entry, ignore_errors=True)


def _is_broken(entry: Path) -> bool:
    return not all(text_of(entry / part) for part in ("gitdir", "HEAD", "commondir"))


def _drop_unfilled(place: Path, entry: Path) -> None:
    """Remove a work tree that has nothing in it but the link to its entry; any other stays."""
    link = place / ".git"
    if text_of(link).removeprefix("gitdir: ").removesuffix("\n") in ("", str(entry)) and inside(place) == [link]:
        link.unlink(missing_ok=True)
    with suppress(OSError):
        place.rmdir()


def drop_stale_lock(path: Path) -> None:
    """Remove the lock file that a killed git left beside a ref or index that only we may write: a living git holds
    one for moments."""
    lock = path.with_name(f"{path.name}.lock")
    until = time.monotonic() + STALE_LOCK
    while os.path.lexists(lock) and age_of(lock) < STALE_LOCK and time.monotonic() < until:
        time.sleep(0.02)
    with suppress(FileNotFoundError, NotADirectoryError):
        lock.unlink()


def git_link(path: Path, repository: Repository) -> Literal["linked", "gone", "own", "foreign"]:
    """What `.git` in a directory is: our link, our link to an entry that is gone (or no link any more), a clone's
    own directory, or something else that leads to no place of this repository."""
    link = path / ".git"
    if link.is_dir():
        return "own"
    target = Path(os.path.realpath(path / text_of(link).removeprefix("gitdir: ").removesuffix("\n")))
    if target.parent != repository.common_dir / "worktrees":
        return "foreign"
    return "linked" if (target / "HEAD").exists() else "gone"


def refs_under(folder: str, home: Path) -> dict[str, str]:
    """The refs below a folder of refs, by name, and what they point to."""
    said = git.run("for-each-ref", "--format=%(objectname) %(refname)", folder, cwd=home).stdout.splitlines()
    return {ref: tip for tip, _, ref in (line.partition(" ") for line in said)}


def forget(home: Path, *refs: str, keep: Collection[int] = ()) -> str:
    """Delete refs that are ours alone, as well as it goes; what git said when one of them stayed, else "".

    A git that is killed meanwhile may leave the lock of a ref, which goes too."""
    trouble = ""
    for ref in refs:
        for _ in range(_TRIES):
            done = git.run("update-ref", "-d", ref, cwd=home, check=False, keep=keep)
            if done.returncode == 0:
                break
            if "packed-refs.lock" in done.stderr:
                return done.stderr.strip()  # all of them need it, and each would wait for it anew
            drop_stale_lock(home / ref)
        else:
            trouble = done.stderr.strip() or f"git ended with {done.returncode}"
    return trouble


def git_dir(path: Path) -> Path:
    """The git directory of a work tree's own: HEAD and index lie there."""
    return Path(os.path.realpath(git.run("rev-parse", "--absolute-git-dir", cwd=path).stdout.removesuffix("\n")))


def inside(folder: Path) -> list[Path]:
    """What lies in a folder; nothing when there is none."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def age_of(path: Path) -> float:
    """Seconds since it was written; 0 when it is not there."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def text_of(path: Path) -> str:
    """A small file's text; "" when it cannot be read."""
    try:
        return os.fsdecode(path.read_bytes())
    except OSError:
        return ""
