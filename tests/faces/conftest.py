"""What the tests of S2 share: a repository, a state directory, and who works with both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from byhand import copied
from s2_repository import made_repository, settings
from s2_runners import let_go

from necrocode.agent_runner import ParallelCoordinator, RunnerConfig
from necrocode.testing import check


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_repository(tmp_path_factory.mktemp("template") / "repo")


@pytest.fixture
def repo(template: Path, tmp_path: Path) -> Path:
    return copied(template, tmp_path / "repo")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., RunnerConfig]:
    return partial(settings, tmp_path)


@pytest.fixture
def coordinator(state: Path) -> Iterator[ParallelCoordinator]:
    """Of at most three runners; whatever the test left registered ends with it."""
    made = ParallelCoordinator(state, max_parallel_runners=3)
    yield made
    let_go(made)
    assert check(state)
