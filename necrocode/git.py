"""Every call of git: one funnel, a clean environment, output meant for programs, paths as the disk spells them.

Nothing of the caller's GIT_* reaches git, no hook and no file-system monitor of the repository is started, no
prompt can appear. Paths are text decoded with `surrogateescape`, so names in any encoding survive the round trip.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import re
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from necrocode.claim import Claim
from necrocode.errors import ConfigError, GateTimeout, GitFailed, LandingConflict, WorkspaceKept

if TYPE_CHECKING:
    from filelock import FileLock

StrPath = str | os.PathLike[str]

OLDEST = (2, 38)
"""The first git with `merge-tree --write-tree`."""

NOBODY = {"NAME": "necrocode", "EMAIL": "necrocode@localhost"}
"""Who signs when the user told git no name: given by environment, never written into a config."""

_SETTINGS = (
    "core.hooksPath=/dev/null", "core.fsmonitor=false", "core.filesRefLockTimeout=1000", "core.packedRefsTimeout=1000",
    "gc.auto=0", "maintenance.auto=false", "submodule.recurse=false", "protocol.ext.allow=never",
    "advice.addEmbeddedRepo=false",
)  # fmt: skip
_IS_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|[^/]*:")
_BAD_REF = re.compile(r"^$|^-|^@$|(^|/)(\.|/|$)|\.\.|\.$|\.lock(/|$)|@\{|[\0-\x20\x7f~^:?*\[\\]")
"""What git refuses in the name of a branch."""
_DEFAULT_PORTS = {"ssh": "22", "https": "443", "http": "80", "git": "9418"}


class Completed(NamedTuple):
    """What one git call said."""

    stdout: str
    stderr: str
    returncode: int


class Repository(NamedTuple):
    """One repository as seen from one of its work trees.

    `root` is the top of that work tree, `common_dir` the git directory that all work trees share, `identity` names
    the repository that the work finally goes to (the same for linked work trees, shared clones and all clones of
    one remote), `ignores_case` tells whether its file system does."""

    root: Path
    common_dir: Path
    identity: str
    ignores_case: bool


# -- the funnel


@lru_cache(8)
def _binary(search_path: str | None) -> str:
    # Found here, not by the child: a relative entry of PATH would be looked up inside the agent's workspace.
    found = shutil.which("git", path=search_path)
    if found is None:
        raise ConfigError("git is not installed, or not on PATH", hint="install git (apt install git) and try again")
    return os.path.abspath(found)


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without its GIT_* variables, in the C locale, never prompting; plus `extra`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    fixed = {"LC_ALL": "C", "LANGUAGE": "C", "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0"}
    return {**kept, **fixed, **(extra or {})}


def _start(
    args: tuple[str, ...], cwd: StrPath, stdin: int, env: Mapping[str, str] | None, keep: Collection[int] = ()
) -> subprocess.Popen[bytes]:
    settings = [word for setting in _SETTINGS for word in ("-c", setting)]
    try:
        return subprocess.Popen(
            [_binary(os.environ.get("PATH")), "--no-pager", *settings, *args],
            cwd=cwd, env=clean_environment(env), stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            # Its own session: a Ctrl-C meant for us must not cut an administrative step in half.
            start_new_session=True, pass_fds=tuple(keep),
        )  # fmt: skip
    except (FileNotFoundError, NotADirectoryError):
        if Path(cwd).is_dir():
            raise
        raise ConfigError(f"{os.fspath(cwd)} is not a directory") from None


def run(
    *args: str,
    cwd: StrPath,
    input: str | bytes | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = True,
    ok: Collection[int] = (0,),
    keep: Collection[int] = (),
) -> Completed:
    """Run `git *args` in `cwd` and return what it said; `keep` are descriptors that stay open in it.

    Raises GitFailed for an exit code that is not in `ok` unless `check` is False, ConfigError when there is no git
    or no such directory."""
    given = os.fsencode(input) if isinstance(input, str) else input
    with _start(args, cwd, subprocess.DEVNULL if given is None else subprocess.PIPE, env, keep) as process:
        stdout, stderr = process.communicate(given)
    done = Completed(os.fsdecode(stdout), os.fsdecode(stderr), process.returncode)
    if check and done.returncode not in ok:
        raise GitFailed(("git", *args), done.returncode, done.stderr, hint=_hint(done.stderr))
    return done


def _hint(stderr: str) -> str:
    if ".lock': File exists" in stderr:
        return "another git works there; when none does, a killed one left the lock file named above: delete it"
    if "No space left" in stderr or "unable to write" in stderr:
        return "free some space on that file system"
    return ""


def _line(*args: str, cwd: StrPath, ok: Collection[int] = (0,)) -> str:
    return run(*args, cwd=cwd, ok=ok).stdout.removesuffix("\n")


YES_OR_NO = (0, 1)
"""Exit codes of git's questions; anything else is a failure, not a no."""


def _fields(text: str) -> list[str]:
    return text.split("\0")[:-1]


@lru_cache(8)
def _checked_version(binary: str) -> tuple[int, ...]:
    said = subprocess.run([binary, "version"], capture_output=True, text=True, env=clean_environment(), check=False).stdout
    found = tuple(map(int, re.findall(r"\d+", said)[:2]))
    if found < OLDEST:
        raise ConfigError(f"{said.strip() or binary} is too old", hint=f"git {OLDEST[0]}.{OLDEST[1]} or newer is needed")
    return found


# -- the repository


def open_repository(path: StrPath) -> Repository:
    """The repository whose work tree `path` lies in.

    Raises ConfigError, with a hint, when there is no git, it is too old, `path` is in no repository, the repository
    is bare, or git refuses it because somebody else owns it."""
    _checked_version(_binary(os.environ.get("PATH")))
    first = run("rev-parse", "--path-format=absolute", "--is-bare-repository", "--git-common-dir", cwd=path, check=False)
    if first.returncode:
        raise _unopened(path, first.stderr)
    bare, common = first.stdout.removesuffix("\n").split("\n", 1)
    top = run("rev-parse", "--path-format=absolute", "--show-toplevel", cwd=path, check=False)
    if top.returncode:
        where = f"{os.fspath(path)} is a bare repository" if bare == "true" else f"{os.fspath(path)} is inside a git directory"
        raise ConfigError(f"{where}: there are no files to work on", hint="name a clone of it, or one of its work trees")
    root, common_dir = Path(top.stdout.removesuffix("\n")), Path(os.path.realpath(common))
    ignores_case = _line("config", "--type=bool", "--get", "core.ignorecase", cwd=root, ok=YES_OR_NO) == "true"
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
        url = _line("remote", "get-url", "origin", cwd=common_dir, ok=(0, 2))
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


def has_commit(cwd: StrPath) -> bool:
    """Whether HEAD names a commit (a fresh `git init` has none)."""
    return run("rev-parse", "--verify", "--quiet", "HEAD^{commit}", cwd=cwd, ok=YES_OR_NO).returncode == 0


def current_branch(cwd: StrPath) -> str | None:
    """The branch that is checked out; None on a detached HEAD."""
    return _line("symbolic-ref", "--quiet", "HEAD", cwd=cwd, ok=YES_OR_NO).removeprefix("refs/heads/") or None


def status(cwd: StrPath) -> list[str]:
    """The paths that differ from the last commit, untracked ones included, ignored ones not."""
    said = run("status", "--porcelain=v1", "-z", "--untracked-files=all", "--no-renames", cwd=cwd).stdout
    return [entry[3:] for entry in _fields(said)]


def is_dirty(cwd: StrPath) -> bool:
    """Whether anything is uncommitted, untracked files included."""
    return bool(status(cwd))


# -- what the disk knows about claims


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
            f"{path} leads to {place}, which is outside the repository {repository.root}", hint="claim paths inside the repository"
        )
    text = "/".join([*(_verbatim(part) for part in relative.parts), *pattern]) or "."
    if not pattern and (path.endswith("/") or place.is_dir()):
        text += "/"
    return Claim.file(_folded(repository, text), repository.identity, shared=shared)


def files_claims(repository: Repository, paths: Iterable[str], cwd: StrPath | None = None) -> tuple[Claim, ...]:
    """`path_claim` of each, without repetition."""
    return tuple(dict.fromkeys(path_claim(repository, path, cwd) for path in paths))


def branch_claim(repository: Repository, name: str) -> Claim:
    """The claim on a branch. Raises ConfigError for a name that git would not take."""
    checked_branch(name)
    return Claim.branch(_folded(repository, name), repository.identity)


def _split(path: str) -> tuple[str, list[str]]:
    segments = path.split("/")
    for depth, segment in enumerate(segments):
        if any(char in segment for char in "*?[") and not os.path.lexists("/".join(segments[: depth + 1])):
            return "/".join(segments[:depth]) or "/", segments[depth:]
    return path, []


def _relative(repository: Repository, place: Path) -> Path | None:
    top = next((above for above in (place, *place.parents) if os.path.lexists(above / ".git")), None)
    if top is not None and top != repository.root:
        common = _git_dir_at(top)
        # Another work tree or clone of the same repository: the same files, whichever of its places was named.
        if common is not None and (common == repository.common_dir or _identity(common) == repository.identity):
            return place.relative_to(top)
    return place.relative_to(repository.root) if place.is_relative_to(repository.root) else None


def _verbatim(segment: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in segment)


def _folded(repository: Repository, text: str) -> str:
    return text.casefold() if repository.ignores_case else text


# -- commits and refs


def checked_branch(name: str) -> str:
    """The name itself, or ConfigError when git would not take it for a branch."""
    if name == "HEAD" or _BAD_REF.search(name):
        raise ConfigError(f"{name!r} cannot be a branch name", hint="see `git help check-ref-format`")
    return name


def rev_parse(revision: str, *, cwd: StrPath) -> str:
    """The commit that `revision` names. Raises ConfigError when there is none."""
    found = run("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}", cwd=cwd, ok=YES_OR_NO)
    if found.returncode:
        raise ConfigError(f"{revision!r} names no commit in {os.fspath(cwd)}", hint="`git branch --all` lists what there is")
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


def update_ref(ref: str, new: str, old: str | None = None, *, cwd: StrPath, keep: Collection[int] = ()) -> None:
    """Point `ref` to `new`; only if it still is at `old` ("" means: does not exist) when that is given.

    Raises GitFailed when it has moved."""
    run("update-ref", "-m", "necrocode", ref, new, *(() if old is None else (old,)), cwd=cwd, keep=keep)


def delete_ref(ref: str, old: str, *, cwd: StrPath) -> None:
    """Delete `ref` if it still is at `old`; raises GitFailed when it has moved. Writes no config, unlike `git branch`."""
    run("update-ref", "-d", ref, old, cwd=cwd)


def create_branch(name: str, commit: str, *, cwd: StrPath) -> None:
    """Make a branch; raises GitFailed when it exists, ConfigError for a name that cannot be one."""
    update_ref(f"refs/heads/{checked_branch(name)}", commit, "", cwd=cwd)


def delete_branch(name: str, old: str, *, cwd: StrPath) -> None:
    """Delete a branch that still is at `old`."""
    delete_ref(f"refs/heads/{name}", old, cwd=cwd)


def is_ancestor(older: str, newer: str, *, cwd: StrPath) -> bool:
    """Whether everything in `older` is in `newer` too."""
    return not run("merge-base", "--is-ancestor", older, newer, cwd=cwd, ok=YES_OR_NO).returncode


def merge_base(one: str, other: str, *, cwd: StrPath) -> str | None:
    """The best common ancestor; None for unrelated histories."""
    return _line("merge-base", one, other, cwd=cwd, ok=YES_OR_NO) or None


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
    tree, *paths = _fields(done.stdout)
    if done.returncode:
        raise LandingConflict(base_name, tip_name, sorted(set(paths)))
    return commit_tree(tree, [base, tip], message or f"Merge {tip_name} into {base_name}", cwd=cwd)


def commit_tree(tree: str, parents: Iterable[str], message: str, *, cwd: StrPath) -> str:
    """A commit of `tree`, on no branch yet."""
    links = [word for parent in parents for word in ("-p", parent)]
    return run("commit-tree", tree, *links, cwd=cwd, input=_text(message), env=signature(cwd)).stdout.strip()


def signature(cwd: StrPath) -> dict[str, str]:
    """The environment that names author and committer: the caller's own, else git's config, else NOBODY."""
    said = run("config", "-z", "--name-only", "--get-regexp", r"^(user|author|committer)\.(name|email)$", cwd=cwd, ok=YES_OR_NO)
    known = {name.lower() for name in _fields(said.stdout)}
    chosen = {}
    for role in ("author", "committer"):
        for part, fallback in NOBODY.items():
            variable = f"GIT_{role.upper()}_{part}"
            if given := os.environ.get(variable):
                chosen[variable] = given
            elif not known & {f"user.{part.lower()}", f"{role}.{part.lower()}"}:
                chosen[variable] = fallback
    return chosen


def _text(message: str) -> bytes:
    return message.replace("\0", "").encode("utf-8", "replace")


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
    run("commit", *options, "-F", "-", cwd=cwd, input=_text(message), env=signature(cwd))
    return rev_parse("HEAD", cwd=cwd)


def _merging(cwd: StrPath) -> bool:
    return run("rev-parse", "--verify", "--quiet", "MERGE_HEAD", cwd=cwd, ok=YES_OR_NO).returncode == 0


def _embedded(cwd: StrPath, env: Mapping[str, str], against: str = "HEAD") -> list[str]:
    """Repositories nested in this work tree that its last commit does not know as submodules."""
    staged = _links(run("ls-files", "--stage", "-z", cwd=cwd, env=env).stdout)
    if not staged:
        return []
    known = run("ls-tree", "-r", "-z", against, cwd=cwd, env=env, check=False)
    return sorted(staged - _links(known.stdout))


def _links(listing: str) -> set[str]:
    return {entry.partition("\t")[2] for entry in _fields(listing) if entry.startswith("160000 ")}


# -- what changed


class Change(NamedTuple):
    """One changed file: lines added and removed (None for binary files), its earlier path when it was renamed."""

    path: str
    added: int | None
    removed: int | None
    old_path: str = ""


def changes(base: str, tip: str, *, cwd: StrPath) -> list[Change]:
    """The files that differ between two commits."""
    options = ("--numstat", "-z", "--find-renames", "--no-ext-diff", "--no-textconv")
    fields = iter(_fields(run("diff", *options, base, tip, "--", cwd=cwd).stdout))
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
    with _start(("diff", *options, base, tip, "--"), cwd, subprocess.DEVNULL, None) as process:
        assert process.stdout is not None and process.stderr is not None
        head = process.stdout.read(limit + 1)
        if len(head) > limit:
            process.kill()
            return os.fsdecode(head[:limit]) + f"\n... cut after {limit} bytes\n"
        stderr = os.fsdecode(process.stderr.read())
    if process.returncode:
        raise GitFailed(("git", "diff", base, tip), process.returncode, stderr)
    return os.fsdecode(head)


# -- the work tree as an object, without touching its index


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
    committed = _line("rev-parse", "--verify", f"{parent}^{{tree}}", cwd=git_dir or path)
    with tempfile.TemporaryDirectory(prefix="necrocode-") as aside:
        env = {"GIT_INDEX_FILE": os.path.join(aside, "index")}
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
    real = _line("rev-parse", "--path-format=absolute", "--git-path", "index", cwd=path)
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
    staged = _links(run("ls-files", "--stage", "-z", cwd=path, env=env).stdout)
    if full := sorted(link for link in staged if _holds_files(os.path.join(path, link))):
        raise WorkspaceKept(os.fspath(path), f"another repository is nested in it, which no snapshot can save: {full[0]}")
    return run("write-tree", cwd=path, env=env).stdout.strip()


def _unhide(path: StrPath, env: Mapping[str, str]) -> None:
    """Files marked assume-unchanged or skip-worktree count like all others, if they are there."""
    tagged = _fields(run("ls-files", "-v", "-z", cwd=path, env=env).stdout)
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


# -- work trees, as git lists them


class Listed(NamedTuple):
    """One entry of `git worktree list`: `branch` without refs/heads/ ("" when detached), `locked` the reason or None."""

    path: Path
    head: str
    branch: str
    locked: str | None


def work_trees(cwd: StrPath) -> list[Listed]:
    """All work trees of the repository, the main one first."""
    said = run("worktree", "list", "--porcelain", "-z", cwd=cwd).stdout
    found = []
    for block in said.split("\0\0")[:-1]:
        facts = dict(line.partition(" ")[::2] for line in block.split("\0"))
        branch = facts.get("branch", "").removeprefix("refs/heads/")
        found.append(Listed(Path(facts["worktree"]), facts.get("HEAD", ""), branch, facts.get("locked")))
    return found


# -- locks


@contextmanager
def repository_mutex(state_root: Path, repository: Repository, *, timeout: float = 600.0) -> Iterator[int]:
    """Hold the one short lock of this repository around administrative steps; never across foreign code.

    Yields the lock's descriptor: given to `run(keep=...)`, the lock outlives a killed holder until its git has ended.
    Raises GateTimeout after `timeout` seconds."""
    name = hashlib.sha256(os.fsencode(repository.common_dir)).hexdigest()[:16]
    from filelock import Timeout

    held: list[int] = []
    lock = _lock(state_root, f"git-{name}", held)
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        raise GateTimeout(str(state_root / "mutex" / f"git-{name}"), timeout, "") from None
    try:
        yield held[0]
    finally:
        lock.release()


@contextmanager
def directory_lock(path: StrPath, *, timeout: float = 60.0) -> Iterator[int]:
    """Hold a directory while git fills it; yields a descriptor for `run(keep=...)`.

    A git whose starter was killed goes on alone, and holds the lock until it has ended. Raises WorkspaceKept when it
    does not end within `timeout` seconds."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        until = time.monotonic() + timeout
        while not _taken(handle):
            if time.monotonic() > until:
                raise WorkspaceKept(os.fspath(path), f"a git of an earlier holder still works in it after {timeout:g} s")
            time.sleep(random.uniform(0.002, 0.01))
        yield handle
    finally:
        os.close(handle)


def _taken(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def checkout_turn(state_root: Path, *, patience: float = 10.0) -> Iterator[None]:
    """Wait for one of as many places as there are cores, so that of many checkouts the first is soon done.

    It orders, it does not protect: after `patience` seconds the caller goes on without a place. Bare flock on files
    opened once, because each try of a FileLock opens its file anew, and many wait here."""
    folder = _mutex_folder(state_root)
    names = [f"checkout-{number}" for number in range(os.cpu_count() or 1)]
    places = [os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _mode(folder)) for name in names]
    try:
        until = time.monotonic() + patience
        while not any(map(_taken, random.sample(places, len(places)))) and time.monotonic() < until:
            time.sleep(random.uniform(0.001, 0.005))
        yield
    finally:
        for place in places:
            os.close(place)


def _mutex_folder(state_root: Path) -> Path:
    folder = state_root / "mutex"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _mode(folder: Path) -> int:
    return 0o600 | (stat.S_IMODE(folder.stat().st_mode) & 0o060)


def _lock(state_root: Path, name: str, held: list[int]) -> FileLock:
    from filelock import FileLock

    folder = _mutex_folder(state_root)
    return FileLock(
        folder / name, thread_local=False, fallback_to_soft=False, mode=_mode(folder), poll_interval=0.005,
        on_acquired=held.append,
    )  # fmt: skip
