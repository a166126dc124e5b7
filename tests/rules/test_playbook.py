"""What a playbook's text means: `${name}` and conditions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from necrocode.errors import NecrocodeError, PlaybookExecutionError
from necrocode.playbook import Conditions, substituted

FACTS: dict[str, Any] = {
    "name": "necrocode", "empty": "", "count": 3, "text_count": "3", "ratio": 0.5, "yes": True, "no": "false",
    "null": None, "with.dot": "dotted", "dollar": "${name}",
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("plain", "plain"),
        ("${name}", "necrocode"),
        ("<${name}:${count}>", "<necrocode:3>"),
        ("${empty}", ""),
        ("${with.dot}", "dotted"),
        ("${yes} ${null}", "True None"),
        ("${dollar}", "${name}"),
        ("$name $$ $(id) `id` {name} ${} ${1} ${a b}", "$name $$ $(id) `id` {name} ${} ${1} ${a b}"),
    ],
)
def test_names_are_replaced_once_and_nothing_else_is(text: str, told: str) -> None:
    assert substituted(text, FACTS) == told


def test_a_name_that_is_not_there_is_an_error_that_names_it() -> None:
    with pytest.raises(PlaybookExecutionError, match=r"\$\{missing\}"):
        substituted("x ${missing}", FACTS)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("true", True), ("False", False), ("none", False), ("1", True), ("0", False), ("'text'", True), ("''", False),
        ("name", True), ("empty", False), ("missing", False), ("${missing}", False), ("no", False), ("yes", True),
        ("name == 'necrocode'", True), ('${name} == "necrocode"', True), ("name != necrocode", True),
        ("count == 3", True), ("text_count == 3", True), ("text_count == count", True), ("count == 3.0", True),
        ("count < 10", True), ("text_count < 10", True), ("count >= 3", True), ("count > 3", False),
        ("ratio <= 0.5", True), ("-1 < 0", True), ("'b' > 'a'", True), ("name < 'z'", True),
        ("missing == none", True), ("null == none", True), ("no == false", True), ("yes == true", True),
        ("'3' == 3", False), ("'true' == true", False), ("  count  ==  3  ", True), ("count==3", True),
        ("'a == b' == 'a == b'", True), ("'it\"s' == 'it\"s'", True),
    ],
)  # fmt: skip
def test_conditions(text: str, holds: bool) -> None:
    assert Conditions(FACTS).hold(text) is holds


@pytest.mark.parametrize(
    "text",
    ["", "a b", "a ==", "== a", "a == b == c", "a = b", "a and b", "(a)", "not a b", "'open", "a => b", "a === b"],
)
def test_what_is_no_condition(text: str) -> None:
    if text in ("(a)",):
        assert Conditions(FACTS).hold(text) is False  # a name that is not set, whatever its letters
        return
    with pytest.raises(PlaybookExecutionError, match="no condition"):
        Conditions(FACTS).hold(text)


@pytest.mark.parametrize("text", ["name < 3", "missing > 1", "count >= 'x'", "null < null"])
def test_what_has_no_order(text: str) -> None:
    with pytest.raises(PlaybookExecutionError, match="cannot be compared"):
        Conditions(FACTS).hold(text)


@given(st.text(max_size=40))
def test_any_text_is_a_condition_or_an_error_of_ours(text: str) -> None:
    try:
        assert Conditions(FACTS).hold(text) in (True, False)
    except NecrocodeError:
        pass


@given(st.text(max_size=40), st.text(max_size=10))
def test_what_is_put_in_is_never_read_again(text: str, value: str) -> None:
    try:
        once = substituted(text + "${name}", {"name": value})
    except NecrocodeError:
        return
    assert once.endswith(value)
