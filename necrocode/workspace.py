"""The place where one runner works: a linked work tree or a shared clone, on a branch of its own.

Made under the repository's mutex, filled outside it. Whatever step is cut short, `prepare` on the same name finds
the remains and copes. Nothing that only this directory holds is ever removed without having been saved first to
refs/necrocode/snap/<name>/<n>; when it cannot be saved, the directory stays and WorkspaceKept says why.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from necrocode import git
from necrocode.errors import ConfigError, GitFailed, WorkspaceKept
from necrocode.git import Repository

Mode = Literal["worktree", "clone", "given", "none"]

OURS = "necrocode/"
"""Branches below this are named by necrocode: each attempt starts them anew from its base."""
SNAPSHOTS = "refs/necrocode/snap"
CLONES = "refs/necrocode/clone"
INCOMING = "refs/necrocode/incoming"
INCLUDE = ".worktreeinclude"
STALE_LOCK = 1.5
"""Seconds after which a lock file on a ref that is ours alone was left by a git that was killed."""

_REASON = re.compile(r"necrocode (?P<holder>.*?)(?: on (?P<branch>.+) from (?P<base>[0-9a-f]{40,64}))?", re.DOTALL)
_CARRIED = r"^(user\.(name|email)|core\.(autocrlf|eol|safecrlf|symlinks))$"
_TRASH, _HALF_MADE = ".trash-", ".new-"


class Workspace(NamedTuple):
    """A directory to work in: the branch checked out in it, the commit that branch was started from, the names of
    the snapshot refs that were made while it was prepared. `branch` and `base` are "" in mode `none`."""

    path: Path
    branch: str
    base: str
    repository: Repository | None
    mode: Mode
    state_root: Path
    saved: tuple[str, ...] = ()

    @property
    def repo(self) -> Repository:
        """The repository; only mode `none` has none."""
        if self.repository is None:
            raise ConfigError(f"{self.path} is no git workspace")
        return self.repository


class Leftover(NamedTuple):
    """A workspace that necrocode made and that still exists, or whose entry does: who held it, whether its directory
    is gone, holds uncommitted work, and how many commits only its branch has."""

    workspace: Workspace
    holder: str
    missing: bool
    dirty: bool
    ahead: int


def default_directory(repository: Repository) -> Path:
    """`<repo>.worktrees` beside the main work tree (or beside the bare repository)."""
    common = repository.common_dir
    top = common.parent if common.name == ".git" else common
    return top.parent / f"{top.name.removesuffix('.git')}.worktrees"


# -- prepare


def prepare(
    repository: Repository | None,
    *,
    state_root: Path,
    path: git.StrPath,
    branch: str = "",
    base: str = "HEAD",
    mode: Mode = "worktree",
    holder: str = "",
    fresh: bool | None = None,
    setup: Callable[[Workspace], object] | None = None,
) -> Workspace:
    """Make `path` ready to work on `branch`, and run `setup` in it.

    A new branch starts at `base` (any revision). An existing one goes on from its tip, or, when `fresh` (default:
    for branches below `necrocode/`), starts at `base` again after its own commits were saved as a snapshot. What an
    earlier workspace of necrocode left at `path` is saved and replaced; anything else there is refused. When a step
    fails, directory and branch are as they were before.

    Raises ConfigError for what cannot be meant (names, places, bases), WorkspaceKept when remains cannot be saved,
    GitFailed for the rest, and whatever `setup` raises."""
    if mode == "none" or repository is None:
        return _set_up(_plain(Path(path), state_root), setup)
    git.checked_branch(branch)
    if mode == "given":
        return _set_up(_given(repository, Path(path), branch, base, state_root), setup)
    place = Path(os.path.realpath(path))
    _make_parent(place.parent)
    with ExitStack() as undo:
        with git.checkout_turn(state_root):
            start = git.rev_parse(base, cwd=repository.root)
            anew = branch.startswith(OURS) if fresh is None else fresh
            wanted = _Wanted(repository, state_root, place, branch, start, holder, anew)
            workspace = _made(wanted, _clone if mode == "clone" else _link, undo)
        copy_included(repository.root, workspace.path)
        _set_up(workspace, setup)
        undo.pop_all()
    return workspace


def _made(wanted: _Wanted, make: Callable[[_Wanted, ExitStack, tuple[str, ...]], Workspace], undo: ExitStack) -> Workspace:
    saved: tuple[str, ...] = ()
    for attempt in range(3):
        saved += _clear(wanted)
        try:
            return make(wanted, undo, saved)
        except _CameBack:
            # A git whose starter was killed made it after we had looked; the mutex waited for that git to end.
            if attempt == 2:
                raise
    raise AssertionError("unreachable")


class _CameBack(WorkspaceKept):
    """The place was free, and is taken now."""


class _Wanted(NamedTuple):
    repository: Repository
    state_root: Path
    path: Path
    branch: str
    base: str
    holder: str
    fresh: bool

    @property
    def home(self) -> Path:
        # The directory that stays, whichever of the work trees is removed meanwhile.
        return self.repository.common_dir

    @property
    def ref(self) -> str:
        return f"refs/heads/{self.branch}"

    @property
    def reason(self) -> str:
        return f"necrocode {self.holder} on {self.branch} from {self.base}"


def _set_up(workspace: Workspace, setup: Callable[[Workspace], object] | None) -> Workspace:
    if setup is not None:
        setup(workspace)
    return workspace


def _make_parent(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        hint = "choose another place for workspaces"
        raise ConfigError(f"{path} cannot hold workspaces: {error.strerror}", hint=hint) from error


def _plain(path: Path, state_root: Path) -> Workspace:
    _make_parent(path)
    return Workspace(path, "", "", None, "none", state_root)


def _given(home: Repository, path: Path, branch: str, base: str, state_root: Path) -> Workspace:
    repository = git.open_repository(path)
    if repository.identity != home.identity:
        raise ConfigError(f"{path} belongs to {repository.identity}, not to {home.identity}")
    here, dirty = git.current_branch(path), git.status(path)
    start = git.rev_parse(base, cwd=path)
    if dirty and here != branch:
        raise ConfigError(
            f"{path} has uncommitted work on {here or 'a detached HEAD'} ({_few(dirty)}), and {branch} is wanted there",
            hint="commit or stash it, or name another directory",
        )
    tip = git.branch_tip(branch, cwd=path)
    if here != branch:
        new = ("--no-track", "-b", branch, start) if tip is None else (branch,)
        with git.repository_mutex(state_root, repository) as lock:
            git.run("checkout", "--quiet", *new, "--", cwd=path, keep=(lock,))
    return Workspace(path, branch, start, repository, "given", state_root)


def _few(paths: list[str]) -> str:
    return ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


# -- a linked work tree


def _link(wanted: _Wanted, undo: ExitStack, saved: tuple[str, ...]) -> Workspace:
    tip = git.branch_tip(wanted.branch, cwd=wanted.home)
    with git.repository_mutex(wanted.state_root, wanted.repository) as lock:
        _drop_broken(wanted.repository, wanted.path.name)
        _drop_stale_lock(wanted.home, wanted.ref)
        _make_room(wanted, lock)
        start, kept = _starting_point(wanted, tip)
        workspace = Workspace(
            wanted.path, wanted.branch, wanted.base, wanted.repository, "worktree", wanted.state_root, saved + kept
        )
        undo.callback(_roll_back, workspace, tip, start)
        # The entry comes first, and its lock names the branch: no kill can leave a branch that nobody knows.
        options = ("--quiet", "--detach", "--no-checkout", "--lock", "--reason", wanted.reason)
        git.run("worktree", "add", *options, str(wanted.path), start, cwd=wanted.home, keep=(lock,))
        if tip is not None:
            git.run("symbolic-ref", "-m", "necrocode", "HEAD", wanted.ref, cwd=wanted.path, keep=(lock,))
            _move_branch(wanted, start, tip, lock)
    fill = ("reset", "--hard") if tip is not None else ("checkout", "--force", "--no-track", "-b", wanted.branch)
    with git.directory_lock(wanted.path) as lock, _clash_told(wanted):
        git.run(*fill, "--quiet", "--no-recurse-submodules", cwd=wanted.path, keep=(lock,))
    return workspace


def _starting_point(wanted: _Wanted, tip: str | None) -> tuple[str, tuple[str, ...]]:
    """The commit to start from, and the snapshot refs made of the branch's tip (None: no such branch) if it moves."""
    if tip is None or tip == wanted.base:
        return wanted.base, ()
    if not wanted.fresh:
        return tip, ()
    if git.is_ancestor(tip, wanted.base, cwd=wanted.home):
        return wanted.base, ()
    return wanted.base, (_save_ref(wanted.repository, wanted.path, tip),)


def _move_branch(wanted: _Wanted, start: str, tip: str | None, lock: int) -> None:
    if tip != start:
        with _clash_told(wanted):
            git.update_ref(wanted.ref, start, tip or "", cwd=wanted.home, keep=(lock,))


@contextmanager
def _clash_told(wanted: _Wanted) -> Iterator[None]:
    try:
        yield
    except GitFailed as error:
        if clash := re.search(r"'refs/heads/(.+?)' exists; cannot create", error.stderr, re.DOTALL):
            raise ConfigError(
                f"there cannot be a branch {wanted.branch} beside {clash[1]}: git keeps one as a folder of the other",
                hint="choose a branch name that does not begin with the other's",
            ) from error
        raise


def _make_room(wanted: _Wanted, lock: int) -> None:
    """Drop entries of vanished workspaces that are in the way; refuse when a living one has the branch or the place."""
    if not _mentioned(wanted):
        return
    for entry in git.work_trees(wanted.home):
        if entry.path != wanted.path and entry.branch != wanted.branch:
            continue
        if not _is_ours(entry) or (os.path.lexists(entry.path) and entry.path != wanted.path):
            what = f"branch {wanted.branch} is checked out in" if entry.branch == wanted.branch else "git knows another"
            raise ConfigError(
                f"{what} work tree {entry.path}", hint="use another name, or `git worktree remove` it when it is done with"
            )
        _drop_entry(wanted.repository, entry.path, lock)


def _drop_stale_lock(home: Path, ref: str) -> None:
    """Remove the lock that a killed git left on a ref that only we may move: a living git holds one for moments."""
    lock = home / f"{ref}.lock"
    until = time.monotonic() + STALE_LOCK
    while os.path.lexists(lock) and _age(lock) < STALE_LOCK and time.monotonic() < until:
        time.sleep(0.02)
    with suppress(FileNotFoundError, NotADirectoryError):
        lock.unlink()


def _mentioned(wanted: _Wanted) -> bool:
    """Whether any work tree may have this place or branch: a look at git's files, to spare a call of git."""
    home = wanted.home
    if (home / "reftable").exists():
        return True
    heads = [home / "HEAD", *home.glob("worktrees/*/HEAD")]
    places = home.glob("worktrees/*/gitdir")
    return any(_read(head).strip() == f"ref: {wanted.ref}" for head in heads) or any(
        os.path.basename(os.path.dirname(_read(place).strip())) == wanted.path.name for place in places
    )


def _is_ours(entry: git.Listed) -> bool:
    return entry.locked is not None and entry.locked.startswith("necrocode ")


def _drop_entry(repository: Repository, path: Path, lock: int) -> None:
    if path.is_dir() and not any(path.iterdir()):
        path.rmdir()
    if os.path.lexists(path):
        raise _CameBack(str(path), "somebody made it again meanwhile")
    git.run("worktree", "remove", "--force", "--force", str(path), cwd=repository.common_dir, keep=(lock,))


def _drop_broken(repository: Repository, name: str = "") -> None:
    """Remove what a killed `git worktree add` left; call it under the mutex. One such entry can make every git in
    the repository fail ("failed to read commondir").

    It is ours when its lock says so, or it has the name that we are about to use; a stranger's may still be in the
    making, so it must have been there for a while."""
    for entry in _entries(repository.common_dir / "worktrees"):
        if all(_read(entry / part) for part in ("gitdir", "HEAD", "commondir")):
            continue
        if _read(entry / "locked").startswith("necrocode ") or entry.name == name or _age(entry) > 60:
            shutil.rmtree(entry, ignore_errors=True)


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _read(path: Path) -> str:
    try:
        return os.fsdecode(path.read_bytes())
    except OSError:
        return ""


def _roll_back(workspace: Workspace, tip: str | None, start: str) -> None:
    # The error that brought us here is the one to tell; what cannot be undone now, the next prepare finds.
    with suppress(GitFailed, OSError, WorkspaceKept):
        _discard(workspace)
    with suppress(GitFailed):
        if tip is None and not _checked_out(workspace):
            git.delete_branch(workspace.branch, start, cwd=workspace.repo.common_dir)
        elif tip is not None and tip != start:
            git.update_ref(f"refs/heads/{workspace.branch}", tip, start, cwd=workspace.repo.common_dir)


# -- a shared clone


def _clone(wanted: _Wanted, undo: ExitStack, saved: tuple[str, ...]) -> Workspace:
    with git.repository_mutex(wanted.state_root, wanted.repository) as lock:
        _drop_broken(wanted.repository)
        _drop_stale_lock(wanted.home, wanted.ref)
        _make_room(wanted, lock)
        tip = git.branch_tip(wanted.branch, cwd=wanted.home)
        start, kept = _starting_point(wanted, tip)
        workspace = Workspace(
            wanted.path, wanted.branch, wanted.base, wanted.repository, "clone", wanted.state_root, saved + kept
        )
        undo.callback(_roll_back, workspace, tip, start)
        # The record comes first: no kill can orphan the branch, nor a gc at home take the shared objects away.
        _record_clone(wanted)
        _move_branch(wanted, start, tip, lock)
    half = wanted.path.with_name(_HALF_MADE + wanted.path.name)
    delete_tree(half)
    options = ("--quiet", "--shared", "--no-checkout", "--no-tags", "--template=", *_carried_settings(wanted.home))
    git.run("clone", *options, "--", str(wanted.repository.common_dir), str(half), cwd=wanted.home)
    with git.directory_lock(half) as lock:
        git.run("checkout", "--quiet", "--no-track", "-B", wanted.branch, start, "--", cwd=half, keep=(lock,))
    if wanted.path.is_dir():
        wanted.path.rmdir()
    half.rename(wanted.path)
    return workspace


def _carried_settings(root: Path) -> Iterator[str]:
    """Options of `git clone` for settings that a checkout or commit needs and a clone would not have."""
    said = git.run("config", "--local", "-z", "--get-regexp", _CARRIED, cwd=root, ok=git.YES_OR_NO).stdout
    for setting in [*said.split("\0")[:-1], "remote.origin.pushUrl\nfile:///dev/null"]:
        yield from ("--config", setting.replace("\n", "=", 1))


def _clone_ref(path: Path) -> str:
    return f"{CLONES}/{ref_name(path)}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"


def _record_clone(wanted: _Wanted) -> None:
    """One annotated tag object is the record: the base it points to, who and where in its message."""
    facts = {"path": str(wanted.path), "branch": wanted.branch, "holder": wanted.holder, "base": wanted.base}
    head = f"object {wanted.base}\ntype commit\ntag necrocode-clone\ntagger necrocode <necrocode@localhost> 0 +0000\n\n"
    _drop_stale_lock(wanted.home, _clone_ref(wanted.path))
    tag = git.run("hash-object", "-t", "tag", "-w", "--stdin", cwd=wanted.home, input=head + json.dumps(facts) + "\n")
    git.update_ref(_clone_ref(wanted.path), tag.stdout.strip(), cwd=wanted.home)


def _clone_records(repository: Repository) -> list[dict[str, str]]:
    said = git.run("for-each-ref", "--format=%(contents)%00", CLONES, cwd=repository.common_dir).stdout
    return [json.loads(text) for text in said.split("\0") if text.strip()]


def collect(workspace: Workspace) -> str:
    """Bring the branch of a shared clone home and return its tip there; of any other workspace, just tell the tip.

    Only objects are read from the clone; none of its settings, hooks or filters is used. When the branch at home has
    commits that the clone's has not, they are saved as a snapshot first. Raises GitFailed when the clone has no such
    branch or cannot be read, ConfigError when somebody has the branch checked out at home."""
    if workspace.mode != "clone":
        return git.rev_parse(f"refs/heads/{workspace.branch}", cwd=workspace.path)
    with _fetched(workspace) as tip:
        return _bring_home(workspace, tip)


def _bring_home(workspace: Workspace, new: str) -> str:
    root, there = workspace.repo.common_dir, _checked_out(workspace)
    with git.repository_mutex(workspace.state_root, workspace.repo) as lock:
        old = git.branch_tip(workspace.branch, cwd=root)
        if old is not None and git.is_ancestor(new, old, cwd=root):
            return old
        if there:
            raise ConfigError(f"branch {workspace.branch} cannot move: it is checked out in {there[0]}")
        if old is not None and not git.is_ancestor(old, new, cwd=root):
            _save_ref(workspace.repo, workspace.path, old)
        git.update_ref(f"refs/heads/{workspace.branch}", new, old or "", cwd=root, keep=(lock,))
        return new


@contextmanager
def _fetched(workspace: Workspace) -> Iterator[str]:
    """The tip of a clone's branch, kept at home under a ref of its own for as long as needed."""
    home = workspace.repo.common_dir
    ref = f"{_incoming(workspace)}/{os.getpid()}/tip"
    _fetch(workspace, f"+refs/heads/{workspace.branch}:{ref}")
    tip = git.rev_parse(ref, cwd=home)
    try:
        yield tip
    finally:
        _forget(home, ref)


def _incoming(workspace: Workspace) -> str:
    return f"{INCOMING}/{ref_name(workspace.path)}"


def _forget(home: Path, *refs: str) -> None:
    # Not checked: a git that outlived a killed process may have deleted them first.
    for ref in refs:
        git.run("update-ref", "-d", ref, cwd=home, check=False)


def _checked_out(workspace: Workspace) -> list[Path]:
    trees = _listed(workspace.repo, workspace.state_root)
    return [entry.path for entry in trees if entry.branch == workspace.branch]


def _fetch(workspace: Workspace, *refspecs: str) -> None:
    options = ("--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-gc", "--no-recurse-submodules")
    git.run(
        "-c", "transfer.fsckObjects=true", "fetch", *options, "--", str(workspace.path), *refspecs, cwd=workspace.repo.common_dir
    )  # fmt: skip


# -- the commit of a workspace


def commit(workspace: Workspace, message: str) -> str | None:
    """Commit all that changed (untracked files included) on the workspace's branch; the commit, or None.

    For a shared clone the commit is made at home from the clone's files, without running git inside the clone."""
    if workspace.mode != "clone":
        return git.commit_all(workspace.path, message)
    root, tip = workspace.repo.common_dir, collect(workspace)
    tree = git.work_tree(workspace.path, parent=tip, git_dir=workspace.repo.common_dir)
    if tree.files == tree.committed:
        return None
    made = git.commit_tree(tree.files, [tip], message, cwd=root)
    git.update_ref(f"refs/heads/{workspace.branch}", made, tip, cwd=root)
    return made


# -- what is in the way


def _clear(wanted: _Wanted) -> tuple[str, ...]:
    """Save and remove what an earlier workspace of ours left at this place; returns the snapshot refs."""
    path = wanted.path
    if not os.path.lexists(path):
        return ()
    if not path.is_dir():
        raise ConfigError(f"{path} is in the way: a workspace needs a directory there")
    with git.directory_lock(path):
        return _replace(wanted)


def _replace(wanted: _Wanted) -> tuple[str, ...]:
    path = wanted.path
    if not any(path.iterdir()):
        return ()
    found = next((left for left in _found(wanted.repository, wanted.state_root) if left.workspace.path == path), None)
    if found is None and _git_link(path, wanted.repository) == "gone":
        # git's entry is gone, the directory is not: it was a work tree of this repository all the same.
        old = Workspace(path, wanted.branch, wanted.base, wanted.repository, "worktree", wanted.state_root)
    elif found is None:
        raise ConfigError(
            f"{path} is in the way: it holds files, and necrocode did not put them there", hint="move it, or choose another place"
        )
    else:
        old = found.workspace
    saved = preserve(old)
    _discard(old)
    return saved


def _git_link(path: Path, repository: Repository) -> Literal["linked", "gone", "own", "foreign"]:
    """What `.git` in a directory is: our link, our link to an entry that is gone (or no link any more), a clone's
    own directory, or something else that leads to no place of this repository."""
    link = path / ".git"
    if link.is_dir():
        return "own"
    target = Path(os.path.realpath(path / _read(link).removeprefix("gitdir: ").removesuffix("\n")))
    if target.parent != repository.common_dir / "worktrees":
        return "foreign"
    return "linked" if (target / "HEAD").exists() else "gone"


# -- saving


def preserve(workspace: Workspace) -> tuple[str, ...]:
    """Save all that only this workspace holds; returns the refs made (none when everything is safe already).

    Uncommitted and untracked files, commits that no ref reaches; of a clone, its branch and all its other refs.
    Raises WorkspaceKept when anything cannot be saved."""
    try:
        return _preserve_clone(workspace) if workspace.mode == "clone" else _preserve_linked(workspace)
    except (GitFailed, ConfigError, OSError) as error:
        raise WorkspaceKept(str(workspace.path), f"its work could not be saved: {error}") from error


def _preserve_linked(workspace: Workspace) -> tuple[str, ...]:
    path, repository = workspace.path, workspace.repo
    link = _git_link(path, repository)
    if not any(path.iterdir()):
        return ()
    if link == "own" or (link == "foreign" and os.path.lexists(path / ".git")):
        raise WorkspaceKept(str(path), "its .git leads to another repository now")
    if link != "linked":
        parent = git.branch_tip(workspace.branch, cwd=repository.common_dir) or workspace.base
        return _save_files(workspace, parent, git_dir=repository.common_dir)
    head = _head(workspace)
    if saved := _save_files(workspace, head):
        return saved
    return () if git.is_held(head, cwd=repository.common_dir) else (_save_ref(repository, path, head),)


def _head(workspace: Workspace) -> str:
    """The commit that is checked out, or, on a branch without commits, the base."""
    return git.rev_parse("HEAD" if git.has_commit(workspace.path) else workspace.base, cwd=workspace.path)


def _save_files(workspace: Workspace, parent: str, git_dir: Path | None = None) -> tuple[str, ...]:
    tree = git.work_tree(workspace.path, parent=parent, git_dir=git_dir)
    if not tree.dirty:
        return ()
    return (
        _next_snapshot(
            workspace.repo, workspace.path,
            lambda ref: git.snapshot(workspace.path, ref, parent=parent, git_dir=git_dir, tree=tree),
        ),
    )  # fmt: skip


def _preserve_clone(workspace: Workspace) -> tuple[str, ...]:
    path, root = workspace.path, workspace.repo.common_dir
    if _git_link(path, workspace.repo) != "own":
        return _save_files(workspace, workspace.base, git_dir=workspace.repo.common_dir)
    if len(_read(path / ".git/logs/refs/stash").splitlines()) > 1:
        raise WorkspaceKept(str(path), "it has several stashes, of which only the last could be fetched")
    with _all_fetched(workspace) as (tips, head):
        ours = tips.pop(f"refs/heads/{workspace.branch}", None)
        home = workspace.base if ours is None else _bring_home(workspace, ours)
        lost = dict.fromkeys(tip for tip in tips.values() if not git.is_held(tip, cwd=root, but=f"{INCOMING}/*"))
        saved = [_save_ref(workspace.repo, path, tip) for tip in lost]
        # What the runner committed at home, the clone itself does not know.
        parent = head if head and not git.is_ancestor(head, home, cwd=root) else home
        return (*saved, *_save_files(workspace, parent, git_dir=workspace.repo.common_dir))


@contextmanager
def _all_fetched(workspace: Workspace) -> Iterator[tuple[dict[str, str], str | None]]:
    """All refs of a clone by name, a detached HEAD included, and the commit of its HEAD, all kept at home meanwhile."""
    home, folder = workspace.repo.common_dir, f"{_incoming(workspace)}/{os.getpid()}/"
    head = _read(workspace.path / ".git" / "HEAD").strip()
    refspecs = [f"+refs/*:{folder}refs/*", *([] if head.startswith("ref: ") else [f"+HEAD:{folder}HEAD"])]
    _fetch(workspace, *refspecs)
    refs = _refs_under(_incoming(workspace), home)
    tips = {ref.removeprefix(folder): tip for ref, tip in refs.items()}
    yield tips, tips.get(head.removeprefix("ref: ") if head.startswith("ref: ") else "HEAD")
    # Not when something failed: then these refs keep what was fetched, and the next attempt clears them.
    _forget(home, *refs)


def _refs_under(folder: str, root: Path) -> dict[str, str]:
    said = git.run("for-each-ref", "--format=%(refname) %(objectname)", folder, cwd=root).stdout.splitlines()
    return dict((line.rsplit(" ", 1)[0], line.rsplit(" ", 1)[1]) for line in said)


def _save_ref(repository: Repository, path: Path, commit: str) -> str:
    return _next_snapshot(repository, path, lambda ref: git.update_ref(ref, commit, "", cwd=repository.common_dir))


def _next_snapshot(repository: Repository, path: Path, save: Callable[[str], Any]) -> str:
    """Save under the first free number; the numbers of one name only grow, whoever else saves at the same time."""
    number = 0
    for attempt in range(20):
        number = max(number, _last_number(repository, path)) + 1
        ref = f"{SNAPSHOTS}/{ref_name(path)}/{number}"
        try:
            save(ref)
        except GitFailed:
            locked = os.path.lexists(repository.common_dir / f"{ref}.lock")
            if attempt == 19 or not (locked or git.ref_tip(ref, cwd=repository.common_dir)):
                raise
        else:
            return ref
    raise AssertionError("unreachable")


def _last_number(repository: Repository, path: Path) -> int:
    refs = _refs_under(f"{SNAPSHOTS}/{ref_name(path)}", repository.common_dir)
    return max((int(last) for last in (ref.rpartition("/")[2] for ref in refs) if last.isdigit()), default=0)


def ref_name(path: Path) -> str:
    """The last part of a path as one part of a ref: bytes that refs cannot have are written %XX."""
    text = re.sub(rb"[^A-Za-z0-9._-]", _percent, os.fsencode(path.name))
    return re.sub(rb"^\.|\.(?=\.|$|lock$)", _percent, text).decode() or "%2F"


def _percent(match: re.Match[bytes]) -> bytes:
    return b"".join(b"%%%02X" % byte for byte in match[0])


# -- removal


def retire(workspace: Workspace, *, landed: bool, force: bool = False) -> tuple[str, ...]:
    """Remove a workspace that is done with; returns the snapshot refs that were made of its contents.

    `landed` says that the commits of its branch are where they belong. Refused with WorkspaceKept while it has
    uncommitted work, commits that have not landed, or commits on no branch; `force` removes it all the same once
    everything is saved, and never without. Branches with commits of their own stay. Directories that were given,
    or have no git, are left alone."""
    if workspace.mode in ("none", "given"):
        return ()
    if not os.path.lexists(workspace.path):
        _discard(workspace)
        if not landed:
            _drop_empty_branch(workspace)
        return ()
    if not force and (reason := _why_keep(workspace, landed)):
        raise WorkspaceKept(str(workspace.path), reason)
    saved = preserve(workspace)
    _discard(workspace)
    if not landed:
        _drop_empty_branch(workspace)
    return saved


def _why_keep(workspace: Workspace, landed: bool) -> str:
    root, path = workspace.repo.common_dir, workspace.path
    link = _git_link(path, workspace.repo)
    if link != ("own" if workspace.mode == "clone" else "linked"):
        return "it is no longer a work tree of its repository"
    if workspace.mode == "clone":
        tip = collect(workspace)
        tree = git.work_tree(path, parent=tip, git_dir=workspace.repo.common_dir)
    else:
        tip = _head(workspace)
        tree = git.work_tree(path, parent=tip)
    if tree.dirty:
        changed = [change.path for change in git.changes(tree.committed, tree.files, cwd=root)]
        return f"it has uncommitted work: {_few(changed) or 'staged changes'}"
    if not git.is_held(tip, cwd=workspace.repo.common_dir):
        return "it has commits that are on no branch"
    ahead = 0 if landed else len(git.commits(workspace.base, tip, cwd=root))
    return f"{ahead} commits of {workspace.branch} have not landed" if ahead else ""


def _drop_empty_branch(workspace: Workspace) -> None:
    """A branch that we named and that never got a commit goes with its workspace."""
    if workspace.branch.startswith(OURS) and git.branch_tip(workspace.branch, cwd=workspace.repo.common_dir) == workspace.base:
        with suppress(GitFailed):
            git.delete_branch(workspace.branch, workspace.base, cwd=workspace.repo.common_dir)


def _discard(workspace: Workspace) -> None:
    """Take the directory out of the way in one step, forget its entry, and only then delete it."""
    try:
        trash = _aside(workspace.path)
    except OSError as error:
        raise WorkspaceKept(str(workspace.path), f"it could not be moved aside: {error}") from error
    if workspace.mode == "clone":
        _forget(workspace.repo.common_dir, _clone_ref(workspace.path))
        delete_tree(workspace.path.with_name(_HALF_MADE + workspace.path.name))
    else:
        with git.repository_mutex(workspace.state_root, workspace.repo) as lock:
            _drop_broken(workspace.repo, workspace.path.name)
            if any(entry.path == workspace.path and _is_ours(entry) for entry in git.work_trees(workspace.repo.common_dir)):
                _drop_entry(workspace.repo, workspace.path, lock)
    if trash is not None:
        delete_tree(trash)


def _aside(path: Path) -> Path | None:
    if not os.path.lexists(path):
        return None
    trash = Path(tempfile.mkdtemp(prefix=_TRASH, dir=path.parent))
    with ExitStack() as undo:
        undo.callback(trash.rmdir)
        path.rename(trash / "workspace")
        undo.pop_all()
    return trash


def empty_trash(directory: Path) -> list[Path]:
    """Delete what removals that were cut short left in a directory of workspaces; returns what could not be."""
    trash = [entry for entry in _entries(directory) if entry.name.startswith(_TRASH)]
    return [entry for entry in trash if not delete_tree(entry)]


def delete_tree(tree: Path) -> bool:
    """Delete a directory, never through a symbolic link; whether it is gone."""
    shutil.rmtree(tree, ignore_errors=True)
    if os.path.lexists(tree):
        _make_writable(tree)
        shutil.rmtree(tree, ignore_errors=True)
    return not os.path.lexists(tree)


def _make_writable(tree: Path) -> None:
    with suppress(OSError):
        for _, folders, _, handle in os.fwalk(tree):
            for folder in folders:
                if stat.S_ISDIR(os.stat(folder, dir_fd=handle, follow_symlinks=False).st_mode):
                    os.chmod(folder, 0o700, dir_fd=handle)


# -- what is left


def list_leftovers(repository: Repository, state_root: Path) -> list[Leftover]:
    """All workspaces of this repository that necrocode made, living or not: the caller knows whose lease is gone.

    Each can be given to `retire`; what cannot be judged counts as dirty."""
    return [_judged(left) for left in _found(repository, state_root)]


def _found(repository: Repository, state_root: Path) -> Iterator[Leftover]:
    for entry in _listed(repository, state_root):
        said = _REASON.fullmatch(entry.locked or "")
        if said:
            branch, base = said["branch"] or entry.branch, said["base"] or entry.head
            workspace = Workspace(entry.path, branch, base, repository, "worktree", state_root)
            yield Leftover(workspace, said["holder"], not os.path.lexists(entry.path), False, 0)
    for record in _clone_records(repository):
        path, branch = Path(record["path"]), record["branch"]
        workspace = Workspace(path, branch, record["base"], repository, "clone", state_root)
        yield Leftover(workspace, record["holder"], not os.path.lexists(path), False, 0)


def _listed(repository: Repository, state_root: Path) -> list[git.Listed]:
    try:
        return git.work_trees(repository.common_dir)
    except GitFailed:
        with git.repository_mutex(state_root, repository):
            _drop_broken(repository)
            return git.work_trees(repository.common_dir)


def _judged(left: Leftover) -> Leftover:
    workspace, root = left.workspace, left.workspace.repo.common_dir
    if left.missing:
        tip = git.branch_tip(workspace.branch, cwd=root) if workspace.branch else None
        return left._replace(ahead=len(git.commits(workspace.base, tip, cwd=root)) if tip else 0)
    try:
        with _tip(workspace) as tip:
            git_dir = workspace.repo.common_dir if workspace.mode == "clone" else None
            tree = git.work_tree(workspace.path, parent=tip, git_dir=git_dir)
            return left._replace(dirty=tree.dirty, ahead=len(git.commits(workspace.base, tip, cwd=root)))
    except (GitFailed, ConfigError, WorkspaceKept):
        return left._replace(dirty=True)


@contextmanager
def _tip(workspace: Workspace) -> Iterator[str]:
    if workspace.mode != "clone":
        yield _head(workspace)
        return
    home, known = workspace.repo.common_dir, git.branch_tip(workspace.branch, cwd=workspace.repo.common_dir)
    with _fetched(workspace) as tip:
        yield known if known is not None and git.is_ancestor(tip, known, cwd=home) else tip


# -- .worktreeinclude


def copy_included(source: Path, target: Path) -> list[str]:
    """Copy the files of a checkout that its .worktreeinclude names and git ignores (.env and the like).

    The file has gitignore's syntax, and git itself matches it. Links are copied as links when they stay inside,
    else left out; nothing that the workspace has already is replaced."""
    if not (source / INCLUDE).is_file():
        return []
    listing = ("ls-files", "-z", "--others", "--ignored", f"--exclude-from={source / INCLUDE}")
    named = git.run(*listing, cwd=source).stdout
    ignored = git.run("check-ignore", "-z", "--stdin", cwd=source, input=named, ok=git.YES_OR_NO).stdout
    return [name for name in ignored.split("\0")[:-1] if _copy(source, target, name)]


def _copy(source: Path, target: Path, name: str) -> bool:
    here, there = source / name, target / name
    real = Path(os.path.realpath(target))
    if os.path.lexists(there) or not Path(os.path.realpath(there.parent)).is_relative_to(real):
        return False
    mode = here.lstat().st_mode
    inside = Path(os.path.realpath(here)).is_relative_to(os.path.realpath(source)) and not os.readlink(here).startswith("/") \
        if stat.S_ISLNK(mode) else stat.S_ISREG(mode)
    if inside:
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(here, there, follow_symlinks=False)
    return inside
