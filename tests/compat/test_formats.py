"""State directories as each earlier format wrote them open and work; a newer one is left alone, and that is told.

`formats/` holds directories as they lay there while a runner held a lease, one was revoked, two waited and a run was
half done (without the FIFOs of the waiting, which no copy has): the machine was rebooted then."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from necrocode import cli, journal
from necrocode.claim import Claim
from necrocode.lease import Request
from necrocode.ledger.files import FileLedger
from necrocode.order import read_result
from necrocode.outcome import Status
from necrocode.runs import Plan, attempts_of_all, runs
from necrocode.statedir import FORMAT
from necrocode.testing import check

FORMATS = sorted((Path(__file__).parent / "formats").iterdir())
LAST = 4294967301
"""The largest token or ticket that was given out there."""


@pytest.fixture(params=FORMATS, ids=lambda path: path.name)
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    place = tmp_path / "state"
    shutil.copytree(request.param, place)
    for folder, _, names in os.walk(place):
        os.chmod(folder, 0o700)
        for name in names:
            os.chmod(Path(folder, name), 0o600)
    for path in place.glob("runs/*/*/runner.json"):  # it was this machine, before it was rebooted
        path.write_text(path.read_text().replace('"builder"', json.dumps(os.uname().nodename)))
    return place


def necrocode(root: Path, *argv: str) -> tuple[int, str, str]:
    """Its exit code, what it showed and what it said; within this process, but for `claim`, which leaves one."""
    if argv[0] == "claim":
        env = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
        words = [sys.executable, "-m", "necrocode", "--state-dir", str(root), *argv]
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout, done.stderr
    out, told = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO()
    with redirect_stdout(out), redirect_stderr(told):
        code = cli.main(["--state-dir", str(root), *argv])
        out.seek(0)
        return code, out.read(), told.getvalue()


def test_this_format_is_among_them() -> None:
    assert {path.name.partition("-")[0] for path in FORMATS} == {str(number) for number in range(1, FORMAT + 1)}


def test_what_is_there_is_seen(root: Path) -> None:
    seen = FileLedger(root).snapshot()
    assert (seen.limit, seen.quotas, seen.unreadable) == (4, {"spec:s": 3}, ())
    (running,) = (one for one in seen.runners if one.state == "running")
    (fenced,) = (one for one in seen.runners if one.state == "fenced")
    assert running.record.claims == (Claim.file("src/**"), Claim.branch("fix"), Claim.file("docs/a.md", shared=True))
    assert (running.record.runner_id, running.record.task_id, running.liveness) == ("r1", "t1", "dead")
    assert fenced.record.claims == (Claim.workspace("/w/f"),)
    assert [waiter.record.runner_id for waiter in seen.waiting] == ["w2", "w1"]
    assert running.record.holder and running.record.holder.host == "builder"


def test_the_dead_of_that_time_stand_in_nobodys_way(root: Path) -> None:
    ledger = FileLedger(root)
    lease = ledger.register(Request("new", (Claim.file("src/a.py"), Claim.branch("fix"), Claim.workspace("/w/f"))))
    assert lease.token is not None and lease.token > LAST
    assert ledger.configure(limit=2) is None
    assert check(root, lowered=True)
    ledger.release(lease)
    ledger.sweep()
    for folder in ("runners", "queue", "fenced", "live", "bells", "tmp", "quarantine"):
        assert os.listdir(root / folder) == [], folder
    leases = [ledger.register(Request(f"n{number}")) for number in range(2)]
    assert check(root)
    for one in leases:
        ledger.release(one)


def test_the_run_of_that_time_goes_on(root: Path) -> None:
    state = FileLedger(root).state
    assert runs(state) == ["abc234"]
    plan, folders = Plan.load(state, "abc234"), attempts_of_all(state, "abc234")
    assert [task.id for task in plan.tasks] == ["one", "two", "three"] and plan.tasks[1].after == ("one",)
    done = read_result(folders["one"][0][1])
    assert done and (done.status, done.seconds) == (Status.DONE, 3.0)
    code, _, said = necrocode(root, "run", "--resume", "abc234")
    assert code == 0, said
    results = {
        name: [read_result(folder) for _, folder in every] for name, every in attempts_of_all(state, "abc234").items()
    }
    assert all(every[-1] and every[-1].ok for every in results.values()), results
    assert len(results["one"]) == 1, "what is done is not done again"
    assert [event.kind for event in journal.read(state.events)][:2] == ["run.started", "attempt.started"]


ASKED = (["status"], ["why", "abc234/one"], ["logs", "abc234/one"], ["events"], ["metrics"], ["report", "abc234"],
         ["gc"], ["config"], ["doctor"])  # fmt: skip


@pytest.mark.parametrize("argv", ASKED, ids=lambda argv: argv[0])
def test_every_command_that_looks_understands_it(root: Path, argv: list[str]) -> None:
    code, shown, said = necrocode(root, *argv)
    assert code == 0 or (argv == ["doctor"] and code == 1), said
    assert shown


# -- what a newer necrocode wrote


CHANGING = (["exec", "true"], ["claim", "file:a", "--pid", "1"], ["release", "r1"], ["stop", "r1"], ["gc", "--yes"],
            ["retry", "abc234"], ["wait", "abc234"], ["config", "set", "limit", "3"], ["doctor", "--fix"],
            ["run", "tasks.toml"], ["run", "--resume", "abc234"])  # fmt: skip
ELSEWHERE = {"init", "schema", "completion", "version"}
"""Commands that have nothing to do with a state directory."""


def test_these_are_all_commands() -> None:
    assert {argv[0] for argv in (*ASKED, *CHANGING)} | ELSEWHERE == set(cli.VERBS)


@pytest.mark.parametrize("argv", [*ASKED, *CHANGING], ids=" ".join)
def test_a_newer_format_is_not_touched(argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "state"
    shutil.copytree(FORMATS[0], root)
    os.chmod(root, 0o700)
    (root / "VERSION").write_text(f"{FORMAT + 1}\n")
    (tmp_path / "tasks.toml").write_text('[[task]]\nid = "t"\nworkspace = "none"\ncommand = ["true"]\n')
    monkeypatch.chdir(tmp_path)
    before = everything(root)
    code, shown, said = necrocode(root, *argv)
    assert code == (1 if argv[0] == "doctor" else 125)
    told = f"a newer necrocode wrote it (format {FORMAT + 1}, this one knows {FORMAT})"
    assert told in said + shown and "upgrade necrocode" in said + shown
    assert everything(root) == before


def everything(root: Path) -> dict[str, tuple[int, bytes]]:
    """Every entry with the time of its last change, and its bytes."""
    found = sorted(root.rglob("*"))
    return {
        str(path): (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"") for path in [root, *found]
    }
