"""Running a project's tests: the commands that a task names, or what the project's files say."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from necrocode.agent_runner.argv import shown, split
from necrocode.agent_runner.models import SingleTestResult, TaskContext, TestResult
from necrocode.errors import ConfigError
from necrocode.outcome import Status
from necrocode.work import Place, Work, run_command

logger = logging.getLogger(__name__)

_TAIL = 4000
"""Bytes of a command's output that its result carries; all of it is in the attempt's folder."""

_BY_FILE = (
    ("go.mod", ("go", "test", "./...")),
    ("Cargo.toml", ("cargo", "test")),
    ("pom.xml", ("mvn", "-q", "test")),
    ("build.gradle", ("gradle", "test")),
    ("build.gradle.kts", ("gradle", "test")),
)


class TestRunner:
    """Runs tests under the terms of an attempt: its deadline, its stop, its process tree."""

    __test__ = False

    def run_tests(self, task_context: TaskContext, place: Place) -> tuple[TestResult, Work]:
        """Each command in turn, up to the first that fails unless `fail_fast` is off; and the verdict for the engine.

        Raises ConfigError for a command that cannot be run without a shell."""
        started, results, verdict = time.monotonic(), [], Work()
        for number, command in enumerate(self.commands(task_context, place.workspace.path), 1):
            result, work = self._one(number, command, place)
            results.append(result)
            if not work.ok and verdict.ok:
                verdict = work._replace(error=f"the tests did not accept the work: {work.error}")
            if not work.ok and (task_context.fail_fast or work.status is not Status.FAILED):
                break
        return TestResult(verdict.ok, results, time.monotonic() - started), verdict

    def commands(self, task_context: TaskContext, workspace: Path) -> list[str | list[str]]:
        """What the task says, also when that is nothing; else what was found."""
        if task_context.test_commands is not None:
            return task_context.test_commands
        return [list(argv) for argv in detected(workspace)]

    def _one(self, number: int, command: str | list[str], place: Place) -> tuple[SingleTestResult, Work]:
        try:
            argv = split(command)
        except ValueError as error:
            raise ConfigError(str(error), where="test_commands") from error
        log, started = f"test-{number}.", time.monotonic()
        work = run_command(place, argv, log=log)
        seconds = time.monotonic() - started
        output = _tail(place.folder / f"{log}stdout.log") + _tail(place.folder / f"{log}stderr.log")
        verdict = work._replace(kind="test" if work.kind == "work" else work.kind)
        return SingleTestResult(shown(command), work.ok, work.exit_code, seconds, output, work.error or None), verdict


def detected(workspace: Path) -> Iterator[Sequence[str]]:
    """The test command of each kind of project that is there, when its program is too."""
    for argv in _candidates(workspace):
        if shutil.which(argv[0]) or (workspace / argv[0]).exists():
            yield argv
        else:
            logger.warning("tests found, but %s is not installed: %s was not run", argv[0], " ".join(argv))


def _candidates(workspace: Path) -> Iterator[Sequence[str]]:
    if _has_npm_test(workspace / "package.json"):
        yield ("npm", "test")
    if any(workspace.glob("test_*.py")) or any(workspace.glob("tests/**/test_*.py")):
        yield ("pytest", "-q")
    if any(workspace.glob("spec/**/*_spec.rb")):
        yield ("bundle", "exec", "rspec")
    for name, argv in _BY_FILE:
        if (workspace / name).exists():
            wrapper = workspace / "gradlew"
            yield ("./gradlew", "test") if argv[0] == "gradle" and wrapper.exists() else argv


def _has_npm_test(path: Path) -> bool:
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return False
    scripts = data.get("scripts") if isinstance(data, dict) else None
    test = scripts.get("test") if isinstance(scripts, dict) else None
    return isinstance(test, str) and "no test specified" not in test


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            return file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
