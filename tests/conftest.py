"""What all tests share: a state directory in memory where there is such a place, and other processes to act in it."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from actors import Puppet
from hypothesis import HealthCheck, settings

_MEMORY = "/dev/shm"

# A slow machine is no mistake in the code: examples are judged by what they show, not by how long they took.
settings.register_profile("necrocode", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("necrocode")


def pytest_sessionstart() -> None:
    """A shell without job control starts what it puts into the background with SIGINT ignored, and children inherit
    that; here it is about what an interrupt does."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Thousands of tests are no garbage: a collection, which some tests ask for, need not look at them again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def state_root(tmp_path: Path) -> Iterator[Path]:
    """An empty directory of mode 0700 for a state directory; in memory if possible, since fsync is slow elsewhere."""
    if not os.access(_MEMORY, os.W_OK):
        yield Path(tempfile.mkdtemp(dir=tmp_path))
        return
    root = Path(tempfile.mkdtemp(prefix="necrocode-test-", dir=_MEMORY))
    yield root
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def puppet(state_root: Path) -> Iterator[Callable[..., Puppet]]:
    """Makes puppets: other processes, each with a ledger of its own on `state_root`; they end with the test."""
    puppets: list[Puppet] = []

    def make(**environment: str) -> Puppet:
        puppets.append(Puppet(state_root, environment))
        return puppets[-1]

    yield make
    for one in puppets:
        one.kill()
