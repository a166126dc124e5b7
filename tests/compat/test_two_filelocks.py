"""The oldest filelock that is allowed and the newest there is, against one state directory: nothing is lost."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STORM = Path(__file__).with_name("filelock_storm.py")
EACH, TIMES = 3, 150


def oldest() -> str:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return next(match[1] for one in wanted if (match := re.fullmatch(r"filelock>=([\d.]+)", one)))


def installed(version: str, place: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    try:
        done = subprocess.run([*pip, "--target", str(place), f"filelock{version}"], capture_output=True, timeout=25)
    except subprocess.TimeoutExpired:
        pytest.skip("pip does not answer")
    if done.returncode:
        pytest.skip(f"pip cannot install filelock{version}: {done.stderr.decode().strip()[-200:]}")
    return place


def test_two_versions_of_filelock_lose_nothing(tmp_path: Path) -> None:
    places = [installed(f"=={oldest()}", tmp_path / "oldest"), installed("", tmp_path / "newest")]
    counter, state = tmp_path / "counter", tmp_path / "state"
    counter.write_text("0")
    state.mkdir(mode=0o700)
    racers = [
        subprocess.Popen(
            [sys.executable, STORM, counter, state, str(TIMES)],
            env={**os.environ, "PYTHONPATH": f"{place}{os.pathsep}{ROOT}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for place in places * EACH
    ]
    try:
        versions = {racer.stdout.readline().strip() for racer in racers if racer.stdout}
        assert oldest() in versions
        for racer in racers:
            assert racer.stdin
            racer.stdin.write("go\n")
            racer.stdin.flush()
        for racer in racers:
            racer.communicate(timeout=100)
            assert racer.returncode == 0
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()
    assert int(counter.read_text()) == len(racers) * TIMES
