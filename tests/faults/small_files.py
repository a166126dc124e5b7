"""Every other file that necrocode writes beside the ledger's records: what each must look like, whatever happened."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from necrocode import git, journal
from necrocode.agent_runner.artifacts import ArtifactUploader
from necrocode.agent_runner.exceptions import ArtifactUploadError
from necrocode.agent_runner.models import RunnerState, RunnerStateSnapshot
from necrocode.agent_runner.state_file import StateFile
from necrocode.benchmark.store import ReportStore
from necrocode.commands import config, init
from necrocode.door import Door
from necrocode.errors import NecrocodeError, Refused
from necrocode.event import Event
from necrocode.launcher import alone
from necrocode.order import read_result, take, taken_by, write_result
from necrocode.outcome import Outcome, Status
from necrocode.process import identity
from necrocode.runs import Plan, new_run, runs
from necrocode.statedir import FOLDERS, StateDir, put
from necrocode.task import Task
from necrocode.testing import ERRORS, KILL, SHORT, Report, everywhere

RESULT = Outcome("t", Status.DONE, commits=("a" * 40,), files_changed=tuple(f"src/{n}.py" for n in range(40)))
OLD, NEW = b"old\n" * 300, b"new\n" * 500


class File(NamedTuple):
    """What is done, what was there before, and what must hold afterwards."""

    act: Callable[[Path], object]
    after: Callable[[Path, bool], object]
    before: Callable[[Path], object] = lambda place: None
    raises: type[BaseException] | tuple[type[BaseException], ...] = NecrocodeError


def state_of(place: Path) -> StateDir:
    return StateDir(place / "state")


def _replace(place: Path) -> None:
    state_of(place).write(place / "state" / "config.json", NEW, durable=True)


def _old(place: Path) -> None:
    state_of(place).write(place / "state" / "config.json", OLD)


def _old_or_new(place: Path, done: bool) -> None:
    assert (place / "state" / "config.json").read_bytes() in ((NEW,) if done else (OLD, NEW))


def _furnished(place: Path, done: bool) -> None:
    if (place / "state" / "VERSION").exists():
        assert (place / "state" / "VERSION").read_text() == "1\n", "VERSION comes last, and whole"
        assert (place / "state" / "README.md").read_text().endswith("cleans it.\n")
    if done:
        assert {*FOLDERS, "README.md", "VERSION"} <= set(os.listdir(place / "state"))


def _plan(place: Path) -> None:
    tasks = tuple(Task(f"t{n}", command=("true",)) for n in range(9))
    Plan("r", tasks, {task.id: task.wanted("repo") for task in tasks}, 2).save(state_of(place))


def _is_a_plan(place: Path, done: bool) -> None:
    state = state_of(place)
    if done or runs(state):
        assert len(Plan.load(state, "r").tasks) == 9


def _run_folder(place: Path) -> None:
    (state_of(place).runs / "r").mkdir()


def _new_run(place: Path) -> None:
    new_run(state_of(place))


def _no_run_yet(place: Path, done: bool) -> None:
    assert runs(state_of(place)) == []
    assert len(os.listdir(state_of(place).runs)) >= done


def _take(place: Path) -> None:
    take(place)


def _taken_once(place: Path, done: bool) -> None:
    carrier = taken_by(place)
    assert carrier is not None or not done
    assert carrier is None or carrier.boot_id == identity().boot_id
    assert take(place) is (carrier is None)


def _result(place: Path) -> None:
    write_result(place, RESULT)


def _first_result(place: Path, done: bool) -> None:
    found = read_result(place)
    assert found == RESULT or (found is None and not done)
    write_result(place, RESULT._replace(status=Status.FAILED))
    assert found is None or read_result(place) == RESULT, "the first one counts"
    if found is None:
        os.unlink(place / "result.json")


def _tell(place: Path) -> None:
    told = [Event("lease.granted", 1e9 + n, 1.0, f"r{n}", facts={"token": n}) for n in range(30)]
    if not journal.append(place, told):
        raise _NotTold


class _NotTold(NecrocodeError):
    """What `append` says by False."""

    def __init__(self) -> None:
        super().__init__("not told")


def _told_before(place: Path) -> None:
    journal.append(place, [Event("run.started", 1e9, 1.0, run_id="first")])


def _earlier_stays(place: Path, done: bool) -> None:
    found = list(journal.read(place))
    assert found[0].run_id == "first"
    assert all(event.kind == "lease.granted" and f"r{event.facts['token']}" == event.runner_id for event in found[1:])
    assert len(found) >= 31 or not done


def _snapshot(place: Path) -> None:
    StateFile(place / "s" / "state.json", None, "r").save(RunnerStateSnapshot("r", RunnerState.RUNNING, "new"))


def _snapshot_before(place: Path) -> None:
    StateFile(place / "s" / "state.json", None, "r").save(RunnerStateSnapshot("r", RunnerState.IDLE, "old"))


def _is_a_snapshot(place: Path, done: bool) -> None:
    found = StateFile(place / "s" / "state.json", None, "r").load()
    assert found and found.task_id in (("new",) if done else ("old", "new"))


def _upload(place: Path) -> None:
    ArtifactUploader(place).upload_artifacts("spec", "t", {"diff": NEW, "log": NEW}, {"token": 7})


def _stored(place: Path, done: bool) -> None:
    folder = place / "spec" / "t"
    if done or (folder / "metadata.json").exists():
        assert json.loads((folder / "metadata.json").read_bytes())["token"] == 7
        assert (folder / "diff.diff").read_bytes() == (folder / "log.log").read_bytes() == NEW


def _report(place: Path) -> None:
    ReportStore(place).write({"task_id": "t", "repeat_idx": 0, "status": "success", "note": "x" * 999})


def _store(place: Path) -> None:
    ReportStore(place)


def _is_a_report(place: Path, done: bool) -> None:
    found = ReportStore(place).read("t", 0)
    assert (found or {}).get("note") == "x" * 999 or (found is None and not done)
    assert not os.listdir(place / "state" / "quarantine")


def _launch(place: Path) -> None:
    with alone(state_of(place), "r"):
        pass


def _nobody_launches(place: Path, done: bool) -> None:
    with alone(state_of(place), "r"):
        try:
            with alone(state_of(place), "r"):
                raise AssertionError("two launchers of one run")
        except Refused:
            pass


def _mutex(place: Path) -> None:
    repository = git.Repository(place, place, "a repository", False)
    with git.repository_mutex(place, repository, timeout=5):
        pass


def _mutex_is_free(place: Path, done: bool) -> None:
    _mutex(place)


def _first(place: Path) -> None:
    init._write(place / "tasks.toml", "# a first task file\n" * 200)


def _whole_first(place: Path, done: bool) -> None:
    path = place / "tasks.toml"
    assert path.read_text() == "# a first task file\n" * 200 if path.exists() else not done


def _no_jobs(place: Path) -> None:
    (place / "necrocode.toml").write_text("# mine\njobs = 2\n")
    (place / ".git").mkdir()


def _setting(place: Path) -> None:
    os.chdir(place)
    config._set(Door(), "jobs", "3", False)


def _old_or_new_setting(place: Path, done: bool) -> None:
    text = (place / "necrocode.toml").read_text()
    assert text.startswith("# mine\n") and tomllib.loads(text)["jobs"] in ((3,) if done else (2, 3))


def _put(place: Path) -> None:
    (place / "new").unlink(missing_ok=True)
    put(place / "new", NEW, durable=True)


def _whole_or_none(place: Path, done: bool) -> None:
    assert not done or (place / "new").read_bytes() == NEW


FILES = {
    "replace a file of the state": File(_replace, _old_or_new, _old),
    "make a state directory": File(state_of, _furnished),
    "save a plan": File(_plan, _is_a_plan, _run_folder),
    "begin a run": File(_new_run, _no_run_yet, state_of),
    "take an attempt": File(_take, _taken_once),
    "write a result": File(_result, _first_result),
    "tell events": File(_tell, _earlier_stays, _told_before),
    "save a runner's state": File(_snapshot, _is_a_snapshot, _snapshot_before, OSError),
    "store artifacts": File(_upload, _stored, raises=ArtifactUploadError),
    "keep a report": File(_report, _is_a_report, _store),
    "be a run's launcher": File(_launch, _nobody_launches, _run_folder),
    "hold a repository's mutex": File(_mutex, _mutex_is_free),
    "write a first task file": File(_first, _whole_first, raises=OSError),
    "change a setting": File(_setting, _old_or_new_setting, _no_jobs, OSError),
    "put a new file": File(_put, _whole_or_none, raises=OSError),
}


def kill(name: str, base: str) -> Report:
    return _everywhere(name, base, (KILL,))


def trouble(name: str, base: str, every: int = 1) -> Report:
    """Short writes, and each error, or every second one and so on, the others at the next file."""
    return _everywhere(name, base, (SHORT, *ERRORS[list(FILES).index(name) % every :: every]))


def _everywhere(name: str, base: str, faults: tuple[object, ...]) -> Report:
    file = FILES[name]
    return everywhere(
        file.act, before=file.before, after=file.after, raises=file.raises, faults=faults, folder=Path(base)
    )
