"""necrocode gc and doctor: nothing that is in use or nowhere else is touched, and what is wrong is found."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from actors import Puppet
from cli_call import Cli, calls, kill, until

from necrocode import git, journal, workspace
from necrocode.claim import Claim
from necrocode.launcher import alone
from necrocode.lease import Request
from necrocode.ledger.files import FileLedger
from necrocode.runs import Plan
from necrocode.task import Task
from necrocode.testing import is_alive

MONTHS = 60 * 86400


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    place = tmp_path / "repo"
    place.mkdir()
    (place / "a.txt").write_text("a\n")
    for argv in (["init", "-q", "-b", "main"], ["config", "user.name", "n"], ["config", "user.email", "e@x"],
                 ["add", "-A"], ["commit", "-qm", "one"]):  # fmt: skip
        subprocess.run(["git", *argv], cwd=place, check=True)
    return place


@pytest.fixture
def cli(state_root: Path, repository: Path) -> Iterator[Cli]:
    with calls(state_root, repository) as made:
        yield made


@pytest.fixture
def ledger(state_root: Path) -> FileLedger:
    return FileLedger(state_root)


@pytest.fixture
def holder(ledger: FileLedger, repository: Path) -> Callable[..., Path]:
    """Makes a workspace for a runner of this process that is known to the state directory."""

    def make(name: str, *, living: bool = False) -> Path:
        path = repository.parent / "repo.worktrees" / name
        lease = ledger.register(Request(name, (Claim.workspace(str(path)),)))
        workspace.prepare(
            git.open_repository(repository),
            state_root=ledger.state.root,
            path=path,
            branch=f"necrocode/{name}",
            holder=name,
        )
        if not living:
            ledger.release(lease)
        return path

    return make


def things(cli: Cli, *args: str) -> dict[str, Any]:
    return {Path(thing["name"]).name: thing for thing in cli.json("gc", *args)["things"]}


def age(path: Path, seconds: float = MONTHS) -> None:
    for place in (path, *(path.rglob("*") if path.is_dir() else ())):
        old = place.stat().st_mtime - seconds
        os.utime(place, (old, old))


def test_nothing_to_do(cli: Cli, ledger: FileLedger) -> None:
    done = cli("gc", "--yes")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "nothing to remove\n")


def test_leases_of_the_dead_go_and_those_of_the_living_stay(
    cli: Cli, ledger: FileLedger, puppet: Callable[..., Puppet]
) -> None:
    ledger.register(Request("living"))
    dead = puppet()
    dead.do("register", Request("dead"))
    dead.kill()
    shown = cli("gc")
    assert shown.returncode == 0 and "dry run" in shown.stderr
    assert shown.stdout.splitlines()[1].split()[:3] == ["remove", "lease", "dead"] and "living" not in shown.stdout
    assert len(ledger.snapshot().runners) == 2
    assert cli("gc", "--yes").stderr == "removed 1 thing\n"
    assert [seen.record.runner_id for seen in ledger.snapshot().runners] == ["living"]


def test_only_clean_workspaces_of_the_gone_go(cli: Cli, holder: Callable[..., Path]) -> None:
    clean, dirty, ahead, used = holder("clean"), holder("dirty"), holder("ahead"), holder("used", living=True)
    (dirty / "new.txt").write_text("unsaved\n")
    (ahead / "a.txt").write_text("mine\n")
    subprocess.run(["git", "commit", "-qam", "mine"], cwd=ahead, check=True)
    told = things(cli, "--yes")
    assert {name: thing["do"] for name, thing in told.items()} == {
        "clean": "removed", "dirty": "keep", "ahead": "keep", "used": "keep",
    }  # fmt: skip
    assert "uncommitted work" in told["dirty"]["keep"] and "1 commit of necrocode/ahead" in told["ahead"]["keep"]
    assert "used works in it" in told["used"]["keep"]
    assert not clean.exists() and dirty.exists() and ahead.exists() and used.exists()


def test_force_saves_before_it_removes_and_leaves_the_living_alone(
    cli: Cli, holder: Callable[..., Path], repository: Path
) -> None:
    dirty, ahead, used = holder("dirty"), holder("ahead"), holder("used", living=True)
    (dirty / "new.txt").write_text("unsaved\n")
    (used / "new.txt").write_text("unsaved\n")
    (ahead / "a.txt").write_text("mine\n")
    subprocess.run(["git", "commit", "-qam", "mine"], cwd=ahead, check=True)
    assert things(cli, "--force")["dirty"]["do"] == "remove" and dirty.exists()
    told = things(cli, "--force", "--yes")
    assert (told["dirty"]["told"], told["used"]["do"]) == ("saved as refs/necrocode/snap/dirty/1", "keep")
    assert not dirty.exists() and not ahead.exists() and used.exists()
    show = ["git", "show", "refs/necrocode/snap/dirty/1:new.txt", "necrocode/ahead:a.txt"]
    assert subprocess.run(show, cwd=repository, capture_output=True, text=True).stdout == "unsaved\nmine\n"


def test_what_no_snapshot_can_save_stays_and_the_dry_run_says_so(cli: Cli, holder: Callable[..., Path]) -> None:
    nested = holder("outer") / "nested"
    subprocess.run(["git", "init", "-q", str(nested)], check=True)
    subprocess.run(["git", "commit", "-q", "--allow-empty", "-m", "inner"], cwd=nested, check=True)
    for args in ([], ["--force"], ["--force", "--yes"]):
        told = things(cli, *args)["outer"]
        assert told["do"] == "keep" and "another repository is nested in it" in told["keep"], args
        assert "--force saves it" not in told["keep"]
    assert cli("gc", "--yes", "--force").returncode == 0 and nested.exists()


def test_a_workspace_in_which_somebody_stands_stays(cli: Cli, holder: Callable[..., Path]) -> None:
    path = holder("clean")
    visitor = subprocess.Popen(["sleep", "60"], cwd=path)
    try:
        told = things(cli, "--force", "--yes")["clean"]
        assert told["do"] == "keep" and str(visitor.pid) in told["keep"]
    finally:
        visitor.kill()
        visitor.wait()
    assert things(cli, "--yes")["clean"]["do"] == "removed" and not path.exists()


def test_a_workspace_of_another_state_directory_stays(cli: Cli, holder: Callable[..., Path], tmp_path: Path) -> None:
    path = holder("clean")
    assert cli("exec", "--state-dir", str(tmp_path / "other"), "--", "true").returncode == 0
    told = things(cli, "--state-dir", str(tmp_path / "other"), "--force", "--yes")
    assert "not known to this state directory" in told["clean"]["keep"] and path.exists()


def test_only_what_is_old_goes(cli: Cli, ledger: FileLedger, tmp_path: Path) -> None:
    tasks = tmp_path / "tasks.toml"
    tasks.write_text('[[task]]\nid = "a"\ncommand = ["true"]\n')
    for _ in range(2):
        assert cli("run", str(tasks), "--workspace", "none").returncode == 0
    state = ledger.state
    days = set(os.listdir(state.events))
    old, new = sorted(path.name for path in state.runs.iterdir())
    for place in (state.quarantine_folder / "bad", state.events / "2001-01-01.jsonl"):
        place.write_text("")
        age(place)
    age(state.runs / old)
    (state.quarantine_folder / "fresh").write_text("")
    assert sorted(things(cli)) == sorted([old, "bad", "2001-01-01.jsonl"])
    assert things(cli, "--older", "90d") == {}
    assert {thing["do"] for thing in things(cli, "--yes").values()} == {"removed"}
    assert [path.name for path in state.runs.iterdir()] == [new]
    assert os.listdir(state.quarantine_folder) == ["fresh"]
    assert days and days <= set(os.listdir(state.events)) and "2001-01-01.jsonl" not in os.listdir(state.events)
    assert os.listdir(state.tmp) == []


def test_a_run_with_something_alive_stays_however_old(cli: Cli, ledger: FileLedger, tmp_path: Path) -> None:
    tasks = tmp_path / "tasks.toml"
    tasks.write_text(f'[[task]]\nid = "a"\ncommand = ["sh", "-c", "echo $$ > {tmp_path}/pid; exec sleep 300"]\n')
    launcher = cli.start("run", str(tasks), "--workspace", "none")
    pid = int(until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text()))
    [folder] = ledger.state.runs.iterdir()
    age(folder)
    assert "follows it" in things(cli)[folder.name]["keep"]
    launcher.kill()
    launcher.wait()
    age(folder)
    assert "a runner of it lives" in things(cli)[folder.name]["keep"]
    kill(pid)
    until(lambda: (folder / "a.1" / "result.json").exists(), within=60)
    until(lambda: not ledger.snapshot().runners)
    age(folder)
    assert things(cli, "--yes")[folder.name]["do"] == "removed"


# -- doctor


def findings(done_or_cli: Cli, *args: str) -> dict[str, Any]:
    return {finding["name"]: finding for finding in done_or_cli.json("doctor", *args)["findings"]}


def test_all_is_well(cli: Cli, ledger: FileLedger) -> None:
    done = cli("doctor")
    assert done.returncode == 0 and done.stderr == "all is well\n", done.stdout
    found = findings(cli)
    assert {"git", "libraries", "descriptors", "inotify", "file system", "locks", "pipes", "gate"} <= set(found)
    assert "refused" in found["locks"]["said"]


def test_every_finding_has_its_fix(cli: Cli, ledger: FileLedger, puppet: Callable[..., Puppet]) -> None:
    dead = puppet()
    dead.do("register", Request("dead"))
    dead.kill()
    (ledger.state.runners / "bad.7.0.json").write_text("{")
    (ledger.state.root / "config.json").write_text('{"limit": "many"}')
    done = cli("doctor")
    assert done.returncode == 1
    bad = {name: finding for name, finding in findings(cli).items() if not finding["ok"]}
    assert "config.json" in bad["settings"]["said"] and bad["settings"]["fix"].startswith("rm ")
    (ledger.state.root / "config.json").unlink()
    bad = {name: finding for name, finding in findings(cli).items() if not finding["ok"]}
    assert set(bad) == {"records", "leases"} and all(finding["fix"] for finding in bad.values())
    assert "runners/bad.7.0.json" in bad["records"]["said"] and "dead" in bad["leases"]["said"]
    fixed = cli("doctor", "--fix")
    assert fixed.returncode == 1 and ledger.snapshot().runners == ()
    bad = {name: finding for name, finding in findings(cli).items() if not finding["ok"]}
    assert set(bad) == {"quarantine"} and "bad.7.0.json" in bad["quarantine"]["said"]


def test_a_lock_that_a_killed_git_left_is_named(cli: Cli, ledger: FileLedger, repository: Path) -> None:
    lock = repository / ".git" / "packed-refs.lock"
    lock.touch()
    assert findings(cli)["git"]["ok"]
    os.utime(lock, (0, 0))
    assert findings(cli)["git"]["fix"] == f"rm '{lock}' when none runs"


def test_the_silent_and_the_left_over_are_found(
    cli: Cli, ledger: FileLedger, puppet: Callable[..., Puppet], holder: Callable[..., Path]
) -> None:
    puppet().do("register", Request("silent", heartbeat_timeout=0.1))
    until(lambda: ledger.snapshot().runners[0].liveness == "silent")
    holder("clean")
    found = findings(cli)
    assert found["left over"]["fix"].startswith("necrocode gc")


def test_a_gate_that_stays_shut_is_found_with_who_is_inside(cli: Cli, ledger: FileLedger) -> None:
    with ledger._gate("testing"):
        found = findings(cli)["gate"]
    assert not found["ok"] and f"pid={os.getpid()} op=testing" in found["said"]


def test_a_directory_open_to_others_is_found_and_closed(cli: Cli, ledger: FileLedger) -> None:
    ledger.state.root.chmod(0o777)
    assert "chmod 700" in findings(cli)["state directory"]["fix"]
    assert cli("doctor", "--fix").returncode == 0
    assert ledger.state.root.stat().st_mode & 0o777 == 0o700


def test_a_directory_that_cannot_be_made_is_found(cli: Cli) -> None:
    found = findings(cli, "--state-dir", "/proc/none/state")["state directory"]
    assert not found["ok"] and found["fix"]


def test_a_link_to_nowhere_is_found_among_all_else(cli: Cli) -> None:
    link = cli.where.parent / "link"
    link.symlink_to("/nowhere/at/all")
    found = findings(cli, "--state-dir", str(link))
    assert not found["state directory"]["ok"] and found["python"]["ok"]


def without_rights(cli: Cli, *args: str) -> subprocess.CompletedProcess[str]:
    """As root without what lets it read and write everything: rights hold then as they do for others."""
    argv = [sys.executable, "-m", "necrocode", *args]
    if os.geteuid() == 0:
        argv = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all", *argv]
    return subprocess.run(argv, env=cli.environment(), cwd=cli.where, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("args", [("status",), ("doctor",), ("exec", "--", "true")])
@pytest.mark.parametrize(("kind", "said"), [("open", "others may write to it"), ("shut", "it cannot be written"),
                                            ("file", "not a directory"), ("full", "holds other files")])  # fmt: skip
def test_what_run_would_refuse_is_told_by_all(cli: Cli, args: tuple[str, ...], kind: str, said: str) -> None:
    """An empty directory is none yet, but one that could never be used is not called well."""
    place = cli.where.parent / "place"
    place.touch() if kind == "file" else place.mkdir()
    if kind == "full":
        (place / "thesis.tex").touch()
    else:
        place.chmod({"open": 0o777, "shut": 0o500, "file": 0o600}[kind])
    done = without_rights(cli, *args, "--state-dir", str(place)) if args[0] != "exec" else (
        without_rights(cli, "--state-dir", str(place), *args)
    )  # fmt: skip
    assert done.returncode == (1 if args[0] == "doctor" else 125), done
    assert said in done.stdout + done.stderr or (kind == "file" and "File exists" in done.stderr), done


def test_an_empty_directory_is_none_yet_and_can_be_used(cli: Cli) -> None:
    assert "is empty, and can be used" in findings(cli)["state directory"]["said"]
    assert "nothing has ever run there" in cli("status").stdout and os.listdir(cli.state) == []


def test_a_version_that_was_deleted_is_missed_and_written_again(cli: Cli) -> None:
    assert cli("exec", "--", "true").returncode == 0
    (cli.state / "VERSION").unlink()
    for args in (("status",), ("stop", "--all"), ("exec", "--", "true")):
        told = cli(*args)
        assert told.returncode == 125 and "VERSION: is missing, although" in told.stderr and "doctor" in told.stderr
    assert not (cli.state / "VERSION").exists()
    assert not findings(cli)["state directory"]["ok"]
    assert cli("doctor", "--fix").returncode == 0
    assert (cli.state / "VERSION").read_text() == "1\n"


def test_a_folder_that_cannot_be_written_is_found_and_opened(cli: Cli, ledger: FileLedger) -> None:
    ledger.state.runners.chmod(0o500)
    assert without_rights(cli, "exec", "--", "true").returncode == 125
    told = without_rights(cli, "doctor")
    assert told.returncode == 1 and "not yours to write: runners" in told.stdout and "fix: chmod 700" in told.stdout
    assert without_rights(cli, "doctor", "--fix").returncode == 0
    assert without_rights(cli, "exec", "--", "true").returncode == 0


@pytest.mark.parametrize("name", ["events", "quarantine", "runs", "mutex", "tmp"])
def test_what_stands_where_a_folder_should_be_is_moved_aside(cli: Cli, ledger: FileLedger, name: str) -> None:
    place = ledger.state.root / name
    shutil.rmtree(place)
    place.write_text("mine")
    wrong = [one for one in findings(cli).values() if not one["ok"]]
    assert [(one["name"], one["fix"]) for one in wrong] == [("places", f"mv '{place}' '{place}.aside'")]
    assert cli("doctor", "--fix").returncode == 0
    assert place.is_dir() and place.with_name(f"{name}.aside").read_text() == "mine"


def test_a_gate_that_cannot_be_opened_is_found_and_opened(cli: Cli, ledger: FileLedger) -> None:
    ledger.register(Request("r"))
    ledger.state.lock.chmod(0)
    told = [line for line in without_rights(cli, "doctor").stdout.splitlines() if "BAD" in line or "fix:" in line]
    assert len(told) == 2 and "nobody can come in" in told[0] and f"fix: chmod 600 {ledger.state.lock}" in told[1]
    assert without_rights(cli, "doctor", "--fix").returncode == 0
    assert without_rights(cli, "exec", "--", "true").returncode == 0


@pytest.mark.parametrize("name", ["events", "runs", "quarantine"])
def test_nothing_is_found_without_what_puts_it_right(cli: Cli, ledger: FileLedger, name: str) -> None:
    (ledger.state.root / name).chmod(0)
    told = json.loads(without_rights(cli, "doctor", "--json").stdout)["findings"]
    (ledger.state.root / name).chmod(0o700)
    wrong = [one for one in told if not one["ok"]]
    assert len(wrong) > 1 and all(one["fix"] for one in wrong), wrong


@pytest.mark.parametrize("damage", ["", "{}"])
def test_a_plan_that_cannot_be_read_is_found_and_put_aside(cli: Cli, ledger: FileLedger, damage: str) -> None:
    state = ledger.state
    (state.runs / "abc234").mkdir()
    (state.runs / "abc234" / "plan.json").write_text(damage)
    found = findings(cli)["plans"]
    assert not found["ok"] and "abc234" in found["said"] and "doctor --fix" in found["fix"]
    cli("doctor", "--fix")
    assert findings(cli)["plans"]["ok"] and len(os.listdir(state.quarantine_folder)) == 1
    (event,) = journal.read(state.events, kind="record.quarantined")
    assert event.run_id == "abc234" and event.facts["moved_to"].startswith(str(state.quarantine_folder))


def test_who_carried_an_attempt_and_cannot_be_read_is_found_and_put_aside(cli: Cli, ledger: FileLedger) -> None:
    run = ledger.state.runs / "abc234"
    (run / "a.1").mkdir(parents=True)
    Plan("abc234", (Task("a", command=("true",)),), {"a": ()}, 1, mode="none").save(ledger.state)
    (run / "a.1" / "runner.json").touch()
    found = findings(cli)["attempts"]
    assert not found["ok"] and "runs/abc234/a.1/runner.json" in found["said"] and "--resume abc234" in found["fix"]
    with alone(ledger.state, "abc234"):  # who follows the run does it by itself
        cli("doctor", "--fix")
        assert not findings(cli)["attempts"]["ok"]
    assert "mended: attempts" in cli("doctor", "--fix").stderr
    assert findings(cli)["attempts"]["ok"] and not (run / "a.1" / "runner.json").exists()
    assert "runner.json" in {name.rpartition(".")[0] for name in os.listdir(ledger.state.quarantine_folder)}


def test_what_status_says_is_to_be_cleaned_gc_would_remove(cli: Cli, ledger: FileLedger) -> None:
    state = ledger.state
    for name in ("run-old", "run-used"):
        (state.runs / name).mkdir()
        (state.runs / name / "plan.json").write_text("{}")
        age(state.runs / name)
    (state.runs / "run-used" / "plan.json").write_text("{ }")
    for place in (state.quarantine_folder / "bad", state.events / "2001-01-01.jsonl"):
        place.write_text("")
        age(place)
    (state.quarantine_folder / "fresh").write_text("")
    assert sorted(things(cli)) == ["2001-01-01.jsonl", "bad", "run-old"]
    assert cli.json("status")["to_clean"] == {"old quarantined file": 1, "old events file": 1, "old run": 1}
    cli("gc", "--yes")
    assert "Nothing to clean among leases, runs and events." in cli("status").stdout


def test_few_descriptors_are_found(cli: Cli, ledger: FileLedger) -> None:
    argv = ["sh", "-c", 'ulimit -n 256; exec "$@"', "sh", sys.executable, "-m", "necrocode", "doctor"]
    done = subprocess.run(argv, env=cli.environment(), cwd=cli.where, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "256 open files" in done.stdout and "fix: ulimit -n" in done.stdout


def test_a_lock_that_excludes_nobody_would_be_found(tmp_path: Path) -> None:
    """The question that doctor asks of another process: refused while we hold the lock, given afterwards."""
    from necrocode.checkup import _another_tries
    from necrocode.statedir import StateDir

    state = StateDir(tmp_path / "state")
    path = state.tmp / "x"
    path.touch()
    assert _another_tries(state, path) == 0
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert _another_tries(state, path) == 3


def test_dead_means_dead(cli: Cli, ledger: FileLedger) -> None:
    """A stopped process is alive: its lease is neither shown as one of the dead nor removed."""
    process = cli.start("exec", "--name", "stopped", "--", "sleep", "60")
    until(lambda: ledger.snapshot().runners)
    os.kill(process.pid, 19)
    assert things(cli, "--yes") == {} and is_alive(process.pid)
    assert [seen.record.runner_id for seen in ledger.snapshot().runners] == ["stopped"]
    os.kill(process.pid, 18)
    process.terminate()
    process.wait(30)
