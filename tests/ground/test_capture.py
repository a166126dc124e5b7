"""Output: within its bounds on disk and in memory, whatever it is, and safe to show."""

from __future__ import annotations

import os
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from necrocode.process import Ended, Limits, run, sanitised
from necrocode.process.capture import Lines, Log

PIECES = st.lists(st.binary(max_size=60), max_size=30)


def logged(path: Path, budget: int, pieces: list[bytes]) -> Log:
    log = Log(path, budget)
    for piece in pieces:
        log.feed(piece)
    log.close()
    return log


@given(pieces=PIECES, budget=st.integers(2, 200))
@settings(max_examples=300, deadline=None)
def test_a_log_keeps_its_beginning_and_its_end(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], budget: int
) -> None:
    path = tmp_path_factory.getbasetemp() / f"log-{time.monotonic_ns()}"
    said = b"".join(pieces)
    log = logged(path, budget, pieces)
    kept = path.read_bytes()
    path.unlink()
    assert log.seen == len(said) and log.truncated == (len(said) > budget) and log.error == ""
    if len(said) <= budget:
        assert kept == said
    else:
        head, tail = budget // 2, budget - budget // 2
        note = f"\n[necrocode: {len(said) - budget} bytes left out]\n".encode()
        assert kept == said[:head] + note + said[-tail:]


def test_a_log_is_readable_while_it_grows_and_appends_to_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"before\n")
    path.chmod(0o600)
    log = Log(path, 100)
    log.feed(b"now\n")
    assert path.read_bytes() == b"before\nnow\n"
    log.feed(b"x" * 200)
    log.close()
    assert path.read_bytes() == b"before\nnow\n" + b"x" * 46 + b"\n[necrocode: 104 bytes left out]\n" + b"x" * 50


def test_a_new_log_is_for_its_owner_only_and_follows_no_link(tmp_path: Path) -> None:
    logged(tmp_path / "log", 10, [b"x"])
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "link").symlink_to(victim)
    assert str(tmp_path / "link") in logged(tmp_path / "link", 10, [b"x"]).error
    assert victim.read_text() == "precious"
    assert logged(tmp_path / "missing" / "log", 10, [b"x"]).error


def test_a_full_disk_is_noted_and_no_more() -> None:
    log = logged(Path("/dev/full"), 100, [b"x" * 60, b"y" * 60, b"z"])
    assert "No space left" in log.error
    assert log.seen == 121


@given(pieces=PIECES, longest=st.integers(1, 40))
@settings(max_examples=300, deadline=None)
def test_lines_however_they_come(pieces: list[bytes], longest: int) -> None:
    told: list[bytes] = []
    lines = Lines(told.append, longest)
    for piece in pieces:
        lines.feed(piece)
    lines.close()
    whole = b"".join(pieces).split(b"\n")
    expected = whole if whole[-1] else whole[:-1]
    assert told == [line[:longest] for line in expected]


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"plain\ttext\n", "plain\ttext\n"),
        ("häß 日本".encode(), "häß 日本"),
        (b"\xff\xfe\x80x", "\ufffd\ufffd\ufffdx"),
        (b"\x1b[31;1mred\x1b[0m", "red"),
        (b"\x1b[?25l\x1b[2J\x1b[10;20Hat", "at"),
        (b"\x1b]0;title\x07after", "after"),
        (b"\x1b]8;;http://example.org\x1b\\link\x1b]8;;\x1b\\", "link"),
        (b"\x1b]52;c;ZXZpbA==\x07x", "x"),
        (b"\x1bP1$r0m\x1b\\x\x1b_apc\x1b\\y\x1b^pm\x1b\\z", "xyz"),
        (b"\x1b]0;never ends\nnext line", "0;never ends\nnext line"),
        (b"\x1b(0lqk\x1b(B\x1bc\x1b7", "lqk"),
        ("\x9b31mred\x9d0;t\x9cx".encode(), "redx"),
        (b"10%\r20%\r\n30%\r", "10%\n20%\n30%\n"),
        (b"a\x00b\x07c\x08d\x0be\x7ff\x1b", "abcdef"),
        ("safe\u202eevil\u2066x\u200f".encode(), "safeevilx"),
        (b"\x1b\x1b[31mx\x1b[", "x"),
        (b"", ""),
    ],
)
def test_sanitised(raw: bytes, shown: str) -> None:
    assert sanitised(raw) == shown


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_nothing_that_acts_on_a_terminal_gets_through(raw: bytes) -> None:
    assert not [char for char in sanitised(raw) if (char < " " and char not in "\n\t") or "\x7f" <= char <= "\x9f"]


def test_cleaning_takes_time_in_proportion() -> None:
    began = time.monotonic()
    for evil in (b"\x1b]" * 500_000, b"\x1b[" + b"0" * 1_000_000, b"\x1b[0" * 300_000, b"\x1b" * 1_000_000):
        sanitised(evil)
    assert time.monotonic() - began < 20


# with real programs


def kept(tmp_path: Path, *argv: str, out: str = "out", log_bytes: int = 1000, **options: Any) -> Ended:
    return run(
        argv, cwd=tmp_path, env=dict(os.environ), stdout=tmp_path / out, stderr=tmp_path / "err",
        limits=Limits(log_bytes=log_bytes), marker=f"capture-{os.getpid()}-{time.monotonic_ns()}", **options,
    )  # fmt: skip


def test_a_hundred_megabytes_without_a_newline(tmp_path: Path) -> None:
    told: list[bytes] = []
    tracemalloc.start()
    ended = kept(
        tmp_path, "head", "-c", "100000000", "/dev/zero", log_bytes=1 << 20,
        on_line=lambda _, line: told.append(line),
    )  # fmt: skip
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (ended.exit_code, ended.stdout_bytes, ended.truncated) == (0, 100_000_000, True)
    assert told == [bytes(1 << 16)]
    assert (tmp_path / "out").stat().st_size < (1 << 20) + 100
    assert most < 8 << 20


def test_binary_output_is_kept_as_it_is(tmp_path: Path) -> None:
    raw = bytes(range(256)) * 3
    (tmp_path / "raw").write_bytes(raw)
    kept(tmp_path, "cat", "raw")
    assert (tmp_path / "out").read_bytes() == raw


def test_both_streams_in_one_file(tmp_path: Path) -> None:
    told: list[tuple[str, bytes]] = []
    ended = kept(tmp_path, "sh", "-c", "echo a; echo b >&2; echo c", out="err", on_line=lambda *it: told.append(it))
    assert (tmp_path / "err").read_bytes() == b"a\nb\nc\n"
    assert told == [("stdout", b"a"), ("stdout", b"b"), ("stdout", b"c")]
    assert (ended.stdout_bytes, ended.stderr_bytes) == (6, 0)


def test_a_full_disk_does_not_disturb_the_program(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("/dev/full")
    ended = kept(tmp_path, "sh", "-c", "head -c 300000 /dev/zero; exit 3")
    assert (ended.exit_code, ended.stdout_bytes) == (3, 300_000)
    assert "symbolic link" in ended.log_error
    ended = run(
        ["sh", "-c", "head -c 300000 /dev/zero; exit 3"], cwd=tmp_path, env=dict(os.environ),
        stdout=Path("/dev/full"), stderr=tmp_path / "err", limits=Limits(), marker="full-disk",
    )  # fmt: skip
    assert (ended.exit_code, ended.stdout_bytes) == (3, 300_000)
    assert "No space left" in ended.log_error


def test_a_slow_reader_makes_the_program_wait(tmp_path: Path) -> None:
    """What is not read yet stays with the program: memory does not grow, and nothing is lost."""
    gate = threading.Event()
    threading.Timer(0.3, gate.set).start()
    count = 0

    def slow(_: str, line: bytes) -> None:
        nonlocal count
        gate.wait(20)
        count += 1

    ended = kept(tmp_path, "seq", "200000", on_line=slow)
    assert (ended.exit_code, count) == (0, 200_000)
    assert ended.seconds >= 0.25


def test_the_last_line_needs_no_newline(tmp_path: Path) -> None:
    told: list[bytes] = []
    kept(tmp_path, "printf", "one\\ntwo", on_line=lambda _, line: told.append(line))
    assert told == [b"one", b"two"]
