"""The soak tier: its checker sees what is wrong, and its parts are played, a few faults of each."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from actors import run_clean
from proofs import only_in_the_gate, only_when_thorough

from necrocode import admission

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.soak.history import History, lines_of, verdict  # noqa: E402

PLANTED: dict[str, tuple[Callable[[History], object], str]] = {
    "broken": (lambda told: told.broken("torn"), "torn"),
    "held twice": (
        lambda told: (told.granted("a", "one"), told.granted("a", "two")),
        "a: granted to two while one had it",
    ),
    "held by one too many": (
        lambda told: (told.limit("s", 2), *(told.granted("s", who) for who in ("one", "two", "three"))),
        "s: granted to three while one, two had it",
    ),
    "lost": (lambda told: (told.acked("a"), told.acked("b"), told.found("b")), "a: lost"),
    "published twice": (
        lambda told: (told.published("t", "7"), told.published("t", "9")),
        "t: published by 7 and by 9",
    ),
    "published twice by one": (lambda told: (told.published("t", "7"), told.published("t", "7")), "t: published by 7"),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_the_checker_sees_what_is_wrong(planted: str, tmp_path: Path) -> None:
    history = good(tmp_path / "history")
    plant, told = PLANTED[planted]
    plant(history)
    found = verdict(lines_of(history.path))
    assert len(found.wrong) == 1 and told in found.wrong[0], found.wrong
    assert found.injected == {"kill -9": 3}


def good(path: Path) -> History:
    history = History(path)
    history.injected("kill -9", 2)
    history.limit("slot", 2)
    for who in ("w1", "w2"):
        history.granted("slot", who)
    history.granted("x", "w1")
    history.ended("x", "w1")
    history.granted("x", "w2")
    history.dying("w2")  # with x and its slot
    history.granted("x", "w2")  # too late: it may be dead before anybody reads this
    history.granted("x", "w3")
    history.granted("slot", "w3")
    history.published("done", "3")
    history.acked("done")
    history.found("done")
    history.injected("kill -9")
    return history


def test_a_good_history_is_good(tmp_path: Path) -> None:
    assert verdict(lines_of(good(tmp_path / "history").path)).wrong == []


def test_lines_are_checked_in_the_order_of_their_clock(tmp_path: Path) -> None:
    path = good(tmp_path / "history").path
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    assert verdict(lines_of(path)).wrong == []


def test_a_line_whose_writer_was_killed_is_left_out(tmp_path: Path) -> None:
    path = good(tmp_path / "history").path
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:3], lines[3][:20], *lines[3:], lines[0][:30]]))
    assert [*lines_of(path)] == [json.loads(line) for line in lines]


def test_a_history_that_was_kept_is_checked_by_command(tmp_path: Path) -> None:
    history = good(tmp_path / "history")
    assert soak("--check", str(history.path)).returncode == 0
    history.granted("x", "w4")
    done = soak("--check", str(history.path))
    assert done.returncode == 1 and "x: granted to w4 while w3 had it" in done.stdout


def test_a_little_of_the_kills(tmp_path: Path) -> None:
    played(tmp_path, "kills", 0.0003, 30)


@only_in_the_gate
@pytest.mark.parametrize(("part", "share", "least"), [("model", 0.002, 20), ("crowds", 0.0025, 50)])
def test_a_little_of(part: str, share: float, least: int, tmp_path: Path) -> None:
    played(tmp_path, part, share, least)


@only_when_thorough  # what it is about, test_command_line does in each run of the gate
@pytest.mark.skipif(not shutil.which("strace"), reason="not installed: strace (apt install strace)")
def test_a_little_of_the_command_line(tmp_path: Path) -> None:
    played(tmp_path, "commands", 0.003, 25)


@only_in_the_gate
@pytest.mark.parametrize(("part", "wanted"), [("kills", 60), ("crowds", 100)])
def test_a_part_sees_a_ledger_that_lets_everybody_in(part: str, wanted: int, state_root: Path) -> None:
    wrong = list[str]()
    for turn in range(10):  # they have to meet, which a busy machine may prevent for a while
        (state_root / f"{turn}").mkdir()
        if wrong := run_clean(play_broken, part, wanted, str(state_root / f"{turn}")):
            break
    assert any("granted to" in one or "I1" in one or "I2" in one for one in wrong), wrong


def play_broken(part: str, wanted: int, root: str) -> list[str]:
    from tests.soak.part import Soak

    admission.obstacle = lambda view, waiter: None
    history = History(Path(root, "history"))
    try:
        importlib.import_module(f"tests.soak.{part}").PART.play(Soak(Path(root), history, wanted, 1))
    except AssertionError as error:
        history.broken(str(error))
    return verdict(lines_of(history.path)).wrong


def played(tmp_path: Path, part: str, share: float, least: int) -> None:
    done = soak(part, "--share", str(share), "--history", str(tmp_path))
    log = (tmp_path / f"{part}.log").read_text()
    assert done.returncode == 0, (done.stderr, log)
    found = verdict(lines_of(tmp_path / f"{part}.jsonl"))
    assert found.injected.total() >= least, (found, log)
    assert "not played" not in done.stdout


def soak(*argv: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    words = [sys.executable, "-m", "tests.soak", *argv]
    return subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=110, check=False)
