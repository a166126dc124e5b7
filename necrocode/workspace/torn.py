"""Branches of ours whose file a power cut left empty. An agent's git does not flush what it renames, and one such file
makes every look at all branches fail, and so everything else in the repository."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from necrocode import git
from necrocode.git import Repository

_OURS = ("refs/heads/necrocode", "refs/necrocode")


def mend(repository: Repository, state_root: Path) -> None:
    """Put each back to the last place that its log knows and whose commits are whole, or remove it. What it held
    besides is lost to git anyway. Takes the mutex when there is something to do."""
    if any(_torn(repository.common_dir)):
        with git.repository_mutex(state_root, repository) as lock:
            _mend(repository.common_dir, (lock,))


def _mend(home: Path, keep: Collection[int]) -> None:
    torn = list(_torn(home))
    for ref in torn:  # all of them first: the others make looking fail
        (home / ref).unlink(missing_ok=True)
    for ref in torn:
        _put_back(home, ref, keep)


def _torn(home: Path) -> Iterator[str]:
    for folder in _OURS:
        for path, _, names in os.walk(home / folder):
            for name in names:
                with suppress(FileNotFoundError):
                    if not name.endswith(".lock") and os.stat(f"{path}/{name}").st_size == 0:
                        yield os.path.relpath(f"{path}/{name}", home)


def _put_back(home: Path, ref: str, keep: Collection[int]) -> None:
    for commit in _logged(home / "logs" / ref):
        known = ("--not", "--branches", "--remotes", "--tags")
        if git.run("rev-list", "--objects", "--quiet", commit, *known, cwd=home, check=False).returncode == 0:
            git.update_ref(ref, commit, "", cwd=home, keep=keep)
            return


def _logged(log: Path) -> Iterator[str]:
    """Where it was, the latest first. The end of the log may be torn as well."""
    with suppress(FileNotFoundError):
        for line in reversed(log.read_bytes().splitlines()):
            words = line.decode(errors="replace").split(" ")
            if len(words) > 2 and len(words[1]) in (40, 64) and set(words[1]) <= set("0123456789abcdef"):
                yield words[1]
