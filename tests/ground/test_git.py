"""git.py on real repositories: opening, identity, claims, refs, merges, commits, differences, snapshots, locks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from byhand import sh

from necrocode import git
from necrocode.claim import Claim, conflict
from necrocode.errors import ConfigError, GateTimeout, GitFailed, LandingConflict, WorkspaceKept

PROJECT = Path(__file__).parents[2]
ODD_NAMES = [
    "with space",
    "new\nline",
    "tab\there",
    'quote"s',
    "ünï",
    os.fsdecode(b"latin-\xe9\xff"),
    "-dash",
    ":colon",
]


def change(root: Path, name: str, text: str, message: str = "change") -> str:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)
    sh("git", "add", "-A", cwd=root)
    sh("git", "commit", "-qm", message, cwd=root)
    return sh("git", "rev-parse", "HEAD", cwd=root)


# -- the funnel


def test_the_callers_git_variables_do_not_reach_git(repository, tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    assert git.open_repository(repository).root == repository
    assert not [name for name in git.clean_environment() if name == "GIT_DIR"]


def test_a_failure_carries_what_git_said(repository):
    with pytest.raises(GitFailed) as caught:
        git.run("rev-parse", "--verify", "nothing-of-that-name", cwd=repository)
    assert caught.value.returncode == 128
    assert "single revision" in caught.value.stderr
    assert git.run("rev-parse", "--verify", "nothing", cwd=repository, check=False).returncode == 128


def test_a_lock_left_by_a_killed_git_is_named_in_the_hint(repository):
    (repository / ".git" / "index.lock").touch()
    (repository / "README.md").write_text("two\n")
    with pytest.raises(GitFailed) as caught:
        git.commit_all(repository, "x")
    assert "index.lock" in caught.value.stderr
    assert "delete it" in caught.value.hint


def test_hooks_and_monitors_of_the_repository_are_not_started(repository, tmp_path):
    proof = tmp_path / "proof"
    script = repository / ".git" / "hooks" / "x"
    script.parent.mkdir(exist_ok=True)
    script.write_text(f'#!/bin/sh\necho "$0" >> {proof}\n')
    script.chmod(0o755)
    for hook in (
        "pre-commit",
        "post-commit",
        "commit-msg",
        "post-checkout",
        "reference-transaction",
        "post-index-change",
    ):
        (script.parent / hook).symlink_to("x")
    sh("git", "config", "core.fsmonitor", str(script), cwd=repository)
    (repository / "new").write_text("x")
    git.status(repository)
    git.commit_all(repository, "x")
    git.run("checkout", "-q", "-b", "other", cwd=repository)
    assert not proof.exists()


def test_git_is_found_before_the_directory_changes(repository, monkeypatch):
    """A program called git inside a workspace is not run, even when PATH has a relative entry."""
    fake = repository / "bin" / "git"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\nexit 99\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", "bin:" + os.environ["PATH"])
    assert git.run("version", cwd=repository).returncode == 0


def test_no_git_at_all_is_told(repository, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="not installed") as caught:
        git.open_repository(repository)
    assert "install" in caught.value.hint


def test_an_old_git_is_told(repository, monkeypatch, tmp_path):
    old = tmp_path / "bin" / "git"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\necho git version 2.30.1\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(old.parent))
    with pytest.raises(ConfigError, match=r"2\.30\.1 is too old"):
        git.open_repository(repository)


# -- opening


def test_opening_what_is_no_work_tree_says_what_it_is(tmp_path, repository):
    (tmp_path / "plain").mkdir()
    with pytest.raises(ConfigError, match="not in a git repository") as caught:
        git.open_repository(tmp_path / "plain")
    assert "git init" in caught.value.hint
    with pytest.raises(ConfigError, match="is not a directory"):
        git.open_repository(tmp_path / "nowhere")
    sh("git", "clone", "-q", "--bare", str(repository), str(tmp_path / "bare.git"), cwd=tmp_path)
    with pytest.raises(ConfigError, match="bare") as caught:
        git.open_repository(tmp_path / "bare.git")
    assert "clone" in caught.value.hint
    with pytest.raises(ConfigError, match="inside a git directory"):
        git.open_repository(repository / ".git")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_repository_of_somebody_else_is_told_with_the_way_out(repository, tmp_path):
    for place, folders, files in os.walk(repository):
        for name in [".", *folders, *files]:
            os.chown(os.path.join(place, name), 12345, 12345)
    with pytest.raises(ConfigError, match="another user") as caught:
        git.open_repository(repository)
    assert "safe.directory" in caught.value.hint


def test_fresh_detached_and_dirty_are_separate_questions(tmp_path, repository):
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    sh("git", "init", "-q", "-b", "trunk", cwd=fresh)
    git.open_repository(fresh)
    assert not git.has_commit(fresh)
    assert git.current_branch(fresh) == "trunk"
    assert git.has_commit(repository)
    assert git.current_branch(repository) == "main"
    sh("git", "tag", "main", cwd=repository)  # a tag of the same name must not change the answer
    assert git.current_branch(repository) == "main"
    sh("git", "checkout", "-q", "--detach", cwd=repository)
    assert git.current_branch(repository) is None
    assert not git.is_dirty(repository)
    (repository / "x.log").touch()
    assert not git.is_dirty(repository)
    (repository / "untracked").touch()
    assert git.is_dirty(repository)


def test_status_spells_odd_names_as_the_disk_does(repository):
    for name in ODD_NAMES:
        (repository / name).write_text("x")
    sh("git", "mv", "README.md", "renamed", cwd=repository)
    assert sorted(git.status(repository)) == sorted([*ODD_NAMES, "README.md", "renamed"])


def test_work_trees_clones_and_clones_of_clones_have_one_identity(repository, tmp_path):
    home = git.open_repository(repository)
    assert home.identity == str(repository / ".git")
    sh("git", "worktree", "add", "-q", "../linked", cwd=repository)
    sh("git", "clone", "-q", "--shared", str(repository), str(tmp_path / "one"), cwd=tmp_path)
    sh("git", "clone", "-q", str(tmp_path / "one"), str(tmp_path / "two"), cwd=tmp_path)
    sh("git", "clone", "-q", f"file://{repository}", str(tmp_path / "three"), cwd=tmp_path)
    sh("git", "remote", "set-url", "origin", "../repo", cwd=tmp_path / "one")
    for other in ("linked", "one", "two", "three"):
        assert git.open_repository(tmp_path / other).identity == home.identity
    assert git.open_repository(tmp_path / "linked").common_dir == home.common_dir
    assert git.open_repository(repository / "src").root == repository


def test_an_origin_in_a_circle_or_gone_still_gives_one_identity(repository, tmp_path):
    sh("git", "clone", "-q", str(repository), str(tmp_path / "two"), cwd=tmp_path)
    sh("git", "remote", "add", "origin", str(tmp_path / "two"), cwd=repository)
    assert git.open_repository(repository).identity == git.open_repository(tmp_path / "two").identity
    for root in (repository, tmp_path / "two"):
        sh("git", "remote", "set-url", "origin", "/gone/away", cwd=root)
    assert {git.open_repository(root).identity for root in (repository, tmp_path / "two")} == {"/gone/away"}


@pytest.mark.parametrize(
    "url",
    [
        "git@Example.org:team/tool.git", "https://example.org/team/tool", "https://me:secret@example.org/team/tool.git/",
        "ssh://git@example.org:22/team/tool.git", "https://example.org:443/team/tool", "git@example.org:/team/tool",
        "https://example.org//team/tool.git?x=1",
    ],
)  # fmt: skip
def test_one_remote_has_one_name_without_secrets(url, repository):
    sh("git", "remote", "add", "origin", url, cwd=repository)
    assert git.open_repository(repository).identity == "example.org/team/tool"


def test_another_port_is_another_remote():
    assert git.normalised_url("ssh://git@example.org:2222/a/b.git") == "example.org:2222/a/b"


# -- claims


def test_paths_are_claimed_by_one_name_however_they_are_written(repository):
    home = git.open_repository(repository)
    wanted = Claim.file("src/a.py", home.identity)
    (repository / "link").symlink_to("src")
    spellings = [
        ("src/a.py", repository), ("./src//a.py", repository), ("a.py", repository / "src"),
        ("../src/a.py", repository / "src"),
        (str(repository / "src" / "a.py"), "/"), ("link/a.py", repository), ("src/../src/a.py", None),
    ]  # fmt: skip
    assert {git.path_claim(home, path, cwd) for path, cwd in spellings} == {wanted}


def test_directories_patterns_and_things_to_come(repository):
    home = git.open_repository(repository)

    def path(text: str, cwd: Path | None = None) -> str:
        return git.path_claim(home, text, cwd).path

    assert path("src") == path("src/") == path("src/.") == path("src/**") == "src/**"
    assert path(".") == path(str(repository)) == path("..", repository / "src") == "**"
    assert path("new/file.py") == "new/file.py"
    assert path("new/") == "new/**"
    assert path("src/*.py") == path("*.py", repository / "src") == "src/*.py"
    assert path("**/test_?.py") == "**/test_?.py"
    assert git.files_claims(home, ["src", "src/", "README.md"]) == tuple(
        Claim.file(p, home.identity) for p in ("src/**", "README.md")
    )


@pytest.mark.parametrize("spelling", ["link", "link/", "./link", "{root}/link", "over/link"])
def test_a_claim_on_a_link_is_one_on_the_entry_too(repository, spelling):
    """Whoever has it may make another link of it, which is what a pattern that fits its name means."""
    home = git.open_repository(repository)
    (repository / "link").symlink_to("src")
    (repository / "over").symlink_to(".")
    claims = git.files_claims(home, [spelling.format(root=repository)])
    assert claims == (Claim.file("src/", home.identity), Claim.file("link", home.identity))
    assert any(conflict(claim, git.path_claim(home, "l*")) for claim in claims)
    assert all(claim.shared for claim in git.files_claims(home, ["link"], shared=True))
    assert git.files_claims(home, ["link/a.py"]) == (Claim.file("src/a.py", home.identity),)


def test_a_link_to_another_work_tree_is_an_entry_of_its_own(repository, tmp_path):
    home = git.open_repository(repository)
    sh("git", "worktree", "add", "-q", str(tmp_path / "tree"), "-b", "n", cwd=repository)
    (repository / "link").symlink_to(tmp_path / "tree")
    assert [claim.path for claim in git.files_claims(home, ["link"])] == ["**", "link"]


def test_a_file_that_looks_like_a_pattern_is_itself(repository):
    home = git.open_repository(repository)
    (repository / "[id]").mkdir()
    (repository / "[id]" / "page*.tsx").touch()
    ours = git.path_claim(home, "[id]/page*.tsx")
    assert not conflict(ours, git.path_claim(home, "d/pages.tsx"))
    assert not conflict(ours, git.path_claim(home, "[id]/pages.tsx"))
    assert conflict(ours, git.path_claim(home, "[id]"))
    assert conflict(ours, git.path_claim(home, "*/page?.tsx"))


def test_paths_outside_are_refused_with_both_places_named(repository, tmp_path):
    home = git.open_repository(repository)
    (repository / "out").symlink_to(tmp_path)
    for path in ("../other", str(tmp_path / "x"), "out/x", "/etc/passwd", "src/../../x"):
        with pytest.raises(ConfigError, match="outside the repository") as caught:
            git.path_claim(home, path)
        assert str(repository) in str(caught.value)
    for path in ("", "a\0b"):
        with pytest.raises(ConfigError):
            git.path_claim(home, path)


def test_another_work_tree_of_the_same_repository_has_the_same_files(repository, tmp_path):
    home = git.open_repository(repository)
    sh("git", "worktree", "add", "-q", str(repository / "nested"), "-b", "n", cwd=repository)
    sh("git", "clone", "-q", "--shared", str(repository), str(tmp_path / "clone"), cwd=tmp_path)
    wanted = git.path_claim(home, "src/a.py")
    for top in (repository / "nested", tmp_path / "clone"):
        assert git.path_claim(home, str(top / "src/a.py")) == wanted
        assert git.path_claim(git.open_repository(top), "a.py", top / "src") == wanted


def test_case_is_folded_where_the_file_system_does(repository):
    sh("git", "config", "core.ignorecase", "true", cwd=repository)
    home = git.open_repository(repository)
    assert home.ignores_case
    assert git.path_claim(home, "SRC/New.py") == git.path_claim(home, "src/new.PY")
    assert git.branch_claim(home, "Fix") == git.branch_claim(home, "fix")


def test_odd_names_can_be_claimed(repository):
    home = git.open_repository(repository)
    for name in ODD_NAMES:
        (repository / name).write_text("x")
        assert git.path_claim(home, name).name == git.path_claim(home, f"./{name}").name


# -- refs and branches

NAMES = [
    "a", "a/b", "ünï", "a.b", "a-b", "a@b", "{a", "", "-a", "a//b", "/a", "a/", ".a", "a/.b", "a..b", "a.lock",
    "a.lock/b",
    "a.", "a./b", "a b", "a~b", "a^b", "a:b", "a?b", "a*b", "a[b", "a\\b", "a@{b", "a\x7fb", "a\tb", "a\nb",
    "x.locked", "a/@",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_branch_names_are_judged_as_git_does(name, repository):
    git_takes_it = (
        subprocess.run(["git", "check-ref-format", "--branch", name], cwd=repository, capture_output=True).returncode
        == 0
    )
    try:
        taken = git.checked_branch(name) == name
    except ConfigError:
        taken = False
    assert taken == git_takes_it
    if taken:
        git.branch_claim(git.open_repository(repository), name)


def test_head_is_no_branch_name():
    for name in ("HEAD", "@"):
        with pytest.raises(ConfigError):
            git.checked_branch(name)


def test_a_branch_is_made_moved_and_deleted_only_from_where_it_was(repository):
    first, second = git.rev_parse("HEAD~1", cwd=repository), git.rev_parse("HEAD", cwd=repository)
    git.create_branch("x", first, cwd=repository)
    assert git.branch_exists("x", cwd=repository)
    with pytest.raises(GitFailed):
        git.create_branch("x", first, cwd=repository)
    with pytest.raises(GitFailed):
        git.update_ref("refs/heads/x", second, second, cwd=repository)
    git.update_ref("refs/heads/x", second, first, cwd=repository)
    with pytest.raises(GitFailed):
        git.delete_branch("x", first, cwd=repository)
    git.delete_branch("x", second, cwd=repository)
    assert git.branch_tip("x", cwd=repository) is None
    assert "x" not in (repository / ".git" / "config").read_text()


def test_revisions_that_name_nothing_are_told(repository):
    for revision in ("nothing", "", "--all", "HEAD:README.md"):
        with pytest.raises(ConfigError, match="names no commit"):
            git.rev_parse(revision, cwd=repository)


def test_ancestry(repository):
    first, second = git.rev_parse("HEAD~1", cwd=repository), git.rev_parse("HEAD", cwd=repository)
    assert git.is_ancestor(first, second, cwd=repository)
    assert not git.is_ancestor(second, first, cwd=repository)
    assert git.merge_base(first, second, cwd=repository) == first
    assert git.commits(first, second, cwd=repository) == [second]
    with pytest.raises(GitFailed):
        git.is_ancestor("0" * 40, second, cwd=repository)


# -- merges


def branches(root: Path, **edits: tuple[str, str]) -> None:
    for name, (path, text) in edits.items():
        sh("git", "checkout", "-q", "-B", name, "main", cwd=root)
        change(root, path, text)
    sh("git", "checkout", "-q", "main", cwd=root)


def test_several_bases_become_one_commit_without_a_work_tree(repository):
    branches(repository, one=("1", "x"), two=("2", "x"), three=("3", "x"))
    before = sh("git", "status", "--porcelain", cwd=repository), git.work_trees(repository)
    merged = git.merge(["one", "two", "three"], cwd=repository)
    assert sh("git", "ls-tree", "--name-only", merged, "1", "2", "3", cwd=repository).split() == ["1", "2", "3"]
    assert all(git.is_ancestor(name, merged, cwd=repository) for name in ("one", "two", "three"))
    assert before == (sh("git", "status", "--porcelain", cwd=repository), git.work_trees(repository))


def test_the_same_merge_made_later_is_the_same_commit(repository):
    """It is as old as the newer of what it merges."""
    branches(repository, one=("1", "x"), two=("2", "x"))
    tips = [
        sh("git", "commit-tree", f"{name}^{{tree}}", "-p", "main", "-m", name, cwd=repository, GIT_COMMITTER_DATE=date)
        for name, date in (("one", "@1000000000 +0000"), ("two", "@1000000001 +0000"))
    ]
    merged = git.merge(tips, cwd=repository)
    assert sh("git", "show", "--no-patch", "--format=%at %ct", merged, cwd=repository) == "1000000001 1000000001"


def test_what_contains_the_others_is_the_merge(repository):
    head = git.rev_parse("HEAD", cwd=repository)
    assert git.merge(["HEAD~1", "main", "HEAD~1"], cwd=repository) == head
    assert git.merge(["main"], cwd=repository) == head


def test_a_conflict_names_both_sides_and_the_paths(repository):
    branches(repository, one=("src/a.py", "1"), two=("other", "2"), three=("src/a.py", "3"))
    sh("git", "checkout", "-q", "three", cwd=repository)
    change(repository, "new\nline", "x")
    with pytest.raises(LandingConflict) as caught:
        git.merge(["one", "two", "three"], cwd=repository)
    assert (caught.value.base, caught.value.branch, caught.value.paths) == ("one, two", "three", ("src/a.py",))


# -- commits


def test_everything_but_the_ignored_is_committed(repository):
    for name in [*ODD_NAMES, "x.log"]:
        (repository / name).write_text("x")
    (repository / "src" / "b.py").unlink()
    made = git.commit_all(repository, "# not a comment\n\nbody")
    assert made == git.rev_parse("HEAD", cwd=repository)
    assert sh("git", "log", "-1", "--format=%B", cwd=repository).startswith("# not a comment\n\nbody")
    assert sorted(found.path for found in git.changes("HEAD~1", "HEAD", cwd=repository)) == sorted(
        [*ODD_NAMES, "src/b.py"]
    )
    assert not git.is_dirty(repository)
    assert git.commit_all(repository, "nothing") is None


def test_authors_come_from_the_environment_then_the_config_then_a_stand_in(repository, monkeypatch):
    author = ("git", "log", "-1", "--format=%an <%ae> %cn <%ce>")
    (repository / "1").touch()
    git.commit_all(repository, "x")
    assert sh(*author, cwd=repository) == "Ada <ada@example.org> Ada <ada@example.org>"
    config = Path(os.environ["HOME"]) / ".gitconfig"
    before = config.write_text("[user]\n\tname = Ada\n[commit]\n\tgpgsign = true\n") and config.read_text()
    (repository / "2").touch()
    git.commit_all(repository, "\0odd \udc80 message")
    assert sh(*author, cwd=repository) == "Ada <necrocode@localhost> Ada <necrocode@localhost>"
    monkeypatch.setenv("GIT_AUTHOR_NAME", "Bob")
    monkeypatch.setenv("GIT_AUTHOR_EMAIL", "bob@example.org")
    (repository / "3").touch()
    git.commit_all(repository, "")
    assert sh(*author, cwd=repository) == "Bob <bob@example.org> Ada <necrocode@localhost>"
    assert config.read_text() == before
    assert "user" not in (repository / ".git" / "config").read_text()


@pytest.mark.parametrize("name", ["", "  ", ".,"])
def test_an_empty_name_is_none(repository, name):
    sh("git", "config", "user.name", name, cwd=repository)
    (repository / "x").touch()
    assert git.commit_all(repository, "x")
    author = sh("git", "log", "-1", "--format=%an <%ae> %cn <%ce>", cwd=repository)
    assert author == "necrocode <ada@example.org> necrocode <ada@example.org>"


def test_a_nested_repository_is_not_committed_as_a_name_only(repository):
    sh("git", "init", "-q", "nested", cwd=repository)
    change(repository / "nested", "x", "x")
    (repository / "mine").touch()
    git.commit_all(repository, "x")
    assert sh("git", "show", "--name-only", "--format=", cwd=repository) == "mine"
    assert git.status(repository) == ["nested/"]
    assert git.commit_all(repository, "again") is None


# -- differences


def test_changes_count_lines_and_know_renames_and_binary_files(repository):
    sh("git", "mv", "src/a.py", "src/new name.py", cwd=repository)
    (repository / "bin").write_bytes(bytes(range(256)))
    change(repository, "README.md", "one\ntwo\n")
    found = {entry.path: entry[1:] for entry in git.changes("HEAD~1", "HEAD", cwd=repository)}
    assert found == {"README.md": (1, 0, ""), "bin": (None, None, ""), "src/new name.py": (0, 0, "src/a.py")}


def test_a_difference_is_cut_at_its_limit(repository):
    change(repository, "big", "x" * 79 + "\n" + "y\n" * 200_000)
    whole = git.diff("HEAD~1", "HEAD", cwd=repository)
    assert whole.endswith("y\n")
    cut = git.diff("HEAD~1", "HEAD", cwd=repository, limit=1000)
    assert cut.startswith(whole[:1000])
    assert cut.endswith("cut after 1000 bytes\n")
    assert len(cut) < 1050
    with pytest.raises(GitFailed):
        git.diff("HEAD", "nothing", cwd=repository)


# -- snapshots


def tree_files(root: Path, commit: str) -> dict[str, str]:
    names = git.run("ls-tree", "-r", "-z", "--name-only", commit, cwd=root).stdout.split("\0")[:-1]
    return {name: git.run("cat-file", "blob", f"{commit}:{name}", cwd=root).stdout for name in names}


def test_a_snapshot_has_all_work_and_touches_nothing(repository):
    for name in ODD_NAMES:
        (repository / name).write_bytes(os.fsencode(name))
    (repository / "x.log").touch()
    (repository / "src" / "b.py").unlink()
    (repository / "README.md").write_text("staged\n")
    sh("git", "add", "README.md", cwd=repository)
    (repository / "README.md").write_text("later\n")
    (repository / "link").symlink_to("/nowhere")
    before = (
        sh("git", "status", "--porcelain", "-uall", "-z", cwd=repository),
        (repository / ".git" / "index").read_bytes(),
    )
    head = git.rev_parse("HEAD", cwd=repository)
    saved = git.snapshot(repository, "refs/necrocode/snap/x/1")
    found = tree_files(repository, saved)
    assert {name: found[name] for name in ODD_NAMES} == {name: name for name in ODD_NAMES}
    assert found["README.md"] == "later\n"
    assert found["link"] == "/nowhere"
    assert "src/b.py" not in found
    assert "x.log" not in found
    assert tree_files(repository, f"{saved}^2")["README.md"] == "staged\n"
    assert git.rev_parse(f"{saved}^1", cwd=repository) == head
    assert before == (
        sh("git", "status", "--porcelain", "-uall", "-z", cwd=repository),
        (repository / ".git" / "index").read_bytes(),
    )
    with pytest.raises(GitFailed):
        git.snapshot(repository, "refs/necrocode/snap/x/1")


def test_a_snapshot_sees_files_that_were_told_to_be_unseen(repository):
    for flag, name in (("--assume-unchanged", "src/a.py"), ("--skip-worktree", "src/b.py")):
        sh("git", "update-index", flag, name, cwd=repository)
        (repository / name).write_text("changed\n")
    assert not git.is_dirty(repository)
    assert git.work_tree(repository).dirty
    found = tree_files(repository, git.snapshot(repository, "refs/necrocode/snap/x/1"))
    assert found["src/a.py"] == found["src/b.py"] == "changed\n"


def test_a_sparse_checkout_does_not_look_like_a_deletion(repository):
    change(repository, "other/c.py", "c\n")
    sh("git", "sparse-checkout", "set", "src", cwd=repository)
    assert not (repository / "other").exists()
    assert not git.work_tree(repository).dirty
    (repository / "outside").mkdir()
    (repository / "outside" / "new").write_text("x")
    found = tree_files(repository, git.snapshot(repository, "refs/necrocode/snap/x/1"))
    assert "outside/new" in found
    assert "other/c.py" in found


@pytest.mark.parametrize("damage", [b"", b"DIRC garbage", None])
def test_a_torn_or_missing_index_does_not_cost_the_files(repository, damage):
    (repository / "new").write_text("x")
    index = repository / ".git" / "index"
    index.unlink()
    if damage is not None:
        index.write_bytes(damage)
    found = tree_files(repository, git.snapshot(repository, "refs/necrocode/snap/x/1"))
    assert found["new"] == "x"
    assert "src/a.py" in found


def test_a_snapshot_works_in_the_middle_of_a_merge_and_with_a_lock_left_behind(repository):
    branches(repository, one=("src/a.py", "1\n"), two=("src/a.py", "2\n"))
    sh("git", "checkout", "-q", "one", cwd=repository)
    assert subprocess.run(["git", "merge", "two"], cwd=repository, capture_output=True).returncode == 1
    (repository / ".git" / "index.lock").touch()
    saved = git.snapshot(repository, "refs/necrocode/snap/x/1")
    assert "<<<<<<<" in tree_files(repository, saved)["src/a.py"]


def test_a_nested_repository_cannot_be_snapshot_and_says_so(repository):
    sh("git", "init", "-q", "nested", cwd=repository)
    change(repository / "nested", "x", "x")
    with pytest.raises(WorkspaceKept, match="nested"):
        git.snapshot(repository, "refs/necrocode/snap/x/1")


def test_a_clean_tree_is_clean_and_staged_work_is_not(repository):
    assert not git.work_tree(repository).dirty
    (repository / "README.md").write_text("staged\n")
    sh("git", "add", "README.md", cwd=repository)
    (repository / "README.md").write_text("one\n")
    assert git.work_tree(repository).dirty


# -- locks


def test_the_mutex_excludes_other_processes_and_names_its_file(repository, tmp_path):
    home = git.open_repository(repository)
    first, second = (git.repository_mutex(tmp_path / "state", home, timeout=seconds) for seconds in (60, 0.05))
    with first, pytest.raises(GateTimeout, match="mutex/git-"), second:
        pass
    with git.repository_mutex(tmp_path / "state", home, timeout=5):
        pass
    (lock,) = (tmp_path / "state" / "mutex").iterdir()
    assert lock.stat().st_mode & 0o777 == 0o600


def test_the_mutex_outlives_a_killed_holder_until_its_git_has_ended(repository, tmp_path):
    """A git that goes on alone may still be writing: nobody enters before it is done."""
    script = f"""
import os, pathlib, subprocess
from necrocode import git
home = git.open_repository({str(repository)!r})
with git.repository_mutex(pathlib.Path({str(tmp_path / "state")!r}), home) as lock:
    child = subprocess.Popen(["sleep", "60"], pass_fds=[lock], stdout=subprocess.DEVNULL)
    print(child.pid, flush=True)
    os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=False, cwd=PROJECT)
    assert done.returncode == -signal.SIGKILL
    home = git.open_repository(repository)
    try:
        with pytest.raises(GateTimeout), git.repository_mutex(tmp_path / "state", home, timeout=0.1):
            pass
    finally:
        os.kill(int(done.stdout), signal.SIGKILL)
    with git.repository_mutex(tmp_path / "state", home, timeout=20):
        pass


def test_checkouts_take_turns_but_never_wait_for_ever(tmp_path):
    from contextlib import ExitStack

    with ExitStack() as taken:
        for _ in range(os.cpu_count() or 1):
            taken.enter_context(git.checkout_turn(tmp_path, patience=5))
        with git.checkout_turn(tmp_path, patience=0.05):
            pass
