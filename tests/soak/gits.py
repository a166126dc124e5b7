"""kill -9 inside git, while workspaces are made, filled, committed, saved and removed: of a git, of the runner that
called it, or of both. Afterwards the same place is made again, or all is cleared up, and nothing may be missing."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from necrocode import git, workspace
from necrocode.errors import NecrocodeError
from necrocode.testing import forked, wait_for
from necrocode.workspace.place import CLONES, INCOMING
from tests.soak.part import Part, Soak

_LONGEST = 0.2
"""Seconds until the kill; a whole life takes about as long."""
_KILLS, _ROUNDS = 4, 25
"""Kills until all is cleared up, and clear-ups until a fresh repository is taken."""
_WHOM = ("runner", "git", "both")
_MODES: tuple[workspace.Mode, ...] = ("worktree", "clone")


def play(soak: Soak) -> None:
    chance, template = soak.chance(), soak.place / "template"
    _make_template(template)
    done = rounds = 0
    while done < soak.wanted:
        if rounds % _ROUNDS == 0:
            scene = _Scene(soak, template, rounds)
        rounds += 1
        count = min(_KILLS, soak.wanted - done)
        try:
            scene.round(_MODES[rounds % 2], count, chance)
            scene.check(thorough=rounds % 5 == 0)
        except (AssertionError, NecrocodeError, OSError):
            soak.history.broken(f"round {rounds}, {_MODES[rounds % 2]}: {traceback.format_exc(limit=-5)}")
            scene = _Scene(soak, template, rounds)
        done += count


def _sh(*argv: str, cwd: Path) -> str:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (argv, done.stderr)
    return done.stdout


def _make_template(place: Path) -> None:
    place.mkdir()
    _sh("git", "init", "-q", "-b", "main", cwd=place)
    for key, value in {"user.name": "Ada", "user.email": "ada@example.org", "gc.auto": "0"}.items():
        _sh("git", "config", key, value, cwd=place)
    for at in range(20):
        path = place / f"src{at % 4}" / f"file{at}"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{at}\n" * 50)
    _sh("git", "add", "-A", cwd=place)
    _sh("git", "commit", "-qm", "first", cwd=place)


class _Scene:
    """A repository, and all that was said to be in it."""

    def __init__(self, soak: Soak, template: Path, number: int) -> None:
        self.history, self.number = soak.history, number
        for old in soak.place.glob("scene*"):
            shutil.rmtree(old)
        self.root = soak.place / f"scene{number}"
        shutil.copytree(template, self.root / "repository")
        self.home = git.open_repository(self.root / "repository")
        self.state = self.root / "state"
        self.state.mkdir(mode=0o700)
        self.folder = workspace.default_directory(self.home)
        self.said = self.root / "said"
        self.said.touch()
        self.trouble = self.root / "trouble"

    def round(self, mode: workspace.Mode, kills: int, chance: random.Random) -> None:
        """Some lives of one workspace, cut short one after another; then everything is cleared up."""
        runner = 0
        for _ in range(kills):
            runner = runner or self._runner(mode)
            time.sleep(chance.uniform(0.0, _LONGEST))
            whom = chance.choice(_WHOM)
            if _kill(runner, whom, chance):
                runner = 0
            self.history.injected(f"of the {whom}" if whom != "both" else "of both")
        if runner:
            _end(runner)
        assert not self.trouble.exists(), self.trouble.read_text()

    def _runner(self, mode: workspace.Mode) -> int:
        return forked(partial(self._live, mode), self.trouble)

    def _live(self, mode: workspace.Mode) -> None:
        os.setpgid(0, 0)
        log = os.open(self.said, os.O_WRONLY | os.O_APPEND)
        while True:
            # A git that was killed: whoever called it hears so, and begins anew.
            with suppress(NecrocodeError):
                self._life(mode, lambda words: os.write(log, f"{words}\n".encode()))

    def _life(self, mode: workspace.Mode, say: Callable[[str], object]) -> None:
        made = workspace.prepare(
            self.home, state_root=self.state, path=self.folder / f"run-t{mode}", branch=f"necrocode/run/{mode}",
            holder="run.t.1", mode=mode,
        )  # fmt: skip
        self._write(made.path / "src0" / "new", say)
        if commit := workspace.commit(made, "work"):
            say(f"commit {commit}")
        self._write(made.path / "more", say)
        workspace.retire(made, landed=True, force=True)

    def _write(self, path: Path, say: Callable[[str], object]) -> None:
        text = os.urandom(20).hex().encode()
        path.write_bytes(text)
        named = hashlib.sha1(b"blob %d\0" % len(text) + text, usedforsecurity=False)
        say(f"blob {named.hexdigest()}")

    def check(self, *, thorough: bool) -> None:
        home = self.root / "repository"
        wait_for(self._is_quiet)  # a git that outlived its caller may be making something still
        self._unjam()
        for left in workspace.list_leftovers(self.home, self.state):
            workspace.retire(left.workspace, landed=False, force=True)
        workspace.empty_trash(self.folder)
        assert not self.folder.exists(), f"left: {os.listdir(self.folder)}"
        assert len(git.work_trees(home)) == 1
        entries = home / ".git" / "worktrees"
        assert not entries.exists() or not os.listdir(entries), os.listdir(entries)
        for folder in (CLONES, INCOMING):
            refs = _sh("git", "for-each-ref", folder, cwd=home)
            assert not refs, refs
        self._all_is_there(home)
        if thorough:
            _sh("git", "fsck", "--strict", "--no-dangling", cwd=home)
            assert not _sh("git", "status", "--porcelain", cwd=home)
            _sh("git", "commit", "-q", "--allow-empty", "-m", "as ever", cwd=home)
            _sh("git", "worktree", "prune", cwd=home)

    def _unjam(self) -> None:
        """A git that dies while it deletes a ref leaves a lock of the whole repository, which nobody but its owner may
        judge; git's own error and `necrocode doctor` name it."""
        (self.root / "repository" / ".git" / "packed-refs.lock").unlink(missing_ok=True)

    def _is_quiet(self) -> bool:
        """Whether no process works in the scene, or on it, any more."""
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                told = os.fsencode(os.readlink(process / "cwd")) + b" " + (process / "cmdline").read_bytes()
                if os.fsencode(self.root) in told:
                    return False
        return True

    def _all_is_there(self, home: Path) -> None:
        kept = {line.partition(" ")[0] for line in _sh("git", "rev-list", "--objects", "--all", cwd=home).splitlines()}
        lost = [line for line in self.said.read_text().splitlines() if line.partition(" ")[2] not in kept]
        assert not lost, f"lost: {lost}"


def _kill(runner: int, whom: str, chance: random.Random) -> bool:
    """Whether the runner was killed; a git is waited for a little."""
    until = time.monotonic() + 0.1
    while not (gits := _descendants(runner)) and time.monotonic() < until:
        pass
    if whom != "git":
        _end(runner)
    if whom != "runner" and gits:
        with suppress(ProcessLookupError):
            os.kill(chance.choice(gits), signal.SIGKILL)
    return whom != "git"


def _end(runner: int) -> None:
    os.kill(runner, signal.SIGKILL)
    os.waitpid(runner, 0)


def _descendants(pid: int) -> list[int]:
    try:
        children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [*children, *(below for child in children for below in _descendants(child))]


PART = Part(
    goal="kill -9 of git, or of who called it, anywhere in the life of a workspace: the place can be made again, all "
    "can be cleared up, no file or commit is lost, the repository is sound",
    counts="kills",
    full=1_500,
    play=play,
    lacking=lambda: "" if shutil.which("git") else "git",
)
