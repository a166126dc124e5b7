"""Claims as a person writes them, resolved against the directory and the repository they were written in."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from necrocode.claim import Claim
from necrocode.errors import ConfigError, Refused
from necrocode.process import MARKER
from necrocode.statedir import mark

if TYPE_CHECKING:
    from necrocode.git import Repository


def refuse_own(refused: Refused, state_root: Path) -> None:
    """Raise it, instead of waiting, when the runner inside which this process runs holds what is wanted: it ends
    after us, so that would take for ever."""
    lease = os.environ.get(MARKER)
    if lease and any(it.claim and lease == mark(state_root, it.runner_id) for it in refused.blockers):
        refused.hint = "this runs inside that very runner: what it holds is yours already, so leave this claim out"
        raise refused


def wanted(
    claims: Iterable[str], files: Iterable[str] = (), branches: Iterable[str] = (), where: Path | None = None
) -> tuple[Claim, ...]:
    """The claims that `KIND:NAME` texts, paths and branch names mean, each once; paths are relative to `where`.

    Inside a repository, files and branches are claimed as its own; elsewhere a file is its place in the file system.
    Raises ConfigError for what is no claim."""
    place = _Place(where or Path.cwd())
    texts = [*claims, *(f"file:{path}" for path in files), *(f"branch:{name}" for name in branches)]
    return tuple(dict.fromkeys(map(place.claim, texts)))


class _Place:
    """A directory, and the repository it lies in, opened when it is needed for the first time."""

    def __init__(self, where: Path) -> None:
        self._where = where

    def claim(self, text: str) -> Claim:
        shared = text.startswith("shared:")
        kind, _, name = text.removeprefix("shared:").partition(":")
        if name and kind == "file":
            return self._file(name, shared)
        if name and kind == "branch":
            return self._branch(name, shared)
        if name and kind == "workspace":
            return Claim.workspace(os.path.realpath(self._where / name), shared=shared)
        return Claim.parse(text)

    @cached_property
    def _repository(self) -> Repository | None:
        if not any(os.path.lexists(above / ".git") for above in (self._where, *self._where.parents)):
            return None
        from necrocode import git

        return git.open_repository(self._where)

    def _file(self, path: str, shared: bool) -> Claim:
        if self._repository:
            from necrocode import git

            try:
                return git.path_claim(self._repository, path, self._where, shared=shared)
            except ConfigError:
                if not os.path.isabs(path):
                    raise
        place = os.path.realpath(self._where / path)
        return Claim.file(f"{place}/" if path.endswith("/") or os.path.isdir(place) else place, shared=shared)

    def _branch(self, name: str, shared: bool) -> Claim:
        from necrocode import git

        if self._repository:
            return git.branch_claim(self._repository, name, shared=shared)
        return Claim.branch(git.checked_branch(name), shared=shared)
