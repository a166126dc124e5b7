"""What is in a work tree, what of it is committed, and what changed between commits."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from typing import NamedTuple

from necrocode.errors import GitFailed
from necrocode.git.calls import YES_OR_NO, StrPath, nul_separated, run, start_git
from necrocode.git.refs import message_bytes, rev_parse, signature


def status(cwd: StrPath) -> list[str]:
    """The paths that differ from the last commit, untracked ones included, ignored ones not."""
    said = run("status", "--porcelain=v1", "-z", "--untracked-files=all", "--no-renames", cwd=cwd).stdout
    return [entry[3:] for entry in nul_separated(said)]


def is_dirty(cwd: StrPath) -> bool:
    """Whether anything is uncommitted, untracked files included."""
    return bool(status(cwd))


def commit_all(cwd: StrPath, message: str) -> str | None:
    """Commit everything that changed in the work tree, untracked files included; None when nothing did.

    Repositories nested inside are left out: a commit could only hold their name. Hooks and signing are not used."""
    run("add", "--all", "--sparse", cwd=cwd)
    if embedded := _embedded(cwd, {}):
        run("update-index", "--force-remove", "-z", "--stdin", cwd=cwd, input="".join(f"{path}\0" for path in embedded))
    same = not run("diff", "--cached", "--quiet", "--no-ext-diff", cwd=cwd, ok=YES_OR_NO).returncode
    if same and not _merging(cwd):
        return None
    options = ("--quiet", "--no-verify", "--no-gpg-sign", "--allow-empty-message", "--cleanup=verbatim")
    run("commit", *options, "-F", "-", cwd=cwd, input=message_bytes(message), env=signature(cwd))
    return rev_parse("HEAD", cwd=cwd)


def _merging(cwd: StrPath) -> bool:
    return run("rev-parse", "--verify", "--quiet", "MERGE_HEAD", cwd=cwd, ok=YES_OR_NO).returncode == 0


def _embedded(cwd: StrPath, env: Mapping[str, str], against: str = "HEAD") -> list[str]:
    """Repositories nested in this work tree that its last commit does not know as submodules."""
    staged = gitlinks(run("ls-files", "--stage", "-z", cwd=cwd, env=env).stdout)
    if not staged:
        return []
    known = run("ls-tree", "-r", "-z", against, cwd=cwd, env=env, check=False)
    return sorted(staged - gitlinks(known.stdout))


def gitlinks(listing: str) -> set[str]:
    return {entry.partition("\t")[2] for entry in nul_separated(listing) if entry.startswith("160000 ")}


class Change(NamedTuple):
    """One changed file: lines added and removed (None for binary files), its earlier path when it was renamed."""

    path: str
    added: int | None
    removed: int | None
    old_path: str = ""


def changes(base: str, tip: str, *, cwd: StrPath) -> list[Change]:
    """The files that differ between two commits."""
    options = ("--numstat", "-z", "--find-renames", "--no-ext-diff", "--no-textconv")
    fields = iter(nul_separated(run("diff", *options, base, tip, "--", cwd=cwd).stdout))
    found = []
    for field in fields:
        added, removed, path = field.split("\t", 2)
        old = "" if path else next(fields)
        found.append(Change(path or next(fields), _count(added), _count(removed), old))
    return found


def _count(text: str) -> int | None:
    return None if text == "-" else int(text)


def diff(base: str, tip: str, *, cwd: StrPath, limit: int = 1 << 20) -> str:
    """The difference of two commits as text, cut after `limit` bytes with a line that says so."""
    options = ("--no-color", "--no-ext-diff", "--no-textconv", "--find-renames")
    with start_git(("diff", *options, base, tip, "--"), cwd, subprocess.DEVNULL, None) as process:
        assert process.stdout is not None and process.stderr is not None
        head = process.stdout.read(limit + 1)
        if len(head) > limit:
            process.kill()
            return os.fsdecode(head[:limit]) + f"\n... cut after {limit} bytes\n"
        stderr = os.fsdecode(process.stderr.read())
    if process.returncode:
        raise GitFailed(("git", "diff", base, tip), process.returncode, stderr)
    return os.fsdecode(head)
