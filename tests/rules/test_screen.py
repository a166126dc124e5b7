"""Words and tables for people: nothing wider than the screen, nothing that matters hidden, nothing that could move a
cursor."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from necrocode.screen import Column, Row, clean, counted, duration, fit, measured, table


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0 s"), (0, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.9, "59 s"), (60, "1:00"), (187, "3:07"),
        (8101, "2:15:01"), (172800, "2 d 0 h"), (172800 + 4 * 3600, "2 d 4 h"),
    ],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "width", "tail", "shown"),
    [
        ("parser", 6, False, "parser"), ("parser", 5, False, "pars…"), ("parser", 5, True, "…rser"),
        ("parser", 1, False, "…"), ("parser", 0, False, ""), ("日本語", 6, False, "日本語"),
        ("日本語", 5, False, "日本…"), ("日本語", 4, True, "…語"),
    ],
)  # fmt: skip
def test_what_is_too_wide_is_cut_with_an_ellipsis(text: str, width: int, tail: bool, shown: str) -> None:
    assert fit(text, width, tail=tail) == shown


def test_counts() -> None:
    assert [counted(n, "run") for n in (0, 1, 2)] == ["no runs", "1 run", "2 runs"]


def test_nothing_in_a_name_reaches_the_terminal_as_a_command() -> None:
    assert clean("a\x1b[2J\rb\n\u202ec\udcff\x9b") == "a?[2J?b??c??"


HEAD = (Column("NAME", 9, 8, tail=True), Column("PID", 2, right=True), Column("NOTE", 5, 6))


def test_a_table_shrinks_then_drops_the_least_important_columns() -> None:
    rows = [Row(("a-very-long-name-1", "12345", "some long remark")), Row(("b", "1", "short"))]
    wide = table(HEAD, rows, 80)
    assert wide[1].split() == ["a-very-long-name-1", "12345", "some", "long", "remark"]
    assert [line.split()[:2] for line in table(HEAD, rows, 33)][:2] == [
        ["NAME", "PID"],
        ["a-very-long-name-1", "12345"],
    ]
    narrow = table(HEAD, rows, 20)
    assert "PID" not in narrow[0] and "NOTE" in narrow[0] and narrow[1].startswith("…")
    assert table(HEAD, rows, 9)[0] == "NAME"


def test_an_empty_column_is_left_out_and_colour_adds_no_width() -> None:
    lines = table(HEAD, [Row(("a", "", "x"), "red")], 80, colored=True)
    assert "PID" not in lines[0] and lines[1] == "\x1b[31ma     x\x1b[0m"


words = st.text(st.characters(codec="utf-8"), max_size=30)


@given(st.lists(st.tuples(words, words, words), min_size=1, max_size=8), st.integers(1, 100))
def test_no_line_is_wider_than_the_screen(cells: list[tuple[str, str, str]], width: int) -> None:
    for line in table(HEAD, [Row(row) for row in cells], width):
        assert measured(line) <= width
        assert "\n" not in line and "\x1b" not in line
