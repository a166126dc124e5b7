"""The front door: help, names that are nearly right, errors with their exit codes, and what starting costs."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_call import ROOT, Cli, calls, until

from necrocode import errors
from necrocode.cli import VERBS, exit_code
from necrocode.lease import Request
from necrocode.ledger.files import FileLedger


@pytest.fixture
def cli(state_root: Path, tmp_path: Path) -> Iterator[Cli]:
    with calls(state_root, tmp_path) as made:
        yield made


def test_help_names_every_verb_and_every_verb_has_help(cli: Cli) -> None:
    shown = cli("-h")
    assert shown.returncode == 0
    for verb in VERBS:
        assert f"  {verb} " in shown.stdout
    one = cli("exec", "-h")
    assert (one.returncode, one.stderr) == (0, "") and "--no-wait" in one.stdout and "--json" in one.stdout


def test_the_version(cli: Cli) -> None:
    assert cli("--version").stdout.startswith("necrocode 0.")


@pytest.mark.parametrize("verb", ["why", "logs", "wait", "retry", "stop", "release", "report"])
@pytest.mark.parametrize("args", [[], ["--json"]])
def test_asking_for_a_name_makes_no_state_directory(verb: str, args: list[str], tmp_path: Path, cli: Cli) -> None:
    place = tmp_path / "none"
    asked = cli(verb, "nobody", *args, NECROCODE_STATE_DIR=str(place))
    assert not place.exists()
    if verb not in ("stop", "release"):  # of which nothing is there, as was wanted
        assert asked.returncode == 2 and str(place) in asked.stdout + asked.stderr, asked


def test_in_a_directory_that_is_gone(tmp_path: Path, state_root: Path) -> None:
    (tmp_path / "gone").mkdir()
    argv = [sys.executable, "-P", "-m", "necrocode", "exec", "--", "true"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "NECROCODE_STATE_DIR": str(state_root)}
    done = subprocess.run(
        ["sh", "-c", 'rmdir "$PWD"; exec "$@"', "sh", *argv], cwd=tmp_path / "gone", env=env, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 125
    assert done.stderr.splitlines() == [
        "necrocode: the current directory is gone", "hint: cd to a directory that exists",
    ]  # fmt: skip


def test_interrupted_before_anything_was_read(state_root: Path) -> None:
    """Ctrl-C while modules are imported is no traceback."""
    code = (
        "import sys, signal, necrocode.__main__ as door\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'necrocode.cli': signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "sys.exit(door.main())"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "NECROCODE_STATE_DIR": str(state_root)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["sttus"], 2, "did you mean `necrocode status`?"),
        (["status", "--wach"], 2, "--watch"),
        (["exec", "--claim", "nonsense", "--", "true"], 2, "KIND:NAME"),
        (["exec"], 2, "COMMAND"),
        (["exec", "--limit", "0", "--", "true"], 2, "--limit"),
        (["why", "nobody"], 2, "there is no task, runner or run 'nobody'"),
        (["config", "set", "limit", "0"], 2, "no number from 1"),
        (["config", "set", "speed", "3"], 2, "cannot be set"),
        (["stop"], 2, "--all"),
        (["gc", "--older", "yesterday"], 2, "30d"),
        (["--state-dir", "/proc/1/nope", "exec", "--", "true"], 125, "/proc/1/nope"),
        (["--state-dir", "/usr/bin", "exec", "--", "true"], 125, "is no state directory"),
    ],
)
def test_what_cannot_be_done_is_told_with_a_hint_and_its_exit_code(
    cli: Cli, args: list[str], code: int, said: str
) -> None:
    done = cli(*args)
    assert (done.returncode, done.stdout) == (code, ""), done
    assert done.stderr.startswith("necrocode: ") and said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("x"), 2), (errors.ResourceLimitError("r", 1, 1), 75),
        (errors.ResourceConflictError("r"), 75), (errors.ResourceConflictError("r", waited=1.0), 124),
        (errors.TaskTimeoutError(1, 1), 124), (errors.TaskFailed("x"), 1), (errors.LeaseLost("r", ours=1), 125),
        (errors.LandingConflict("a", "b", ["c"]), 3), (errors.StateUnusable("p", "x"), 125),
        (errors.GateTimeout("p", 1, ""), 125),
        (OSError(28, "No space left"), 125), (ValueError("x"), 125), (KeyboardInterrupt(), 130),
    ],
)  # fmt: skip
def test_exit_codes(error: BaseException, code: int) -> None:
    assert exit_code(error) == code


def test_an_error_as_json_has_the_facts(cli: Cli, state_root: Path) -> None:
    FileLedger(state_root).register(Request("holder", limit=1))
    done = cli("exec", "--no-wait", "--limit", "1", "--name", "late", "--json", "--", "true")
    told = json.loads(done.stdout)["error"]
    assert done.returncode == told["exit_code"] == 75
    assert (told["kind"], told["runner_id"], told["live"], told["limit"]) == ("ResourceLimitError", "late", 1, 1)
    assert told["blockers"][0]["runner_id"] == "holder" and told["hint"] and "late" in told["message"]


def test_a_json_after_the_dashes_belongs_to_the_command(cli: Cli) -> None:
    done = cli("exec", "--claim", "nonsense", "--", "true", "--json")
    assert (done.returncode, done.stdout) == (2, "")


BROKEN = (
    "import sys; sys.modules['necrocode.commands.status'] = None; import necrocode.cli; sys.exit(necrocode.cli.main())"
)


@pytest.mark.parametrize("debug", ["", "1"])
def test_what_should_not_happen_is_one_sentence_or_a_traceback_for_developers(cli: Cli, debug: str) -> None:
    env = cli.environment(NECROCODE_DEBUG=debug)
    done = subprocess.run([sys.executable, "-c", BROKEN, "status"], env=env, capture_output=True, text=True)
    assert done.returncode == 125 and "this should not have happened: " in done.stderr
    assert ("Traceback" in done.stderr) is (debug == "1")


@pytest.mark.parametrize("verb", [["status"], ["config"], ["gc"], ["doctor"], ["stop", "--all"]])
def test_looking_makes_no_state_directory(cli: Cli, tmp_path: Path, verb: list[str]) -> None:
    missing = tmp_path / "not" / "yet"
    done = cli(*verb, "--state-dir", str(missing))
    assert done.returncode == 0, done.stderr
    assert not missing.parent.exists()


def test_status_imports_nothing_heavy(cli: Cli, state_root: Path) -> None:
    FileLedger(state_root).register(Request("holder"))
    unwanted = ["asyncio", "rich", "pydantic", "psutil", "filelock", "subprocess", "necrocode.git", "necrocode.fleet"]
    code = (
        "import sys, necrocode.cli; code = necrocode.cli.main(['status']);"
        f"print([name for name in {unwanted} if name in sys.modules], file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=cli.environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (0, "[]") and "holder" in done.stdout


def test_a_reader_who_leaves_is_no_error(cli: Cli, state_root: Path) -> None:
    FileLedger(state_root).register(Request("holder"))
    process = cli.start("status", "--watch")
    assert process.stdout and process.stderr
    process.stdout.readline()
    process.stdout.close()
    FileLedger(state_root).register(Request("another"))
    assert (process.wait(30), process.stderr.read()) == (141, "")


@pytest.mark.parametrize(
    ("args", "env", "colours"),
    [([], {}, True), ([], {"NO_COLOR": "1"}, False), (["--no-color"], {}, False), ([], {"TERM": "dumb"}, False)],
)
def test_colours_are_for_terminals_that_want_them(
    cli: Cli, state_root: Path, args: list[str], env: dict[str, str], colours: bool
) -> None:
    FileLedger(state_root).register(Request("holder"))
    ours, theirs = pty.openpty()
    argv = [sys.executable, "-m", "necrocode", *args, "status"]
    environment = {"TERM": "xterm", **cli.environment(**env)} | env
    subprocess.run(argv, env=environment, stdout=theirs, check=True, timeout=60, cwd=ROOT)
    os.close(theirs)
    assert ("\x1b[1m" in _all_of(ours)) is colours


def _all_of(terminal: int) -> str:
    text = b""
    try:
        while data := os.read(terminal, 65536):
            text += data
    except OSError:
        pass
    os.close(terminal)
    return text.decode()


def test_a_waiting_exec_that_is_asked_to_end_leaves_nothing(cli: Cli, state_root: Path) -> None:
    ledger = FileLedger(state_root)
    ledger.register(Request("holder", limit=1))
    process = cli.start("exec", "--limit", "1", "--", "true")
    until(lambda: ledger.snapshot().waiting)
    process.terminate()
    assert process.wait(30) == 143
    assert not ledger.snapshot().waiting and os.listdir(state_root / "live") == ["holder"]
