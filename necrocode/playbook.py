"""What a playbook's text means: `${name}` in commands, and the conditions of its steps.

A condition is one operand (true or false by itself) or two around one of == != < > <= >=. An operand is a quoted
text, a number, true, false, none, or a name (also written `${name}`). Nothing of it is ever evaluated as code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from necrocode import shells
from necrocode.errors import PlaybookExecutionError

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_.-]*)\}")
_CONDITION = re.compile(
    r"""\s*(?P<left>"[^"]*"|'[^']*'|\$\{[^}]+\}|[^\s=!<>"']+)
        (?:\s*(?P<operator>==|!=|<=|>=|<|>)\s*(?P<right>"[^"]*"|'[^']*'|\$\{[^}]+\}|[^\s=!<>"']+))?\s*""",
    re.VERBOSE,
)
_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?")
_WORDS: Mapping[str, Any] = {"true": True, "false": False, "none": None, "null": None}
_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
    "<=": lambda a, b: a <= b,
    ">=": lambda a, b: a >= b,
}


def checked_step(command: Sequence[str], where: str = "") -> tuple[str, ...]:
    """The command of a step, or ConfigError when a `${name}` of it would be read as a program."""
    return shells.checked(command, _VARIABLE, where)


def substituted(text: str, variables: Mapping[str, Any]) -> str:
    """The text with every `${name}` replaced. Raises PlaybookExecutionError for a name that is not there."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in variables:
            raise PlaybookExecutionError(f"{text!r} uses ${{{match[1]}}}, which is not set")
        return str(variables[match[1]])

    return _VARIABLE.sub(value, text)


class Conditions:
    """Conditions over one set of variables; texts that look like numbers or truth values compare as such."""

    def __init__(self, variables: Mapping[str, Any]) -> None:
        self._variables = variables

    def hold(self, text: str) -> bool:
        """Whether the condition is true. Raises PlaybookExecutionError for one that cannot be read, or that orders
        things which have no order."""
        match = _CONDITION.fullmatch(text)
        if not match:
            raise PlaybookExecutionError(f"{text!r} is no condition", step=text)
        left = self._operand(match["left"])
        if match["operator"] is None:
            return bool(left)
        try:
            return bool(_COMPARE[match["operator"]](left, self._operand(match["right"])))
        except TypeError as error:
            raise PlaybookExecutionError(f"{text!r} compares what cannot be compared: {error}", step=text) from error

    def _operand(self, text: str) -> Any:
        if text[0] in "\"'":
            return text[1:-1]
        if text.lower() in _WORDS:
            return _WORDS[text.lower()]
        if _NUMBER.fullmatch(text):
            return float(text)
        variable = _VARIABLE.fullmatch(text)
        return self._typed(variable[1] if variable else text)

    def _typed(self, name: str) -> Any:
        """A variable's value. One that is not set is None: a condition may ask whether it is."""
        value = self._variables.get(name)
        if isinstance(value, str):
            if value.lower() in _WORDS:
                return _WORDS[value.lower()]
            return float(value) if _NUMBER.fullmatch(value) else value
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
