"""A repository, the name it is known by to everybody who works on it, and what the disk knows about claims."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from necrocode.claim import Claim
from necrocode.errors import ConfigError
from necrocode.git.calls import YES_OR_NO, StrPath, checked_version, git_binary, one_line, run
from necrocode.git.refs import checked_branch
from necrocode.patterns import escaped

_IS_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|[^/]*:")

_OLD_LOCK = 60.0

_DEFAULT_PORTS = {"ssh": "22", "https": "443", "http": "80", "git": "9418"}


class Repository(NamedTuple):
    """One repository as seen from one of its work trees.

    `root` is the top of that work tree, `common_dir` the git directory that all work trees share, `identity` names
    the repository that the work finally goes to (the same for linked work trees, shared clones and all clones of
    one remote), `ignores_case` tells whether its file system does."""

    root: Path
    common_dir: Path
    identity: str
    ignores_case: bool


DISK = Repository(Path("/"), Path("/"), "/", False)
"""What paths belong to that lie in no repository. Nobody says of it whether it ignores case: it is taken not to."""


def top_above(place: StrPath) -> Path | None:
    """The top of the work tree that this place lies in, or would if it were made, as far as names tell; None for
    none."""
    path = Path(place)
    return next((above for above in (path, *path.parents) if _is_top(above / ".git")), None)


def _is_top(git_dir: Path) -> bool:
    return git_dir.is_file() or os.path.lexists(git_dir / "HEAD")


def open_repository(path: StrPath) -> Repository:
    """The repository whose work tree `path` lies in.

    Raises ConfigError, with a hint, when there is no git, it is too old, `path` is in no repository, the repository
    is bare, or git refuses it because somebody else owns it."""
    checked_version(git_binary(os.environ.get("PATH")))
    first = run(
        "rev-parse", "--path-format=absolute", "--is-bare-repository", "--git-common-dir", cwd=path, check=False
    )
    if first.returncode:
        raise _unopened(path, first.stderr)
    bare, common = first.stdout.removesuffix("\n").split("\n", 1)
    top = run("rev-parse", "--path-format=absolute", "--show-toplevel", cwd=path, check=False)
    if top.returncode:
        where = (
            f"{os.fspath(path)} is a bare repository"
            if bare == "true"
            else f"{os.fspath(path)} is inside a git directory"
        )
        raise ConfigError(
            f"{where}: there are no files to work on", hint="name a clone of it, or one of its work trees"
        )
    root, common_dir = Path(top.stdout.removesuffix("\n")), Path(os.path.realpath(common))
    ignores_case = one_line("config", "--type=bool", "--get", "core.ignorecase", cwd=root, ok=YES_OR_NO) == "true"
    return Repository(root, common_dir, _identity(common_dir), ignores_case)


def _unopened(path: StrPath, stderr: str) -> ConfigError:
    where = os.fspath(path)
    if "dubious ownership" in stderr:
        return ConfigError(
            f"git does not trust {where}: it belongs to another user",
            hint=f"git config --global --add safe.directory {where}",
        )
    if "not a git repository" in stderr:
        return ConfigError(f"{where} is not in a git repository", hint=f"cd into one, or make one: git init {where}")
    said = stderr.strip().splitlines()
    return ConfigError(f"git cannot open {where}: {said[-1] if said else 'no message'}")


def _identity(common_dir: Path) -> str:
    seen: list[str] = []
    while str(common_dir) not in seen and len(seen) < 16:
        seen.append(str(common_dir))
        url = one_line("remote", "get-url", "origin", cwd=common_dir, ok=(0, 2))
        if not url:
            return seen[-1]
        if _IS_URL.match(url) and not url.startswith("file://"):
            return normalised_url(url)
        place = Path(os.path.realpath(_top(common_dir) / url.removeprefix("file://")))
        origin = _git_dir_at(place)
        if origin is None:
            return str(place)
        common_dir = origin
    return min(seen)  # clones in a circle: any name will do, if only all of them choose the same


def _top(common_dir: Path) -> Path:
    return common_dir.parent if common_dir.name == ".git" else common_dir


def _git_dir_at(place: Path) -> Path | None:
    for candidate in (place, Path(f"{place}.git")):
        if candidate.is_dir():
            found = run(
                "rev-parse", "--path-format=absolute", "--git-common-dir", cwd=candidate, check=False,
                env={"GIT_CEILING_DIRECTORIES": str(candidate.parent)},
            )  # fmt: skip
            if not found.returncode:
                return Path(os.path.realpath(found.stdout.removesuffix("\n")))
    return None


def normalised_url(url: str) -> str:
    """One spelling for all ways to reach one remote: no scheme, user, password, default port or `.git`.

    `git@host:a/b.git`, `https://user:secret@HOST/a/b` and `ssh://host:22/a/b/` are all `host/a/b`."""
    scheme, mark, rest = url.partition("://")
    if not mark:
        host, _, path = url.partition(":")
        rest, scheme = f"{host}/{path.lstrip('/')}", "ssh"
    host, _, path = rest.partition("/")
    host = host.rpartition("@")[2].lower().removesuffix(f":{_DEFAULT_PORTS.get(scheme.lower(), '')}")
    path = re.sub(r"/+", "/", path.partition("?")[0]).strip("/").removesuffix(".git").rstrip("/")
    return f"{host}/{path}"


def path_claim(repository: Repository, path: str, cwd: StrPath | None = None, *, shared: bool = False) -> Claim:
    """The claim on a path or pattern written relative to `cwd` (default: the root) or absolute.

    Symbolic links of the part that exists are resolved; a directory, or a trailing slash, means all below it; a
    segment with wildcards is a pattern unless a file of exactly that name exists. Raises ConfigError when the path
    is empty or leads out of the repository."""
    if not path or "\0" in path:
        raise ConfigError(f"{path!r} names nothing")
    fixed, pattern = _split(os.path.join(cwd or repository.root, path))
    place = Path(os.path.realpath(fixed))
    relative = _relative(repository, place)
    if relative is None:
        raise ConfigError(
            f"{path} leads to {place}, which is outside the repository {repository.root}",
            hint="claim paths inside the repository",
        )
    text = "/".join([*(escaped(part) for part in relative.parts), *pattern]) or "."
    if not pattern and (path.endswith("/") or place.is_dir()):
        text += "/"
    return Claim.file(_folded(repository, text), repository.identity, shared=shared)


def entry_claim(repository: Repository, name: str, *, whole: bool = False, shared: bool = False) -> Claim:
    """The claim on an entry by git's own name for it, from the root on: on that very entry, not on what a link leads to
    or a pattern would fit. With `whole`, on all below it."""
    text = _folded(repository, escaped(name) + "/" * whole)
    return Claim.file(text, repository.identity, shared=shared)


def files_claims(
    repository: Repository, paths: Iterable[str], cwd: StrPath | None = None, *, shared: bool = False
) -> tuple[Claim, ...]:
    """`path_claim` of each, and of what is a symbolic link the entry itself, which may be changed as well and which
    patterns fit; without repetition."""
    found: dict[Claim, None] = {}
    for path in paths:
        found[path_claim(repository, path, cwd, shared=shared)] = None
        if (link := _link(repository, os.path.join(cwd or repository.root, path))) is not None:
            found[entry_claim(repository, link, shared=shared)] = None
    return tuple(found)


def _link(repository: Repository, path: str) -> str | None:
    """A link's own name in the repository; None for what is no link, or lies elsewhere."""
    path = path.rstrip("/")
    if not os.path.islink(path):
        return None
    folder, name = os.path.split(path)
    relative = _relative(repository, Path(os.path.realpath(folder)))
    return None if relative is None else str(relative / name)


def branch_claim(repository: Repository, name: str, *, shared: bool = False) -> Claim:
    """The claim on a branch. Raises ConfigError for a name that git would not take."""
    checked_branch(name)
    return Claim.branch(_folded(repository, name), repository.identity, shared=shared)


def _split(path: str) -> tuple[str, list[str]]:
    segments = path.split("/")
    for depth, segment in enumerate(segments):
        if any(char in segment for char in "*?[") and not os.path.lexists("/".join(segments[: depth + 1])):
            return "/".join(segments[:depth]) or "/", segments[depth:]
    return path, []


def _relative(repository: Repository, place: Path) -> Path | None:
    top = top_above(place)
    if top is not None and top != repository.root:
        common = _git_dir_at(top)
        # Another work tree or clone of the same repository: the same files, whichever of its places was named.
        if common is not None and (common == repository.common_dir or _identity(common) == repository.identity):
            return place.relative_to(top)
    return place.relative_to(repository.root) if place.is_relative_to(repository.root) else None


def _folded(repository: Repository, text: str) -> str:
    return text.casefold() if repository.ignores_case else text


class Listed(NamedTuple):
    """One line of `git worktree list`: `branch` without refs/heads/ ("" when detached), `locked` the reason or None."""

    path: Path
    head: str
    branch: str
    locked: str | None


def old_locks(path: StrPath) -> list[Path]:
    """Lock files in the git directory that have been there for a minute: of a git that was killed, most likely."""
    before = time.time() - _OLD_LOCK
    try:
        return [lock for lock in open_repository(path).common_dir.glob("*.lock") if lock.stat().st_mtime < before]
    except (ConfigError, OSError):
        return []


def work_trees(cwd: StrPath) -> list[Listed]:
    """All work trees of the repository, the main one first."""
    said = run("worktree", "list", "--porcelain", "-z", cwd=cwd).stdout
    found = []
    for block in said.split("\0\0")[:-1]:
        facts = dict(line.partition(" ")[::2] for line in block.split("\0"))
        branch = facts.get("branch", "").removeprefix("refs/heads/")
        found.append(Listed(Path(facts["worktree"]), facts.get("HEAD", ""), branch, facts.get("locked")))
    return found
