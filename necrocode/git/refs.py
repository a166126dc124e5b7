"""Commits and refs: what names what, what contains what, and merges without a work tree."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable

from necrocode.errors import ConfigError, LandingConflict
from necrocode.git.calls import YES_OR_NO, StrPath, nul_separated, one_line, run

NOBODY = {"NAME": "necrocode", "EMAIL": "necrocode@localhost"}
"""Who signs when the user told git no name: given by environment, never written into a config."""

_NO_NAME = "".join(map(chr, range(33))) + ".,:;<>\"\\'"
"""What git takes off both ends of a name; of one that has nothing else it says that it is empty."""

_BAD_REF = re.compile(r"^$|^-|^@$|(^|/)(\.|/|$)|\.\.|\.$|\.lock(/|$)|@\{|[\0-\x20\x7f~^:?*\[\\]")
"""What git refuses in the name of a branch."""


def has_commit(cwd: StrPath) -> bool:
    """Whether HEAD names a commit (a fresh `git init` has none)."""
    return run("rev-parse", "--verify", "--quiet", "HEAD^{commit}", cwd=cwd, ok=YES_OR_NO).returncode == 0


def current_branch(cwd: StrPath) -> str | None:
    """The branch that is checked out; None on a detached HEAD."""
    return one_line("symbolic-ref", "--quiet", "HEAD", cwd=cwd, ok=YES_OR_NO).removeprefix("refs/heads/") or None


def checked_branch(name: str) -> str:
    """The name itself, or ConfigError when git would not take it for a branch."""
    if name == "HEAD" or _BAD_REF.search(name):
        raise ConfigError(f"{name!r} cannot be a branch name", hint="see `git help check-ref-format`")
    return name


def rev_parse(revision: str, *, cwd: StrPath) -> str:
    """The commit that `revision` names. Raises ConfigError when there is none."""
    found = run("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}", cwd=cwd, ok=YES_OR_NO)
    if found.returncode:
        raise ConfigError(
            f"{revision!r} names no commit in {os.fspath(cwd)}", hint="`git branch --all` lists what there is"
        )
    return found.stdout.strip()


def ref_tip(ref: str, *, cwd: StrPath) -> str | None:
    """What exactly this ref (`refs/heads/x`) points to; None when it does not exist."""
    said = run("for-each-ref", "--format=%(objectname) %(refname)", ref, cwd=cwd).stdout.splitlines()
    return next((line.split(" ", 1)[0] for line in said if line.split(" ", 1)[1] == ref), None)


def branch_tip(name: str, *, cwd: StrPath) -> str | None:
    """The commit of a branch; None when there is no such branch."""
    return ref_tip(f"refs/heads/{name}", cwd=cwd)


def branch_exists(name: str, *, cwd: StrPath) -> bool:
    """Whether there is a branch of that name."""
    return branch_tip(name, cwd=cwd) is not None


def branches(*, cwd: StrPath) -> list[str]:
    """The names of all branches."""
    return run("for-each-ref", "--format=%(refname:lstrip=2)", "refs/heads", cwd=cwd).stdout.splitlines()


def update_ref(ref: str, new: str, old: str | None = None, *, cwd: StrPath, keep: Collection[int] = ()) -> None:
    """Point `ref` to `new`; only if it still is at `old` ("" means: does not exist) when that is given.

    Raises GitFailed when it has moved."""
    run("update-ref", "-m", "necrocode", ref, new, *(() if old is None else (old,)), cwd=cwd, keep=keep)


def delete_ref(ref: str, old: str, *, cwd: StrPath, keep: Collection[int] = ()) -> None:
    """Delete `ref` if it still is at `old`; raises GitFailed when it has moved. No config is written."""
    run("update-ref", "-d", ref, old, cwd=cwd, keep=keep)


def create_branch(name: str, commit: str, *, cwd: StrPath) -> None:
    """Make a branch; raises GitFailed when it exists, ConfigError for a name that cannot be one."""
    update_ref(f"refs/heads/{checked_branch(name)}", commit, "", cwd=cwd)


def delete_branch(name: str, old: str, *, cwd: StrPath, keep: Collection[int] = ()) -> None:
    """Delete a branch that still is at `old`."""
    delete_ref(f"refs/heads/{name}", old, cwd=cwd, keep=keep)


def is_ancestor(older: str, newer: str, *, cwd: StrPath) -> bool:
    """Whether everything in `older` is in `newer` too."""
    return not run("merge-base", "--is-ancestor", older, newer, cwd=cwd, ok=YES_OR_NO).returncode


def merge_base(one: str, other: str, *, cwd: StrPath) -> str | None:
    """The best common ancestor; None for unrelated histories."""
    return one_line("merge-base", one, other, cwd=cwd, ok=YES_OR_NO) or None


def commits(base: str, tip: str, *, cwd: StrPath) -> list[str]:
    """The commits of `tip` that `base` does not have, oldest first."""
    return run("rev-list", "--reverse", "--topo-order", f"{base}..{tip}", "--", cwd=cwd).stdout.split()


def is_held(commit: str, *, cwd: StrPath, but: str = "") -> bool:
    """Whether some ref (other than those under `but`) reaches this commit, so that removing its workspace cannot
    lose it."""
    spared = (f"--exclude={but}",) if but else ()
    # Not --all: that would count the HEAD of every work tree, the one to be removed included.
    return not run("rev-list", "--max-count=1", commit, "--not", *spared, "--glob=refs/*", "--", cwd=cwd).stdout


def merge(revisions: Collection[str], *, cwd: StrPath, message: str = "") -> str:
    """One commit that has all of `revisions`, made without a work tree; the commit itself when one has the others.

    Raises LandingConflict with the paths that two of them changed differently."""
    names = list(revisions)
    merged = rev_parse(names[0], cwd=cwd)
    for number, name in enumerate(names[1:], 1):
        merged = _merge_two(merged, rev_parse(name, cwd=cwd), ", ".join(names[:number]), name, cwd, message)
    return merged


def _merge_two(base: str, tip: str, base_name: str, tip_name: str, cwd: StrPath, message: str) -> str:
    if is_ancestor(tip, base, cwd=cwd):
        return base
    if is_ancestor(base, tip, cwd=cwd):
        return tip
    options = ("--write-tree", "-z", "--name-only", "--no-messages")
    done = run("merge-tree", *options, base, tip, cwd=cwd, ok=YES_OR_NO)
    tree, *paths = nul_separated(done.stdout)
    if done.returncode:
        raise LandingConflict(base_name, tip_name, sorted(set(paths)))
    # As old as the newer of both: merged once more, it is the same commit, and no branch needs to get it twice.
    newer = max(run("show", "--no-patch", "--format=%ct", base, tip, "--", cwd=cwd).stdout.split(), key=int)
    return commit_tree(tree, [base, tip], message or f"Merge {tip_name} into {base_name}", cwd=cwd, at=newer)


def commit_tree(tree: str, parents: Iterable[str], message: str, *, cwd: StrPath, at: str = "") -> str:
    """A commit of `tree`, on no branch yet; `at` is when it was made, in seconds since 1970, if not now."""
    links = [word for parent in parents for word in ("-p", parent)]
    dates = dict.fromkeys(("GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE"), f"@{at} +0000") if at else {}
    env = {**signature(cwd), **dates}
    return run("commit-tree", tree, *links, cwd=cwd, input=message_bytes(message), env=env).stdout.strip()


def signature(cwd: StrPath) -> dict[str, str]:
    """The environment that names author and committer: the caller's own, else git's config, else NOBODY."""
    said = run("config", "-z", "--get-regexp", r"^(user|author|committer)\.(name|email)$", cwd=cwd, ok=YES_OR_NO)
    told = dict(entry.partition("\n")[::2] for entry in nul_separated(said.stdout))  # the last one counts
    known = {key for key, value in told.items() if value.strip(_NO_NAME)}
    chosen = {}
    for role in ("author", "committer"):
        for part, fallback in NOBODY.items():
            variable = f"GIT_{role.upper()}_{part}"
            if given := os.environ.get(variable):
                chosen[variable] = given
            elif not known & {f"user.{part.lower()}", f"{role}.{part.lower()}"}:
                chosen[variable] = fallback
    return chosen


def message_bytes(message: str) -> bytes:
    return message.replace("\0", "").encode("utf-8", "replace")
