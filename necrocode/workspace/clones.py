"""Shared clones, for agents that are not trusted: only objects are ever read from one, none of its settings, hooks
or filters is used.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from necrocode import git
from necrocode.errors import ConfigError, WorkspaceKept
from necrocode.git import Repository
from necrocode.workspace.entries import checked_out, drop_stale_lock, forget, git_dir, git_link, refs_under, text_of
from necrocode.workspace.place import CLONES, INCOMING, Wanted, Workspace, clone_ref
from necrocode.workspace.saving import save_files, save_ref

_CARRIED = r"^(user\.(name|email)|core\.(autocrlf|eol|safecrlf|symlinks))$"


def carried_settings(root: Path) -> Iterator[str]:
    """Options of `git clone` for settings that a checkout or commit needs and a clone would not have."""
    said = git.run("config", "--local", "-z", "--get-regexp", _CARRIED, cwd=root, ok=git.YES_OR_NO).stdout
    for setting in [*said.split("\0")[:-1], "remote.origin.pushUrl\nfile:///dev/null"]:
        yield from ("--config", setting.replace("\n", "=", 1))


def record_clone(wanted: Wanted, lock: int) -> None:
    """One annotated tag object is the record: the base it points to, who and where in its message."""
    facts = {"path": str(wanted.path), "branch": wanted.branch, "holder": wanted.holder, "base": wanted.base}
    head = f"object {wanted.base}\ntype commit\ntag necrocode-clone\ntagger necrocode <necrocode@localhost> 0 +0000\n\n"
    drop_stale_lock(wanted.home / clone_ref(wanted.path))
    tag = git.run("hash-object", "-t", "tag", "-w", "--stdin", cwd=wanted.home, input=head + json.dumps(facts) + "\n")
    git.update_ref(clone_ref(wanted.path), tag.stdout.strip(), cwd=wanted.home, keep=(lock,))


def clone_records(repository: Repository) -> Iterator[dict[str, str]]:
    """The facts of all shared clones: path, branch, holder, base."""
    said = git.run("for-each-ref", "--format=%(contents)%00", CLONES, cwd=repository.common_dir).stdout
    for text in said.split("\0"):
        with suppress(ValueError):  # a ref that somebody else put there
            yield json.loads(text)


def collect(workspace: Workspace) -> str:
    """Bring the branch of a shared clone home and return its tip there; of any other workspace, just tell the tip.

    Only objects are read from the clone; none of its settings, hooks or filters is used. When the branch at home has
    commits that the clone's has not, they are saved as a snapshot first. Raises GitFailed when the clone has no such
    branch or cannot be read, ConfigError when somebody has the branch checked out at home."""
    if workspace.mode != "clone":
        return git.rev_parse(f"refs/heads/{workspace.branch}", cwd=workspace.path)
    with fetched(workspace) as tip:
        return _bring_home(workspace, tip)


def _bring_home(workspace: Workspace, new: str) -> str:
    root, there = workspace.repo.common_dir, checked_out(workspace)
    with git.repository_mutex(workspace.state_root, workspace.repo) as lock:
        old = git.branch_tip(workspace.branch, cwd=root)
        if old is not None and git.is_ancestor(new, old, cwd=root):
            return old
        if there:
            raise ConfigError(f"branch {workspace.branch} cannot move: it is checked out in {there[0]}")
        if old is not None and not git.is_ancestor(old, new, cwd=root):
            save_ref(workspace.repo, workspace.path, old)
        git.update_ref(f"refs/heads/{workspace.branch}", new, old or "", cwd=root, keep=(lock,))
        return new


@contextmanager
def fetched(workspace: Workspace) -> Iterator[str]:
    """The tip of a clone's branch, kept at home under a ref of its own for as long as needed."""
    home = workspace.repo.common_dir
    ref = f"{_incoming(workspace)}/{os.getpid()}/tip"
    _fetch(workspace, f"+refs/heads/{workspace.branch}:{ref}")
    tip = git.rev_parse(ref, cwd=home)
    try:
        yield tip
    finally:
        forget(home, ref)


def commit(workspace: Workspace, message: str) -> str | None:
    """Commit all that changed (untracked files included) on the workspace's branch; the commit, or None. When it
    returns, the branch and all that it has over its base are on the disk.

    For a shared clone the commit is made at home from the clone's files, without running git inside the clone. When
    the agent left the branch for one that continues it, the branch follows; raises ConfigError when it does not."""
    made = _committed(workspace, message)
    git.sync_branch(workspace.branch, workspace.base, common_dir=workspace.repo.common_dir)
    return made


def _committed(workspace: Workspace, message: str) -> str | None:
    if workspace.mode != "clone":
        drop_stale_lock(git_dir(workspace.path) / "index")
        made = git.commit_all(workspace.path, message)
        _follow(workspace)
        return made
    root, tip = workspace.repo.common_dir, _followed(workspace)
    tree = git.work_tree(workspace.path, parent=tip, git_dir=workspace.repo.common_dir)
    if tree.files == tree.committed:
        return None
    made = git.commit_tree(tree.files, [tip], message, cwd=root)
    git.update_ref(f"refs/heads/{workspace.branch}", made, tip, cwd=root)
    return made


def _follow(workspace: Workspace) -> None:
    """Bring the branch to the commit that is checked out, and the checkout back to the branch."""
    path, ref, here = workspace.path, f"refs/heads/{workspace.branch}", git.current_branch(workspace.path)
    if here == workspace.branch:
        return
    head, tip = git.rev_parse("HEAD", cwd=path), git.ref_tip(ref, cwd=path)
    if tip is not None and not git.is_ancestor(tip, head, cwd=path):
        raise _strayed(workspace, here)
    git.update_ref(ref, head, tip or "", cwd=path)
    git.run("symbolic-ref", "-m", "necrocode", "HEAD", ref, cwd=path)


def _followed(workspace: Workspace) -> str:
    """The branch at home, brought to the commit that is checked out in the clone."""
    head = text_of(workspace.path / ".git" / "HEAD").strip()
    if head == f"ref: refs/heads/{workspace.branch}":
        return collect(workspace)
    home = workspace.repo.common_dir
    with _all_fetched(workspace) as (tips, there):
        ours = tips.get(f"refs/heads/{workspace.branch}")
        tip = _bring_home(workspace, ours) if ours else git.branch_tip(workspace.branch, cwd=home)
        if there and (not tip or git.is_ancestor(tip, there, cwd=home)):
            return _bring_home(workspace, there)
    raise _strayed(workspace, head.removeprefix("ref: refs/heads/") if head.startswith("ref: ") else None)


def _strayed(workspace: Workspace, here: str | None) -> ConfigError:
    return ConfigError(
        f"the work is on {here or 'a detached HEAD'}, which does not continue {workspace.branch}",
        hint=f"look at {workspace.path} and merge it by hand",
    )


def preserve_clone(workspace: Workspace) -> tuple[str, ...]:
    path, root = workspace.path, workspace.repo.common_dir
    if git_link(path, workspace.repo) != "own":
        return save_files(workspace, workspace.base, git_dir=workspace.repo.common_dir)
    if len(text_of(path / ".git/logs/refs/stash").splitlines()) > 1:
        raise WorkspaceKept(str(path), "it has several stashes, of which only the last could be fetched")
    with _all_fetched(workspace) as (tips, head):
        ours = tips.pop(f"refs/heads/{workspace.branch}", None)
        home = workspace.base if ours is None else _bring_home(workspace, ours)
        lost = dict.fromkeys(tip for tip in tips.values() if not git.is_held(tip, cwd=root, but=f"{INCOMING}/*"))
        saved = [save_ref(workspace.repo, path, tip) for tip in lost]
        # What the runner committed at home, the clone itself does not know.
        parent = head if head and not git.is_ancestor(head, home, cwd=root) else home
        return (*saved, *save_files(workspace, parent, git_dir=workspace.repo.common_dir))


@contextmanager
def _all_fetched(workspace: Workspace) -> Iterator[tuple[dict[str, str], str | None]]:
    """All refs of a clone by name, a detached HEAD included, and the commit of its HEAD, all kept at home meanwhile."""
    home, folder = workspace.repo.common_dir, f"{_incoming(workspace)}/{os.getpid()}/"
    head = text_of(workspace.path / ".git" / "HEAD").strip()
    refspecs = [f"+refs/*:{folder}refs/*", *([] if head.startswith("ref: ") else [f"+HEAD:{folder}HEAD"])]
    _fetch(workspace, *refspecs)
    refs = refs_under(_incoming(workspace), home)
    tips = {ref.removeprefix(folder): tip for ref, tip in refs.items()}
    yield tips, tips.get(head.removeprefix("ref: ") if head.startswith("ref: ") else "HEAD")
    # Not when something failed: then these refs keep what was fetched, and the next attempt clears them.
    forget(home, *refs)


def rescued(workspace: Workspace) -> tuple[str, ...]:
    """Snapshots of the commits that only a fetch that was cut short keeps, of a clone that is gone itself."""
    if workspace.mode != "clone":
        return ()
    home = workspace.repo.common_dir
    tips = dict.fromkeys(refs_under(_incoming(workspace), home).values())
    lost = [tip for tip in tips if not git.is_held(tip, cwd=home, but=f"{INCOMING}/*")]
    return tuple(save_ref(workspace.repo, workspace.path, tip) for tip in lost)


def forget_clone(workspace: Workspace) -> str:
    """Delete its record, and what was ever fetched from it; why they are still there, "" when they are not."""
    home = workspace.repo.common_dir
    with git.repository_mutex(workspace.state_root, workspace.repo) as lock:
        return forget(home, *refs_under(_incoming(workspace), home), clone_ref(workspace.path), keep=(lock,))


def _incoming(workspace: Workspace) -> str:
    return f"{INCOMING}/{clone_ref(workspace.path).removeprefix(f'{CLONES}/')}"


def _fetch(workspace: Workspace, *refspecs: str) -> None:
    options = ("--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-gc", "--no-recurse-submodules")
    words = ("-c", "transfer.fsckObjects=true", "fetch", *options, "--", str(workspace.path), *refspecs)
    git.run(*words, cwd=workspace.repo.common_dir)
