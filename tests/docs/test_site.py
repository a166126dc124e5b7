"""The docs as a site, and the page of the state directory beside a real one."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from necrocode.lease import Request
from necrocode.ledger.files import FileLedger

ROOT = Path(__file__).resolve().parents[2]
CONFIG = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]


def pages(nav: list[Any]) -> Iterator[str]:
    for entry in nav:
        for place in [entry] if isinstance(entry, str) else entry.values():
            yield from pages(place) if isinstance(place, list) else [place]


def test_every_page_is_to_be_found() -> None:
    assert set(pages(CONFIG["nav"])) == {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}


def test_every_name_of_the_api_page_is_there() -> None:
    for line in (ROOT / "docs" / "api.md").read_text().splitlines():
        if line.startswith("::: "):
            module, _, name = line.removeprefix("::: ").rpartition(".")
            found = importlib.import_module(module)
            assert hasattr(found, name) or importlib.util.find_spec(f"{module}.{name}"), line


@pytest.mark.slow
def test_the_site_builds(tmp_path: Path) -> None:
    if not importlib.util.find_spec("zensical"):
        pytest.skip("the extra docs is not installed")
    for name in ("docs", "necrocode"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    argv = [sys.executable, "-m", "zensical", "build", "--clean"]
    built = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=110, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    site = tmp_path / "site"
    for page in (ROOT / "docs").rglob("*.md"):
        place = page.relative_to(ROOT / "docs").with_suffix("")
        folder = place.parent if place.name in ("index", "README") else place
        assert (site / folder / "index.html").exists(), page
    assert "try_register" in (site / "api" / "index.html").read_text()


def test_the_page_of_the_state_directory_names_everything_in_one(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "state-directory.md").read_text()
    (tmp_path / "tasks.toml").write_text(
        '[[task]]\nid = "a"\ncommand = ["true"]\nverify = [["true"]]\nworkspace = "none"\n'
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NECROCODE_STATE_DIR": str(tmp_path / "state")}
    argv = [sys.executable, "-m", "necrocode", "run", "-q", "tasks.toml"]
    ran = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    ledger = FileLedger(tmp_path / "state")
    ledger.configure(limit=3)
    lease = ledger.register(Request("one"))
    for path in (tmp_path / "state").iterdir():
        assert f"`{path.name}" in text, path
    (attempt,) = (tmp_path / "state" / "runs").glob("*/a.1")
    for path in [*attempt.iterdir(), *(path for path in attempt.parent.iterdir() if path.is_file())]:
        assert path.name in text, path
    ledger.release(lease)
