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
    from necrocode.git import Repository, StrPath


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
    """What `KIND:NAME` texts, paths and branch names mean at `where` (default: here); see Place.wanted."""
    return Place(where or Path.cwd()).wanted(claims, files, branches)


class Place:
    """What names are relative to: a directory, and the repository it lies in, opened when a name may be its."""

    def __init__(self, where: Path, repository: Repository | None = None) -> None:
        self._where, self._known = where, repository
        self._opened: dict[Path, Repository] = {}

    def wanted(
        self, claims: Iterable[str], files: Iterable[str] = (), branches: Iterable[str] = ()
    ) -> tuple[Claim, ...]:
        """The claims that `KIND:NAME` texts, paths and branch names mean, each once.

        Inside a repository, files and branches are claimed as its own; elsewhere a file is its place in the file
        system. Raises ConfigError for what is no claim."""
        texts = [*(f"file:{path}" for path in files), *claims, *(f"branch:{name}" for name in branches)]
        return tuple(dict.fromkeys(claim for text in texts for claim in self._meant(text)))

    @cached_property
    def _repository(self) -> Repository | None:
        return self._known or self._around(self._where)

    def _meant(self, text: str) -> tuple[Claim, ...]:
        shared = text.startswith("shared:")
        kind, _, name = text.removeprefix("shared:").partition(":")
        if name and kind == "file":
            return self._files(name, shared)
        if name and kind == "branch":
            return (self._branch(name, shared),)
        if name and kind == "workspace":
            return (Claim.workspace(os.path.realpath(self._where / name), shared=shared),)
        return (Claim.parse(text),)

    def _files(self, path: str, shared: bool) -> tuple[Claim, ...]:
        from necrocode import git

        if self._repository:
            try:
                return git.files_claims(self._repository, [path], self._where, shared=shared)
            except ConfigError:
                if not os.path.isabs(path):
                    raise
        return git.files_claims(self._of_others(path) or git.DISK, [path], self._where, shared=shared)

    def _of_others(self, path: str) -> Repository | None:
        """Whoever reaches a repository's file from outside means that file; not of one that git does not open for us:
        that is its owner's business."""
        try:
            return self._around(os.path.realpath(self._where / path))
        except ConfigError:
            return None

    def _branch(self, name: str, shared: bool) -> Claim:
        from necrocode import git

        if self._repository:
            return git.branch_claim(self._repository, name, shared=shared)
        return Claim.branch(git.checked_branch(name), shared=shared)

    def _around(self, place: StrPath) -> Repository | None:
        from necrocode import git

        top = git.top_above(place)
        if top and top not in self._opened:
            self._opened[top] = git.open_repository(top)
        return self._opened[top] if top else None
