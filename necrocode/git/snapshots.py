"""A work tree's files as objects of git, saved without touching its index, its branch or the files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from necrocode import aside
from necrocode.errors import GitFailed, WorkspaceKept
from necrocode.git.calls import StrPath, nul_separated, one_line, run
from necrocode.git.content import gitlinks
from necrocode.git.refs import commit_tree, rev_parse, update_ref


class WorkTree(NamedTuple):
    """A work tree's content as tree objects: of the last commit, of its index (None when that cannot be written,
    as in the middle of a merge), and of its files."""

    committed: str
    staged: str | None
    files: str

    @property
    def dirty(self) -> bool:
        return self.files != self.committed or self.staged not in (None, self.committed, self.files)


def work_tree(path: StrPath, *, parent: str = "HEAD", git_dir: StrPath | None = None) -> WorkTree:
    """Write everything that is not ignored to the object store, through a private index; nothing else is touched.

    With `git_dir`, that repository is used and whatever `.git` lies in `path` is not even read. Raises
    WorkspaceKept for what a tree cannot hold: another repository nested inside. Raises GitFailed for the rest."""
    committed = one_line("rev-parse", "--verify", f"{parent}^{{tree}}", cwd=git_dir or path)
    with aside.folder() as folder:
        env = {"GIT_INDEX_FILE": str(folder / "index")}
        if git_dir is not None:
            env |= {"GIT_DIR": os.fspath(git_dir), "GIT_WORK_TREE": os.fspath(path)}
        staged = None if git_dir is not None else _copied_index(path, env)
        try:
            files = _files_tree(path, env, parent, fresh=git_dir is not None)
        except GitFailed:
            if git_dir is not None:
                raise
            # A torn index must not cost the files: they are hashed anew.
            files = _files_tree(path, env, parent, fresh=True)
    return WorkTree(committed, staged, files)


def _copied_index(path: StrPath, env: Mapping[str, str]) -> str | None:
    real = one_line("rev-parse", "--path-format=absolute", "--git-path", "index", cwd=path)
    if not os.path.exists(real):
        return None
    shutil.copyfile(real, env["GIT_INDEX_FILE"])
    return run("write-tree", cwd=path, env=env, check=False).stdout.strip() or None


def _files_tree(path: StrPath, env: Mapping[str, str], parent: str, *, fresh: bool) -> str:
    if fresh:
        Path(env["GIT_INDEX_FILE"]).unlink(missing_ok=True)
        run("read-tree", parent, cwd=path, env=env)
    _unhide(path, env)
    run("add", "--all", "--sparse", cwd=path, env=env)
    staged = gitlinks(run("ls-files", "--stage", "-z", cwd=path, env=env).stdout)
    if full := sorted(link for link in staged if _holds_files(os.path.join(path, link))):
        raise WorkspaceKept(
            os.fspath(path), f"another repository is nested in it, which no snapshot can save: {full[0]}"
        )
    return run("write-tree", cwd=path, env=env).stdout.strip()


def _unhide(path: StrPath, env: Mapping[str, str]) -> None:
    """Files marked assume-unchanged or skip-worktree count like all others, if they are there."""
    tagged = nul_separated(run("ls-files", "-v", "-z", cwd=path, env=env).stdout)
    hidden = [entry[2:] for entry in tagged if entry[0].islower() or entry[0] == "S"]
    present = "".join(f"{name}\0" for name in hidden if os.path.lexists(os.path.join(path, name)))
    for flag in ("--no-assume-unchanged", "--no-skip-worktree"):
        if present:
            run("update-index", flag, "-z", "--stdin", cwd=path, env=env, input=present)


def _holds_files(directory: str) -> bool:
    try:
        with os.scandir(directory) as entries:
            return any(entries)
    except (FileNotFoundError, NotADirectoryError):
        return False


def snapshot(
    path: StrPath, ref: str, *, message: str = "", parent: str = "HEAD", git_dir: StrPath | None = None,
    tree: WorkTree | None = None,
) -> str:  # fmt: skip
    """Save the tracked and untracked (not ignored) files as a commit on `parent`, kept by the new ref `ref`.

    The index and the files stay as they are; a staged version that differs from both is the second parent. Raises
    GitFailed when `ref` exists or the files cannot be saved, WorkspaceKept for nested repositories."""
    place = git_dir or path
    head = rev_parse(parent, cwd=place)
    tree = tree or work_tree(path, parent=head, git_dir=git_dir)
    parents = [head]
    if tree.staged not in (None, tree.files, tree.committed):
        assert tree.staged is not None
        parents.append(commit_tree(tree.staged, [head], "what was staged", cwd=place))
    saved = commit_tree(tree.files, parents, message or f"necrocode snapshot of {os.fspath(path)}", cwd=place)
    update_ref(ref, saved, "", cwd=place)
    return saved
