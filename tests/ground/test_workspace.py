"""workspace.py with real git and real processes: made, filled, saved, removed, and found again after any kill."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
from byhand import sh

from necrocode import git, workspace
from necrocode.errors import ConfigError, GitFailed, LandingConflict, WorkspaceKept
from necrocode.workspace import Workspace
from necrocode.workspace.checkout import _make_in
from necrocode.workspace.entries import forget
from necrocode.workspace.place import clone_ref

PROJECT = Path(__file__).parents[2]
MODES = ["worktree", "clone"]


class Home:
    """A repository and what is beside it, with short words for what the tests do."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = root.parent / "state"
        self.repository = git.open_repository(root)
        self.folder = workspace.default_directory(self.repository)

    def prepare(self, name: str = "t1", branch: str = "", **options) -> Workspace:
        given = {
            "state_root": self.state,
            "path": self.folder / name,
            "branch": branch or f"necrocode/run/{name}",
            "holder": "r1",
        }
        return workspace.prepare(self.repository, **{**given, **options})

    def snapshots(self) -> dict[str, str]:
        lines = sh(
            "git", "for-each-ref", "--format=%(refname) %(objectname)", "refs/necrocode/snap", cwd=self.root
        ).splitlines()
        return dict(line.split(" ") for line in lines)

    def branches(self) -> set[str]:
        return set(sh("git", "for-each-ref", "--format=%(refname:lstrip=2)", "refs/heads", cwd=self.root).splitlines())

    def entries(self) -> list[Path]:
        return [entry.path for entry in git.work_trees(self.root)[1:]]

    def blob(self, commit: str, name: str) -> str:
        return sh("git", "cat-file", "blob", f"{commit}:{name}", cwd=self.root)

    def assert_tidy(self) -> None:
        """No trace of any workspace: no entry, directory, branch or record, and a sound object store."""
        assert self.entries() == []
        assert not self.folder.exists()
        assert self.branches() == {"main"}
        assert sh("git", "for-each-ref", "refs/necrocode/clone", "refs/necrocode/incoming", cwd=self.root) == ""
        admin = self.root / ".git" / "worktrees"
        assert not admin.exists() or not list(admin.iterdir())
        sh("git", "fsck", "--strict", cwd=self.root)


@pytest.fixture
def home(repository: Path) -> Home:
    return Home(repository)


def commit(place: Path, name: str = "work", text: str = "done\n") -> str:
    (place / name).write_text(text)
    sh("git", "add", "-A", cwd=place)
    sh("git", "commit", "-qm", "work", cwd=place)
    return sh("git", "rev-parse", "HEAD", cwd=place)


# -- made


@pytest.mark.parametrize("mode", MODES)
def test_a_workspace_is_a_clean_checkout_of_the_base_on_its_branch(home, mode):
    made = home.prepare(mode=mode)
    assert (made.path, made.branch, made.mode) == (home.folder / "t1", "necrocode/run/t1", mode)
    assert made.base == git.rev_parse("HEAD", cwd=home.root)
    assert git.current_branch(made.path) == "necrocode/run/t1"
    assert (made.path / "src" / "a.py").read_text() == (home.root / "src" / "a.py").read_text()
    assert not git.is_dirty(made.path)
    assert git.open_repository(made.path).identity == home.repository.identity
    assert not git.is_dirty(home.root)
    assert git.current_branch(home.root) == "main"


def test_a_linked_work_tree_is_locked_with_its_holder_and_tracks_nothing(home):
    config = (home.root / ".git" / "config").read_text()
    sh("git", "update-ref", "refs/remotes/origin/main", "HEAD", cwd=home.root)
    made = home.prepare(base="origin/main", holder="run.t1.1")
    (entry,) = git.work_trees(home.root)[1:]
    assert entry.locked == f"necrocode run.t1.1 on necrocode/run/t1 from {made.base} at {made.path}"
    assert (home.root / ".git" / "config").read_text() == config


def test_any_revision_can_be_the_base(home):
    first = git.rev_parse("HEAD~1", cwd=home.root)
    made = home.prepare(base="HEAD~1")
    assert made.base == git.rev_parse("HEAD", cwd=made.path) == first
    assert not (made.path / "src").exists()
    with pytest.raises(ConfigError, match="names no commit"):
        home.prepare("t2", base="nothing")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "name", ["with space", "new\nline", "ünï", os.fsdecode(b"latin-\xff"), "-dash", ".hidden.lock", "a..b", "x."]
)
def test_odd_names_of_places_work(home, mode, name):
    made = home.prepare(name, "b", mode=mode)
    (made.path / "new").write_text("x")
    (left,) = workspace.list_leftovers(home.repository, home.state)
    assert (left.workspace.path, left.dirty, left.holder) == (made.path, True, "r1")
    (saved,) = workspace.retire(left.workspace, landed=False, force=True)
    assert home.blob(saved, "new") == "x"
    assert home.entries() == []
    assert not home.folder.exists()


def test_what_git_cannot_share_is_told_before_anything_is_made(home):
    home.root.rename(home.root.with_name("new\nline"))
    moved = Home(home.root.with_name("new\nline"))
    with pytest.raises(ConfigError, match="line break"):
        moved.prepare(mode="clone")
    moved.assert_tidy()
    assert moved.prepare(mode="worktree").path.is_dir()


def test_a_detached_head_and_a_dirty_main_checkout_are_no_obstacle(home):
    sh("git", "checkout", "-q", "--detach", "HEAD~1", cwd=home.root)
    (home.root / "README.md").write_text("dirty\n")
    made = home.prepare()
    assert (made.path / "README.md").read_text() == "one\n"
    assert made.base == git.rev_parse("HEAD", cwd=home.root)


def test_it_works_from_a_linked_work_tree_and_after_that_one_is_gone(home, tmp_path):
    first = home.prepare("t1")
    inner = git.open_repository(first.path)
    second = workspace.prepare(
        inner,
        state_root=home.state,
        path=workspace.default_directory(inner) / "t2",
        branch="b",
        base="HEAD",
        holder="r2",
    )
    assert second.path.parent == home.folder
    workspace.retire(first, landed=False)
    commit(second.path)
    with pytest.raises(WorkspaceKept):
        workspace.retire(second, landed=False)
    workspace.retire(second, landed=True)
    assert home.entries() == []


def test_a_bare_repository_with_work_trees_beside_it(home, tmp_path):
    sh("git", "clone", "-q", "--bare", str(home.root), str(tmp_path / "b" / "tool.git"), cwd=tmp_path)
    sh("git", "worktree", "add", "-q", "../main", "main", cwd=tmp_path / "b" / "tool.git")
    other = Home(tmp_path / "b" / "main")
    assert other.folder == tmp_path / "b" / "tool.worktrees"
    made = other.prepare()
    (made.path / "new").write_text("x")
    assert workspace.retire(made, landed=False, force=True)
    assert other.entries() == [tmp_path / "b" / "main"]


def test_setup_runs_in_the_finished_workspace_and_its_failure_undoes_all(home):
    seen = []
    home.prepare("t1", setup=lambda made: seen.append((made.branch, (made.path / "src" / "a.py").exists())))
    assert seen == [("necrocode/run/t1", True)]
    workspace.retire(home.prepare("t1"), landed=False)

    def fail(made: Workspace) -> None:
        (made.path / "built").write_text("x")
        raise RuntimeError("no network")

    for mode in MODES:
        with pytest.raises(RuntimeError, match="no network"):
            home.prepare("t1", mode=mode, setup=fail)
        home.assert_tidy()


def test_interrupting_setup_undoes_all(home):
    def interrupt(made: Workspace) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        home.prepare(setup=interrupt)
    home.assert_tidy()


# -- branches


def test_a_retry_starts_at_the_base_again_and_the_earlier_tip_is_saved(home):
    first = home.prepare()
    tip = commit(first.path)
    workspace.retire(first, landed=True)
    again = home.prepare()
    assert git.rev_parse("HEAD", cwd=again.path) == again.base
    assert not (again.path / "work").exists()
    assert home.snapshots() == {again.saved[0]: tip} == {"refs/necrocode/snap/t1/1": tip}
    commit(again.path, text="second\n")
    workspace.retire(again, landed=True)
    assert home.prepare().saved == ("refs/necrocode/snap/t1/2",)


def test_a_branch_of_the_users_goes_on_from_its_tip(home):
    sh("git", "branch", "feature", "HEAD~1", cwd=home.root)
    made = home.prepare(branch="feature", base="main")
    assert git.rev_parse("HEAD", cwd=made.path) == git.rev_parse("main~1", cwd=home.root)
    tip = commit(made.path)
    workspace.retire(made, landed=True)
    assert git.rev_parse("HEAD", cwd=home.prepare(branch="feature").path) == tip
    assert home.snapshots() == {}


def test_fresh_and_its_opposite_can_be_asked_for(home):
    made = home.prepare()
    tip = commit(made.path)
    workspace.retire(made, landed=True)
    made = home.prepare(fresh=False)
    assert git.rev_parse("HEAD", cwd=made.path) == tip
    workspace.retire(made, landed=True)
    sh("git", "branch", "feature", tip, cwd=home.root)
    made = home.prepare("t2", "feature", fresh=True)
    assert git.rev_parse("HEAD", cwd=made.path) == made.base
    assert list(home.snapshots().values()) == [tip]


def test_a_branch_that_is_checked_out_elsewhere_is_refused_with_the_place(home):
    with pytest.raises(ConfigError, match="checked out in") as caught:
        home.prepare(branch="main")
    assert str(home.root) in str(caught.value)
    home.prepare("t1", "shared")
    with pytest.raises(ConfigError, match=r"t1"):
        home.prepare("t2", "shared")
    assert home.entries() == [home.folder / "t1"]
    assert home.branches() == {"main", "shared"}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("there", "wanted"), [("a", "a/b"), ("a/b", "a")])
def test_branches_that_cannot_stand_side_by_side_are_told(home, mode, there, wanted):
    sh("git", "branch", there, cwd=home.root)
    with pytest.raises(ConfigError, match=f"^there cannot be a branch {wanted} beside {there}: git"):
        home.prepare(branch=wanted, mode=mode)
    assert home.branches() == {"main", there}
    assert home.entries() == []


def test_names_that_no_branch_can_have_are_refused_before_anything_happens(home):
    with pytest.raises(ConfigError, match="cannot be a branch name"):
        home.prepare(branch="a..b")
    assert not home.folder.exists()


@pytest.mark.parametrize("leave", [("--detach",), ("-b", "elsewhere")])
def test_the_branch_follows_an_agent_that_left_it(home, leave):
    made = home.prepare()
    sh("git", "checkout", "-q", *leave, cwd=made.path)
    commit(made.path)
    (made.path / "rest").touch()
    tip = workspace.commit(made, "the rest")
    assert git.branch_tip(made.branch, cwd=home.root) == tip
    assert len(git.commits(made.base, made.branch, cwd=home.root)) == 2
    assert git.current_branch(made.path) == made.branch
    assert not git.is_dirty(made.path)


@pytest.mark.parametrize("leave", [("--detach",), ("-b", "elsewhere")])
def test_the_branch_of_a_clone_follows_too(home, leave):
    """And its commits stay commits: nothing of them is made anew, and nothing need be saved apart."""
    made = home.prepare(mode="clone")
    sh("git", "checkout", "-q", *leave, cwd=made.path)
    theirs = commit(made.path)
    (made.path / "rest").touch()
    tip = workspace.commit(made, "the rest")
    assert git.commits(made.base, made.branch, cwd=home.root) == [theirs, tip]
    assert workspace.retire(made, landed=True) == () and home.snapshots() == {}


def test_work_that_does_not_continue_the_branch_is_not_called_its_own(home):
    made = home.prepare()
    commit(made.path)
    sh("git", "checkout", "-q", "-b", "elsewhere", "HEAD~1", cwd=made.path)
    (made.path / "other").touch()
    with pytest.raises(ConfigError, match="does not continue"):
        workspace.commit(made, "x")
    assert home.blob("elsewhere", "other") == ""


@pytest.mark.parametrize("leave", [("--detach", "HEAD~2"), ("-b", "elsewhere", "HEAD~2"), ("--orphan", "elsewhere")])
def test_work_of_a_clone_that_does_not_continue_the_branch_undoes_nothing(home, leave):
    made = home.prepare(mode="clone")
    mine = commit(made.path)
    sh("git", "checkout", "-q", *leave, cwd=made.path)
    (made.path / "other").touch()
    with pytest.raises(ConfigError, match="does not continue"):
        workspace.commit(made, "x")
    assert git.branch_tip(made.branch, cwd=home.root) == mine
    assert made.path.exists()


_VANISHED = (
    "fatal: could not create leading directories of 'all/one/.git': No such file or directory\n"  # as git says it
)


@pytest.mark.parametrize("trouble", [None, GitFailed(("git", "worktree", "add"), 128, _VANISHED)])
def test_the_folder_of_workspaces_may_go_while_one_is_made(tmp_path, trouble):
    """With the last of the others, in just the moment in which this one is to be made in it."""
    folder, times = tmp_path / "all", []

    def make() -> None:
        times.append(1)
        if len(times) == 1:
            folder.rmdir()
            if trouble:
                raise trouble
        (folder / "one").mkdir()

    _make_in(folder, make)
    assert (folder / "one").is_dir() and len(times) == 2
    with pytest.raises(GitFailed, match="something else"):
        _make_in(folder, lambda: git.run("something else", cwd=tmp_path))


@pytest.mark.parametrize("mode", MODES)
def test_a_branch_that_is_there_gets_the_base_too_when_it_is_to_join_it(home, mode):
    sh("git", "branch", "feature", "HEAD~1", cwd=home.root)
    sh("git", "checkout", "-q", "feature", cwd=home.root)
    old = commit(home.root, "own")
    sh("git", "checkout", "-q", "main", cwd=home.root)
    made = home.prepare(branch="feature", mode=mode, base="main", join="main")
    tip = git.branch_tip("feature", cwd=home.root)
    assert git.rev_parse("HEAD", cwd=made.path) == tip
    assert all(git.is_ancestor(one, tip, cwd=home.root) for one in (old, "main"))
    assert (made.path / "own").exists() and (made.path / "src" / "a.py").exists()
    assert not git.is_dirty(made.path)


@pytest.mark.parametrize("mode", MODES)
def test_a_branch_that_does_not_go_with_what_it_is_to_join_stays_as_it_is(home, mode):
    sh("git", "checkout", "-q", "-b", "feature", "HEAD~1", cwd=home.root)
    (home.root / "src").mkdir(exist_ok=True)
    old = commit(home.root, "src/a.py", "another\n")
    sh("git", "checkout", "-q", "main", cwd=home.root)
    with pytest.raises(LandingConflict, match=r"main and feature are in conflict: both changed src/a\.py"):
        home.prepare(branch="feature", mode=mode, base="main", join="main")
    assert git.branch_tip("feature", cwd=home.root) == old
    assert home.entries() == [] and not list(home.folder.iterdir())


def test_an_index_lock_of_a_killed_agent_does_not_cost_its_work(home):
    made = home.prepare()
    (made.path / "new").touch()
    (home.root / ".git" / "worktrees" / "t1" / "index.lock").touch()
    assert workspace.commit(made, "x")
    assert not git.is_dirty(made.path)


# -- what is in the way


def test_files_of_others_are_never_touched(home):
    (home.folder / "t1").mkdir(parents=True)
    (home.folder / "t1" / "precious").write_text("x")
    for mode in MODES:
        with pytest.raises(ConfigError, match="in the way"):
            home.prepare(mode=mode)
    sh("git", "worktree", "add", "-q", str(home.folder / "t2"), "-b", "mine", cwd=home.root)
    with pytest.raises(ConfigError, match="in the way"):
        home.prepare("t2")
    sh("git", "init", "-q", str(home.folder / "t3"), cwd=home.root)
    with pytest.raises(ConfigError, match="in the way"):
        home.prepare("t3")
    (home.folder / "t4").write_text("a file")
    with pytest.raises(ConfigError, match="in the way"):
        home.prepare("t4")
    assert (home.folder / "t1" / "precious").read_text() == "x"
    assert home.branches() == {"main", "mine"}


def test_a_users_work_tree_whose_disk_is_away_keeps_its_entry(home):
    sh("git", "worktree", "add", "-q", str(home.folder / "t1"), "-b", "mine", cwd=home.root)
    (home.folder / "t1").rename(home.folder / "unmounted")
    with pytest.raises(ConfigError, match="work tree"):
        home.prepare("t1")
    with pytest.raises(ConfigError, match="checked out in"):
        home.prepare("t2", "mine")
    assert home.entries() == [home.folder / "t1"]


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_directory_is_used(home, mode):
    (home.folder / "t1").mkdir(parents=True)
    assert (home.prepare(mode=mode).path / "README.md").exists()


def test_a_place_below_a_file_is_told(home):
    home.folder.write_text("a file")
    for mode in [*MODES, "none"]:
        with pytest.raises(ConfigError, match="cannot hold workspaces"):
            home.prepare(mode=mode)
    assert home.branches() == {"main"}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("before", MODES)
def test_what_a_dead_holder_left_is_saved_and_replaced(home, before, mode):
    old = home.prepare(mode=before)
    tip = commit(old.path)
    (old.path / "README.md").write_text("half done\n")
    (old.path / "new").write_text("x")
    made = home.prepare(mode=mode)
    assert not git.is_dirty(made.path)
    assert git.rev_parse("HEAD", cwd=made.path) == made.base
    saved = home.snapshots()
    files = next(commit for commit in saved.values() if commit != tip)
    assert home.blob(files, "README.md") == "half done"
    assert home.blob(files, "new") == "x"
    assert git.is_ancestor(tip, files, cwd=home.root)
    workspace.retire(made, landed=False)
    assert home.entries() == []


# -- .worktreeinclude


def test_files_named_and_ignored_are_copied_and_nothing_else(home, tmp_path):
    (home.root / ".worktreeinclude").write_text(
        "# secrets\n.env\n*.log\n!noisy.log\ntracked.txt\nuntracked.txt\n/local/\nlinks/*\n"
    )
    (home.root / ".gitignore").write_text("*.log\n.env\nlocal/\nlinks/\nother.ignored\n")
    (home.root / "tracked.txt").write_text("tracked")
    sh("git", "add", "-A", cwd=home.root)
    sh("git", "commit", "-qm", "x", cwd=home.root)
    odd = os.fsdecode(b"odd \n\xff.log")
    for name in (".env", "sub/.env", "a.log", "noisy.log", "untracked.txt", "local/deep/x", "other.ignored", odd):
        (home.root / name).parent.mkdir(parents=True, exist_ok=True)
        (home.root / name).write_text("secret")
    (home.root / ".env").chmod(0o600)
    (home.root / "links").mkdir()
    (tmp_path / "outside").write_text("outside")
    (home.root / "links" / "in").symlink_to("../README.md")
    (home.root / "links" / "out").symlink_to(tmp_path / "outside")
    (home.root / "links" / "up").symlink_to("../../outside")
    made = home.prepare()
    copied = {str(p.relative_to(made.path)) for p in made.path.rglob("*") if not p.is_dir()} - set(
        sh("git", "ls-files", "-z", cwd=made.path).split("\0")
    )
    assert copied == {".git", ".env", "sub/.env", "a.log", "local/deep/x", odd, "links/in"}
    assert stat.S_IMODE((made.path / ".env").stat().st_mode) == 0o600
    assert os.readlink(made.path / "links" / "in") == "../README.md"
    assert not git.is_dirty(made.path)
    workspace.retire(made, landed=False)  # copies are ignored files: not work


def test_copies_never_leave_the_workspace_nor_replace_its_files(home, tmp_path):
    """The base has `conf` as a link to the outside, and its own .env; the main checkout has other things there."""
    (tmp_path / "outside").mkdir()
    (home.root / "conf").symlink_to(tmp_path / "outside")
    (home.root / ".env").write_text("tracked")
    sh("git", "add", "-Af", cwd=home.root)
    sh("git", "commit", "-qm", "old", cwd=home.root)
    sh("git", "rm", "-q", "conf", "--cached", ".env", cwd=home.root)
    (home.root / "conf").unlink()
    (home.root / "conf").mkdir()
    (home.root / "conf" / "x.log").write_text("secret")
    (home.root / ".env").write_text("mine")
    (home.root / ".worktreeinclude").write_text("*.log\n.env\n")
    sh("git", "commit", "-qm", "new", cwd=home.root)
    made = home.prepare(base="HEAD~1")
    assert list((tmp_path / "outside").iterdir()) == []
    assert (made.path / ".env").read_text() == "tracked"


# -- saved and removed


@pytest.mark.parametrize("mode", MODES)
def test_a_clean_workspace_without_commits_goes_with_its_branch(home, mode):
    assert workspace.retire(home.prepare(mode=mode), landed=False) == ()
    home.assert_tidy()


@pytest.mark.parametrize("mode", MODES)
def test_landed_work_stays_on_its_branch(home, mode):
    made = home.prepare(mode=mode)
    tip = commit(made.path)
    with pytest.raises(WorkspaceKept, match="1 commits of necrocode/run/t1 have not landed"):
        workspace.retire(made, landed=False)
    assert (made.path / "work").exists()
    assert workspace.retire(made, landed=True) == ()
    assert git.branch_tip("necrocode/run/t1", cwd=home.root) == tip
    assert not made.path.exists()
    assert home.snapshots() == {}


@pytest.mark.parametrize("mode", MODES)
def test_uncommitted_work_keeps_the_workspace_until_it_is_forced_and_then_is_saved(home, mode):
    made = home.prepare(mode=mode)
    (made.path / "README.md").write_text("changed\n")
    (made.path / "new").write_text("x")
    (made.path / "x.log").write_text("ignored")
    with pytest.raises(WorkspaceKept, match=r"uncommitted work: README\.md, new"):
        workspace.retire(made, landed=True)
    (saved,) = workspace.retire(made, landed=False, force=True)
    assert (home.blob(saved, "README.md"), home.blob(saved, "new")) == ("changed", "x")
    assert git.run("cat-file", "-e", f"{saved}:x.log", cwd=home.root, check=False).returncode
    sh("git", "update-ref", "-d", saved, cwd=home.root)
    home.assert_tidy()


@pytest.mark.parametrize("mode", MODES)
def test_commits_that_no_branch_holds_are_saved_too(home, mode):
    made = home.prepare(mode=mode)
    sh("git", "checkout", "-q", "--detach", cwd=made.path)
    lost = commit(made.path)
    sh("git", "checkout", "-q", "-b", "side", "HEAD~1", cwd=made.path)
    side = commit(made.path, "side")
    sh("git", "checkout", "-q", "--detach", lost, cwd=made.path)
    if mode == "worktree":
        with pytest.raises(WorkspaceKept, match="on no branch"):
            workspace.retire(made, landed=True)
    workspace.retire(made, landed=True, force=True)
    held = {*home.snapshots().values()} | ({side} if mode == "worktree" else set())
    assert {lost, side} <= held
    assert not made.path.exists()


def test_staged_and_stashed_work_survives(home):
    for mode in MODES:
        made = home.prepare(mode=mode)
        (made.path / "README.md").write_text(f"stashed in a {mode}\n")
        sh("git", "stash", "-q", cwd=made.path)
        workspace.retire(made, landed=False, force=True)
    stashes = [home.blob(ref, "README.md") for ref in ["refs/stash", *home.snapshots()]]
    assert stashes[0] == "stashed in a worktree"
    assert "stashed in a clone" in stashes[1:]


def test_a_clone_with_older_stashes_is_kept(home):
    made = home.prepare(mode="clone")
    for text in ("1\n", "2\n"):
        (made.path / "README.md").write_text(text)
        sh("git", "stash", "-q", cwd=made.path)
    with pytest.raises(WorkspaceKept, match="several stashes"):
        workspace.retire(made, landed=True, force=True)
    assert made.path.exists()


@pytest.mark.parametrize("mode", MODES)
def test_what_cannot_be_saved_is_kept_even_by_force(home, mode):
    made = home.prepare(mode=mode)
    sh("git", "init", "-q", "nested", cwd=made.path)
    commit(made.path / "nested")
    for force in (False, True):
        with pytest.raises(WorkspaceKept, match="nested"):
            workspace.retire(made, landed=True, force=force)
    with pytest.raises(WorkspaceKept, match="nested"):
        home.prepare(mode=mode)  # nor for a new one at the same place
    assert (made.path / "nested" / "work").exists()


def test_a_failing_snapshot_keeps_the_workspace(home):
    """A file where a directory of refs is needed: the snapshot cannot be recorded."""
    made = home.prepare()
    (made.path / "new").write_text("x")
    (home.root / ".git" / "refs" / "necrocode").write_text("in the way")
    with pytest.raises(WorkspaceKept, match="could not be saved"):
        workspace.retire(made, landed=True, force=True)
    assert (made.path / "new").read_text() == "x"


def test_a_filter_that_fails_keeps_the_workspace(home):
    made = home.prepare()
    sh("git", "config", "filter.broken.clean", "false", cwd=home.root)
    sh("git", "config", "filter.broken.required", "true", cwd=home.root)
    (made.path / ".gitattributes").write_text("*.bin filter=broken\n")
    (made.path / "x.bin").write_text("x")
    with pytest.raises(WorkspaceKept, match="could not be saved"):
        workspace.retire(made, landed=True, force=True)
    assert (made.path / "x.bin").exists()


def test_a_workspace_that_became_another_repository_is_kept(home):
    made = home.prepare()
    (made.path / ".git").unlink()
    sh("git", "init", "-q", cwd=made.path)
    for force in (False, True):
        with pytest.raises(WorkspaceKept):
            workspace.retire(made, landed=True, force=force)
    assert (made.path / "README.md").exists()


@pytest.mark.parametrize("mode", MODES)
def test_files_are_saved_even_without_the_git_link(home, mode):
    """The agent deleted `.git`; an enclosing repository must not be taken for the workspace's."""
    sh("git", "init", "-q", cwd=home.root.parent)
    made = home.prepare(mode=mode)
    (made.path / "new").write_text("x")
    subprocess.run(["rm", "-rf", str(made.path / ".git")], check=True)
    with pytest.raises(WorkspaceKept):
        workspace.retire(made, landed=True)
    (saved,) = workspace.retire(made, landed=True, force=True)
    assert home.blob(saved, "new") == "x"
    assert home.entries() == []


def test_removing_follows_no_link_and_takes_read_only_folders_along(home, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "x").write_text("x")
    made = home.prepare()
    (made.path / "node_modules").mkdir()
    (made.path / "node_modules" / "link").symlink_to(tmp_path / "precious")
    (made.path / "node_modules" / "locked").mkdir()
    (made.path / "node_modules" / "locked" / "y").write_text("y")
    (made.path / "node_modules" / "locked").chmod(0o500)
    workspace.retire(made, landed=False)
    assert (tmp_path / "precious" / "x").read_text() == "x"
    home.assert_tidy()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user to be not root")
def test_read_only_folders_are_deleted_without_being_root(tmp_path):
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "b" / "x").write_text("x")
    (tmp_path / "outside").mkdir()
    (tree / "a" / "out").symlink_to(tmp_path / "outside")
    for place in (tmp_path, tmp_path / "outside", tree, tree / "a", tree / "a" / "b", tree / "a" / "b" / "x"):
        os.chown(place, 12345, 12345)
    for place in (tmp_path / "outside", tree / "a", tree / "a" / "b"):
        place.chmod(0o500)
    child = os.fork()
    if child == 0:
        os.setresuid(12345, 12345, 12345)
        os._exit(0 if workspace.delete_tree(tree) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert stat.S_IMODE((tmp_path / "outside").stat().st_mode) == 0o500


def test_removal_that_cannot_move_the_directory_keeps_it(home):
    made = home.prepare()
    if subprocess.run(["mount", "--bind", str(made.path), str(made.path)], capture_output=True).returncode:
        pytest.skip("cannot mount here")
    try:
        with pytest.raises(WorkspaceKept, match="moved aside"):
            workspace.retire(made, landed=False)
        assert (made.path / "README.md").exists()
        assert [entry.name for entry in home.folder.iterdir()] == ["t1"]
    finally:
        subprocess.run(["umount", str(made.path)], check=True)
    workspace.retire(made, landed=False)
    home.assert_tidy()


def test_retiring_twice_or_after_rm_is_fine(home):
    for mode in MODES:
        made = home.prepare(mode=mode)
        subprocess.run(["rm", "-rf", str(made.path)], check=True)
        assert workspace.retire(made, landed=False) == ()
        assert workspace.retire(made, landed=False) == ()
        assert home.entries() == []


# -- shared clones


def test_a_clone_brings_its_branch_home_without_running_anything_of_its_own(home, tmp_path):
    made = home.prepare(mode="clone")
    proof = tmp_path / "proof"
    script = tmp_path / "evil"
    script.write_text(f'#!/bin/sh\necho "$0 $*" >> {proof}\ncat\n')
    script.chmod(0o755)
    commit(made.path)
    for hook in ("post-checkout", "reference-transaction", "post-index-change", "pre-commit"):
        (made.path / ".git" / "hooks").mkdir(exist_ok=True)
        (made.path / ".git" / "hooks" / hook).symlink_to(script)
    keys = "core.fsmonitor filter.evil.clean filter.evil.smudge filter.evil.process diff.external core.sshCommand"
    for key in (*keys.split(), "uploadpack.packObjectsHook", "core.pager", "core.editor", "gpg.program"):
        sh("git", "config", key, str(script), cwd=made.path)
    (made.path / ".gitattributes").write_text("* filter=evil diff=evil merge=evil\n")
    (made.path / "new").write_text("x")
    proof.unlink(missing_ok=True)
    tip = workspace.commit(made, "the runner's commit")
    assert tip == workspace.collect(made) or git.is_ancestor(workspace.collect(made), tip, cwd=home.root)
    assert home.blob(tip, "new") == "x"
    (made.path / "later").write_text("x")
    workspace.list_leftovers(home.repository, home.state)
    workspace.retire(made, landed=True, force=True)
    assert not proof.exists(), proof.read_text()
    assert not made.path.exists()


def test_collecting_again_follows_the_clone_and_saves_what_it_rewrote(home):
    made = home.prepare(mode="clone")
    first = commit(made.path)
    assert workspace.collect(made) == first == git.branch_tip(made.branch, cwd=home.root)
    assert workspace.collect(made) == first
    sh("git", "commit", "-q", "--amend", "-m", "other", cwd=made.path)
    second = workspace.collect(made)
    assert second != first
    assert list(home.snapshots().values()) == [first]
    assert sh("git", "for-each-ref", "refs/necrocode/incoming", cwd=home.root) == ""


def test_a_commit_of_the_runners_in_a_clone_can_be_repeated_and_continued(home):
    made = home.prepare(mode="clone")
    (made.path / "1").write_text("x")
    first = workspace.commit(made, "one")
    assert workspace.commit(made, "nothing new") is None
    (made.path / "2").write_text("x")
    second = workspace.commit(made, "two")
    assert git.commits(made.base, made.branch, cwd=home.root) == [first, second]
    assert workspace.retire(made, landed=True) == ()
    assert home.snapshots() == {}


def test_collecting_does_not_move_a_branch_under_somebodys_feet(home):
    made = home.prepare(mode="clone", branch="feature")
    commit(made.path)
    sh("git", "checkout", "-q", "feature", cwd=home.root)
    with pytest.raises(ConfigError, match="checked out"):
        workspace.collect(made)
    for force in (False, True):
        with pytest.raises(WorkspaceKept, match="checked out"):
            workspace.retire(made, landed=True, force=force)
    assert made.path.exists()


def test_the_users_settings_that_change_files_go_along_into_a_clone(home):
    sh("git", "config", "user.name", "Local Ada", cwd=home.root)
    sh("git", "config", "core.autocrlf", "true", cwd=home.root)
    made = home.prepare(mode="clone")
    assert (made.path / "README.md").read_bytes() == b"one\r\n"
    commit(made.path, text="x\r\n")
    assert sh("git", "log", "-1", "--format=%an", cwd=made.path) == "Local Ada"
    assert git.run("push", "origin", "HEAD:refs/heads/sneaked", cwd=made.path, check=False).returncode
    workspace.retire(made, landed=True)
    assert home.branches() == {"main", "necrocode/run/t1"}


def test_the_shared_objects_of_a_clone_survive_a_gc_at_home(home):
    sh("git", "checkout", "-q", "--detach", cwd=home.root)
    base = commit(home.root, "only here")
    made = home.prepare(mode="clone")
    sh("git", "checkout", "-q", "main", cwd=home.root)
    sh("git", "reflog", "expire", "--expire=now", "--all", cwd=home.root)
    sh("git", "gc", "-q", "--prune=now", cwd=home.root)
    assert made.base == base
    sh("git", "fsck", cwd=made.path)


# -- given directories, and none


def test_a_given_directory_gets_the_branch_and_is_never_removed(home, tmp_path):
    sh("git", "clone", "-q", str(home.root), "slot", cwd=tmp_path)
    slot = tmp_path / "slot"
    made = home.prepare(path=slot, branch="feature/x", mode="given")
    assert (made.path, git.current_branch(slot), made.base) == (slot, "feature/x", git.rev_parse("main", cwd=slot))
    (slot / "new").write_text("x")
    home.prepare(path=slot, branch="feature/x", mode="given")  # its own unfinished work may go on
    with pytest.raises(ConfigError, match="uncommitted work on feature/x"):
        home.prepare(path=slot, branch="feature/y", mode="given")
    assert git.current_branch(slot) == "feature/x"
    assert workspace.commit(made, "x")
    home.prepare(path=slot, branch="main", mode="given")
    assert git.current_branch(slot) == "main"
    assert workspace.retire(made, landed=True, force=True) == ()
    assert slot.exists()


def test_a_given_directory_with_a_detached_head_is_used_when_clean(home, tmp_path):
    sh("git", "worktree", "add", "-q", "--detach", str(tmp_path / "slot"), cwd=home.root)
    (tmp_path / "slot" / "new").write_text("x")
    with pytest.raises(ConfigError, match="detached HEAD"):
        home.prepare(path=tmp_path / "slot", branch="f", mode="given")
    (tmp_path / "slot" / "new").unlink()
    home.prepare(path=tmp_path / "slot", branch="f", mode="given")
    assert git.current_branch(tmp_path / "slot") == "f"


def test_a_given_directory_of_another_repository_is_refused(home, tmp_path):
    (tmp_path / "other").mkdir()
    sh("git", "init", "-q", cwd=tmp_path / "other")
    with pytest.raises(ConfigError, match="belongs to"):
        home.prepare(path=tmp_path / "other", branch="f", mode="given")
    with pytest.raises(ConfigError, match="not a directory"):
        home.prepare(path=tmp_path / "nowhere", branch="f", mode="given")


def test_without_git_the_directory_is_just_used(tmp_path):
    made = workspace.prepare(None, state_root=tmp_path / "state", path=tmp_path / "deep" / "plain", mode="none")
    assert made.path.is_dir()
    assert workspace.retire(made, landed=True, force=True) == ()
    assert made.path.is_dir()
    with pytest.raises(ConfigError, match="no git workspace"):
        _ = made.repo


# -- what is left


def test_leftovers_tell_holder_branch_dirt_and_commits(home):
    clean, ahead, dirty = (
        home.prepare("clean"),
        home.prepare("ahead", holder="r 2"),
        home.prepare("dirty", mode="clone"),
    )
    commit(ahead.path)
    (dirty.path / "new").touch()
    gone = home.prepare("gone")
    subprocess.run(["rm", "-rf", str(gone.path)], check=True)
    sh("git", "worktree", "add", "-q", str(home.folder / "users"), "-b", "mine", cwd=home.root)
    sh("git", "worktree", "lock", "--reason", "my own", str(home.folder / "users"), cwd=home.root)
    found = {left.workspace.path.name: left for left in workspace.list_leftovers(home.repository, home.state)}
    assert {name: (left.missing, left.dirty, left.ahead) for name, left in found.items()} == {
        "clean": (False, False, 0), "ahead": (False, False, 1), "dirty": (False, True, 0), "gone": (True, False, 0),
    }  # fmt: skip
    assert found["ahead"].holder == "r 2"
    assert found["ahead"].workspace._replace(repository=None) == ahead._replace(repository=None)
    for left in found.values():
        workspace.retire(left.workspace, landed=False, force=True)
    assert home.branches() == {"main", "mine", ahead.branch}
    assert home.entries() == [home.folder / "users"]
    assert len(home.snapshots()) == 1
    assert clean.path.parent == home.folder


def test_trash_of_removals_cut_short_is_emptied(home):
    for name in (".trash-1", ".trash-2", "kept"):
        (home.folder / name / "workspace").mkdir(parents=True)
    assert workspace.empty_trash(home.folder) == []
    assert [entry.name for entry in home.folder.iterdir()] == ["kept"]
    assert workspace.empty_trash(home.folder / "nowhere") == []


# -- many at once, and kills


RACER = """
import sys
from pathlib import Path
from necrocode import git, workspace
root, state, name, mode = sys.argv[1:]
repository = git.open_repository(root)
print("ready", flush=True)
sys.stdin.readline()
made = workspace.prepare(repository, state_root=Path(state), path=workspace.default_directory(repository) / name,
    branch=f"necrocode/run/{name}", base="main", mode=mode, holder=name)
assert not git.is_dirty(made.path)
(made.path / name).write_text(name)
assert workspace.commit(made, name)
print("done", flush=True)
sys.stdin.readline()
workspace.retire(made, landed=True)
"""


def racers(home: Home, names: list[str], mode: str) -> list[subprocess.Popen[str]]:
    argv = [sys.executable, "-c", RACER, str(home.root), str(home.state)]
    return [
        subprocess.Popen([*argv, name, mode], stdin=-1, stdout=-1, stderr=-1, text=True, cwd=PROJECT) for name in names
    ]


def all_say(racers: list[subprocess.Popen[str]], word: str) -> None:
    for racer in racers:
        assert racer.stdout.readline() == f"{word}\n", racer.communicate()[1]
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "many"), [("worktree", 32), ("clone", 12)])
def test_32_processes_ask_for_workspaces_at_once(home, mode, many):
    names = [f"t{number}" for number in range(many)]
    started = racers(home, names, mode)
    try:
        all_say(started, "ready")
        for racer in started:
            assert racer.stdout.readline() == "done\n", racer.communicate()[1]
        assert home.branches() == {"main", *(f"necrocode/run/{name}" for name in names)}
        assert len(list(home.folder.iterdir())) == many
        assert sorted(home.entries()) == (sorted(home.folder / name for name in names) if mode == "worktree" else [])
        for racer in started:
            racer.stdin.write("go\n")
            racer.stdin.flush()
        for racer in started:
            err = racer.communicate(timeout=100)[1]
            assert racer.returncode == 0, err
    finally:
        for racer in started:
            racer.kill()
            racer.communicate()
    for name in names:
        assert home.blob(f"necrocode/run/{name}", name) == name
        assert len(git.commits("main", f"necrocode/run/{name}", cwd=home.root)) == 1
    assert home.entries() == []
    assert not home.folder.exists()
    assert home.snapshots() == {}
    sh("git", "fsck", "--strict", cwd=home.root)


SHIM = """#!/bin/sh
read n < "$NC_COUNT"; n=$((n + 1)); echo $n > "$NC_COUNT"
[ $n = "$NC_AT" ] && [ "$NC_WHEN" = before ] && { kill -9 $PPID; exit 1; }
[ $n = "$NC_AT" ] && [ "$NC_WHEN" = orphan ] && { kill -9 $PPID; sleep 0.1; }
{git} "$@"; code=$?
[ $n = "$NC_AT" ] && echo over > "$NC_COUNT"
exit $code
"""


class Killer:
    """Runs a step in a child that is killed at its n-th call of git: before it, or so that it runs on alone."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.runs, real = folder, 0, git.calls.git_binary(os.environ["PATH"])
        (folder / "bin").mkdir()
        (folder / "bin" / "git").write_text(SHIM.replace("{git}", real))
        (folder / "bin" / "git").chmod(0o755)
        self.path = f"{folder / 'bin'}:{os.environ['PATH']}"

    def killed(self, step, at: int, when: str) -> bool:
        """Whether the step was killed; False when it ended before its `at`-th call."""
        self.runs += 1  # a file for each run: an orphan of the last one may still count in its own
        self.count = self.folder / f"count-{self.runs}"
        self.count.write_text("0\n")
        child = os.fork()
        if child == 0:
            os.environ.update(PATH=self.path, NC_COUNT=str(self.count), NC_AT=str(at), NC_WHEN=when)
            try:
                step()
                os._exit(0)
            except BaseException:  # noqa: BLE001
                traceback.print_exc()
            finally:
                os._exit(1)
        status = os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL), (at, when, status)
        return status == signal.SIGKILL

    def wait_for_orphan(self) -> None:
        until = time.monotonic() + 30
        while self.count.read_text() != "over\n":
            assert time.monotonic() < until
            time.sleep(0.005)


@pytest.fixture
def killer(tmp_path, monkeypatch) -> Killer:
    return Killer(tmp_path, monkeypatch)


@pytest.mark.parametrize("mode", MODES)
def test_lock_files_of_killed_gits_do_not_stop_us(home, mode):
    folder = home.root / ".git" / "refs" / "heads" / "necrocode" / "run"
    folder.mkdir(parents=True)
    for lock in (
        *(home.root / ".git" / name for name in ("index.lock", "config.lock", "HEAD.lock")),
        folder / "t1.lock",
    ):
        lock.touch()
    made = home.prepare(mode=mode)
    (made.path / "new").touch()
    assert workspace.commit(made, "x")
    workspace.retire(made, landed=True)
    made = home.prepare("t2", mode=mode)
    (made.path / "new").touch()
    snap = home.root / ".git" / "refs" / "necrocode" / "snap" / "t2"
    snap.mkdir(parents=True)
    (snap / "1.lock").touch()
    assert workspace.retire(made, landed=True, force=True) == ("refs/necrocode/snap/t2/2",)
    assert not (folder / "t1.lock").exists()
    assert (home.root / ".git" / "config.lock").exists()  # not ours to judge


def test_a_lock_of_the_whole_repository_is_told_and_left_to_its_owner(home):
    """Another git may hold it; then a clone is gone, its record not, and the next removal takes that too."""
    made = home.prepare(mode="clone")
    jam = home.root / ".git" / "packed-refs.lock"
    jam.touch()
    with pytest.raises(WorkspaceKept, match=r"its record could not be deleted:(.|\n)*packed-refs\.lock': File exists"):
        workspace.retire(made, landed=False)
    assert not made.path.exists()
    assert git.old_locks(home.root) == []
    os.utime(jam, (0, 0))
    assert git.old_locks(home.root) == [jam]
    jam.unlink()
    (left,) = workspace.list_leftovers(home.repository, home.state)
    workspace.retire(left.workspace, landed=False)
    home.assert_tidy()


def test_commits_of_a_clone_that_vanished_are_kept_as_far_as_they_were_fetched(home):
    made = home.prepare(mode="clone")
    new = commit(made.path)
    place = f"refs/necrocode/incoming/{clone_ref(made.path).rpartition('/')[2]}/1/tip"
    sh("git", "fetch", "-q", str(made.path), f"+HEAD:{place}", cwd=home.root)
    shutil.rmtree(made.path)
    (left,) = workspace.list_leftovers(home.repository, home.state)
    (saved,) = workspace.retire(left.workspace, landed=False)
    assert git.rev_parse(saved, cwd=home.root) == new
    home.assert_tidy()


def test_a_ref_of_ours_goes_although_a_killed_git_left_its_lock(home):
    ref = "refs/necrocode/incoming/t1/1/tip"
    sh("git", "update-ref", ref, "HEAD", cwd=home.root)
    (home.root / ".git" / f"{ref}.lock").touch()
    forget(home.repository.common_dir, ref)
    assert sh("git", "for-each-ref", ref, cwd=home.root) == ""


@pytest.mark.parametrize("missing", ["gitdir", "HEAD", "commondir"])
def test_an_entry_that_breaks_every_git_of_the_repository_is_removed(home, missing):
    """A kill in the middle of `git worktree add` leaves an empty file in its entry."""
    made = home.prepare()
    (home.root / ".git" / "worktrees" / "t1" / missing).write_text("")
    (made.path / "new").write_text("x")
    workspace.list_leftovers(home.repository, home.state)
    home.prepare("t2")
    home.prepare("t1")
    assert [home.blob(ref, "new") for ref in home.snapshots()] == ["x"]
    assert sorted(home.entries()) == [home.folder / "t1", home.folder / "t2"]


@pytest.mark.parametrize("made", [(), ("gitdir",), ("gitdir", "HEAD", "commondir")])
def test_the_place_of_a_work_tree_that_never_came_to_be_is_removed(home, made):
    """`git worktree add` writes its lock, makes the place, and then the files of its entry one after another."""
    place, entry = home.prepare().path, home.root / ".git" / "worktrees" / "t1"
    for part in {"gitdir", "HEAD", "commondir", "index", "ORIG_HEAD"} - {*made}:
        (entry / part).unlink(missing_ok=True)
    for path in {*place.iterdir()} - ({place / ".git"} if made else set()):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for left in workspace.list_leftovers(home.repository, home.state):
        workspace.retire(left.workspace, landed=False, force=True)
    assert home.entries() == []
    assert not entry.exists()
    assert not place.exists()


@pytest.mark.parametrize("whole", [True, False])
def test_a_branch_whose_file_a_power_cut_left_empty_is_put_back(home, whole):
    """An agent's git flushes neither its branch nor, sometimes, its commit; others must not suffer from that."""
    made = home.prepare()
    first = commit(made.path)
    second = commit(made.path, "more")
    (home.root / ".git" / "refs" / "heads" / made.branch).write_bytes(b"")
    if not whole:
        lost = home.root / ".git" / "objects" / second[:2] / second[2:]
        lost.chmod(0o600)
        lost.write_bytes(b"")
    (left,) = workspace.list_leftovers(home.repository, home.state)
    assert git.rev_parse("HEAD", cwd=made.path) == (second if whole else first)
    assert (left.workspace.branch, left.ahead) == (made.branch, 2 if whole else 1)
    for mode in MODES:
        other = home.prepare("t2", mode=mode)
        assert workspace.retire(other, landed=False) == ()


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "orphan"])
@pytest.mark.parametrize("mode", MODES)
def test_prepare_copes_with_what_a_killed_prepare_left(home, killer, mode, when):
    at = 1
    while killer.killed(lambda: home.prepare(mode=mode), at, when):
        orphans = home.branches() - {"main"}
        assert not orphans or len(workspace.list_leftovers(home.repository, home.state)) == 1, at
        made = home.prepare(mode=mode)
        assert not git.is_dirty(made.path), at
        assert git.current_branch(made.path) == made.branch
        assert workspace.retire(made, landed=False) == ()
        workspace.empty_trash(home.folder)
        home.assert_tidy()
        at += 1
        assert at < 60
    assert at > 4


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "orphan"])
@pytest.mark.parametrize("mode", MODES)
def test_gc_clears_what_a_killed_prepare_left(home, killer, mode, when):
    at = 1
    while killer.killed(lambda: home.prepare(mode=mode), at, when):
        if when == "orphan":
            killer.wait_for_orphan()
        for left in workspace.list_leftovers(home.repository, home.state):
            workspace.retire(left.workspace, landed=False, force=True)
        workspace.empty_trash(home.folder)
        home.assert_tidy()
        at += 1
        assert at < 60
    assert at > 4


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "orphan"])
@pytest.mark.parametrize("mode", MODES)
def test_no_byte_is_lost_by_a_removal_killed_anywhere(home, killer, mode, when):
    at, killed = 2 if when == "orphan" else 1, True
    while killed:
        earlier = set(home.snapshots())
        made = home.prepare(mode=mode, fresh=False)
        tip = commit(made.path, "work", f"{at}\n")
        (made.path / "README.md").write_text(f"changed {at}\n")
        (made.path / "new").write_text(f"new {at}\n")
        killed = killer.killed(lambda made=made: workspace.retire(made, landed=False, force=True), at, when)
        if not (killed and made.path.exists()):
            snapshots = {ref: held for ref, held in home.snapshots().items() if ref not in earlier}
            assert any(git.is_ancestor(tip, held, cwd=home.root) for held in [made.branch, *snapshots.values()])
            saved = [
                home.blob(ref, "new")
                for ref in snapshots
                if "new" in sh("git", "ls-tree", "--name-only", ref, cwd=home.root)
            ]
            assert f"new {at}" in saved, at
        else:
            assert (made.path / "new").read_text() == f"new {at}\n"
            assert git.rev_parse("HEAD", cwd=made.path) == tip
        for left in workspace.list_leftovers(home.repository, home.state):
            workspace.retire(left.workspace, landed=False, force=True)
        workspace.empty_trash(home.folder)
        assert home.entries() == []
        assert not home.folder.exists()
        at += 2  # each kind of kill takes every second call
        assert at < 80
    assert at > 4
    sh("git", "fsck", "--strict", cwd=home.root)
