"""The pages of the five faces: their Python runs as it stands, and those who come from a document find every name."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

GIVEN = {
    "worker-pool": "def process(number):\n    return number\n",
    "benchmark": "class MyAgent:\n    def __init__(self, model):\n        pass\n"
    "    def run(self, query, between_steps):\n        between_steps()\n        return 4\n",
}
"""What the reader of a page brings along."""
PAGES = [
    *("worker-pool", "parallel-groups", "task-calls", "benchmark", "coming-from-agent-runner"),
    *("coming-from-maseval", "coming-from-rh-agents", "coming-from-task-calls", "coming-from-worker-pool"),
]
COMING_FROM = {
    "maseval": "benchmark",
    "task-calls": "task_calls",
    "agent-runner": "agent_runner",
    "worker-pool": "concurrency",
    "rh-agents": "parallel",
}


def page(name):
    return (ROOT / "docs" / f"{name}.md").read_text()


def blocks(name):
    return re.findall(r"^```python\n(.*?)^```", page(name), re.DOTALL | re.MULTILINE)


@pytest.fixture
def repository(tmp_path):
    identity = ["-c", "user.name=reader", "-c", "user.email=reader@localhost"]
    for argv in (["init", "-qb", "main"], [*identity, "commit", "-q", "--allow-empty", "-m", "start"]):
        subprocess.run(["git", *argv], cwd=tmp_path, check=True)
    return tmp_path


@pytest.mark.parametrize("name", PAGES)
def test_the_python_of_a_page_runs(name, repository):
    found = blocks(name)
    assert found
    # A script under a main guard, as the pages tell those who use process workers.
    (repository / "page.py").write_text("\n".join([GIVEN.get(name, ""), *found]))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "NECROCODE_STATE_DIR": str(repository / "state")}
    env |= {"HOME": str(repository / "home"), "GIT_AUTHOR_NAME": "reader", "GIT_AUTHOR_EMAIL": "reader@localhost"}
    env |= {"GIT_COMMITTER_NAME": "reader", "GIT_COMMITTER_EMAIL": "reader@localhost"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "page.py"], cwd=repository, env=env, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Success: False" not in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("origin", COMING_FROM)
def test_those_who_come_from_a_document_find_every_name(origin):
    """Every public name of the face is on the page, in code."""
    rows = [line for line in page(f"coming-from-{origin}").splitlines() if line.startswith("| ")]
    told = {word for row in rows for code in re.findall(r"`([^`]+)`", row) for word in re.findall(r"\w+", code)}
    face = importlib.import_module(f"necrocode.{COMING_FROM[origin]}")
    missing = set(face.__all__) - told
    assert not missing, missing


def test_s3_26_what_task_functions_must_be_is_told():
    """Idempotent, since an attempt may be repeated, and thread-safe: on the page, and where a program looks."""
    from necrocode.concurrency import WorkerPool

    for text in (page("worker-pool"), WorkerPool.__doc__):
        assert "idempotent" in text and "thread-safe" in text


@pytest.mark.parametrize("origin", COMING_FROM)
def test_the_documents_tests_and_examples_have_their_names_here(origin):
    """S3-28, S4-32: what there was to run is to be found on the page, and is there."""
    rows = [line.split(" | ") for line in page(f"coming-from-{origin}").splitlines() if line.startswith("| ")]
    here = " ".join(row[0] if row[1] == "the same" else row[1] for row in rows)
    named = re.findall(r"`(?:python -m pytest )?((?:tests|examples)/[\w/.]+)", here)
    assert {target.partition("/")[0] for target in named} == {"tests", "examples"}
    assert all((ROOT / target).exists() for target in named), named


def test_s4_32_the_three_examples_of_the_document():
    """Each is run by the test of all examples."""
    for name in ("basic", "streaming", "error_handling"):
        assert (ROOT / "examples" / f"parallel_{name}.py").exists()
        assert f"parallel_{name}.py" in page("parallel-groups")


def test_s1_05_the_range_of_pythons_is_declared():
    """The same in the package, in its description and in the README."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lowest = re.fullmatch(r">=(3\.\d+)", project["requires-python"])
    versions = [it.rpartition(" ")[2] for it in project["classifiers"] if re.search(r"Python :: 3\.\d", it)]
    assert lowest and versions[0] == lowest[1]
    assert f"Python {lowest[1]} or newer" in (ROOT / "README.md").read_text()


def test_s1_54_no_test_knows_the_place_of_this_checkout():
    """So that they run anywhere: what a test needs it finds from where it lies."""
    tests = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]
    assert not [path for path in tests if str(ROOT) in path.read_text()]
