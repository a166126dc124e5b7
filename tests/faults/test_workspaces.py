"""A workspace's whole life, made, filled, committed, removed: killed or refused at each call of ours (git's own calls
are killed in tests/ground/test_workspace.py). With NECROCODE_THOROUGH only: each case runs some dozen gits."""

from __future__ import annotations

import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest
from actors import run_clean
from proofs import Proof, only_when_thorough

from necrocode import git, workspace
from necrocode.errors import NecrocodeError
from necrocode.testing import KILL, Fault, Report, everywhere

FAULTS = (KILL, Fault("EIO"), Fault("ENOSPC", lasting=True), Fault("EMFILE"))
BRANCH = "necrocode/run/t"


def sh(*argv: str, cwd: Path) -> str:
    return subprocess.run(argv, cwd=cwd, check=True, capture_output=True, text=True).stdout


def template(place: Path) -> Path:
    sh("git", "init", "-q", "-b", "main", str(place), cwd=place.parent)
    for key, value in {"user.name": "Ada", "user.email": "ada@example.org", "gc.auto": "0"}.items():
        sh("git", "config", key, value, cwd=place)
    (place / "file").write_text("first\n")
    sh("git", "add", "-A", cwd=place)
    sh("git", "commit", "-qm", "first", cwd=place)
    return place


def live(place: Path, mode: workspace.Mode) -> None:
    repository = git.open_repository(place / "repository")
    made = workspace.prepare(
        repository, state_root=place / "state", path=place / "work", branch=BRANCH, holder="r", mode=mode
    )
    with open(place / "work" / "new", "w") as file:
        file.write("work\n")
    workspace.commit(made, "work")
    workspace.retire(made, landed=True)


def before(place: Path, base: Path) -> None:
    shutil.copytree(base, place / "repository")
    (place / "state").mkdir(mode=0o700)


def after(place: Path, done: bool) -> None:
    home = place / "repository"
    if done:  # a git that outlived its killed caller may still be at it otherwise
        assert not (place / "work").exists()
        assert sh("git", "show", f"{BRANCH}:new", cwd=home) == "work\n"
        assert len(git.work_trees(home)) == 1
        sh("git", "fsck", "--strict", cwd=home)


def play(base: str, mode: workspace.Mode, fault: Fault) -> Report:
    start = template(Path(base) / "template")
    return everywhere(
        partial(live, mode=mode), before=partial(before, base=start), after=after, faults=[fault],
        raises=(NecrocodeError, OSError), folder=Path(base), most=900,
    )  # fmt: skip


@only_when_thorough
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("fault", FAULTS, ids=str)
@pytest.mark.parametrize("mode", ["worktree", "clone"])
def test_a_workspace_comes_through(mode: workspace.Mode, fault: Fault, state_root: Path, proof: Proof) -> None:
    report = run_clean(play, str(state_root), mode, fault, within=1100)
    assert not report.wrong, "\n\n".join(report.wrong)
    proof("Q1" if fault == KILL else "Q2", report.cases)
