"""S0-38, S1-56: nothing that users of these faces call changes by accident. A new name is added to the snapshot beside
this file on purpose (`python tests/faces/test_s0_signatures.py` writes it); one that changes or goes is told in
CHANGELOG.md."""

from __future__ import annotations

import enum
import importlib
import inspect
from pathlib import Path

import pytest

FACES = {
    "s0": "necrocode.benchmark",
    "s1": "necrocode.task_calls",
    "s3": "necrocode.concurrency",
    "s4": "necrocode.parallel",
}


def bare(function):
    """The signature without annotations; of an exception without one of its own, that of all exceptions."""
    if isinstance(function, type) and function.__init__ is RuntimeError.__init__:
        return "(*args)"
    signature = inspect.signature(function)
    parameters = [it.replace(annotation=it.empty) for it in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=signature.empty))


def lines_of(name, value):
    if not isinstance(value, type):
        yield name + bare(value)
    elif issubclass(value, enum.Enum):
        yield f"{name}: " + " ".join(f"{member}={it.value}" for member, it in value.__members__.items())
    else:
        yield name + bare(value)
        for member in sorted(vars(value)):
            found = getattr(inspect.getattr_static(value, member), "__func__", inspect.getattr_static(value, member))
            if member[0] == "_" or member == "model_post_init":  # pydantic's own
                continue
            if inspect.isfunction(found) or isinstance(found, property):
                yield f"  {member}" + (bare(found) if inspect.isfunction(found) else "")


def snapshot(module):
    face = importlib.import_module(module)
    return [line for name in sorted(face.__all__) for line in lines_of(name, getattr(face, name))]


@pytest.mark.parametrize("face", FACES)
def test_public_signatures(face):
    kept = Path(__file__).with_name(f"{face}_signatures.txt").read_text().splitlines()
    assert snapshot(FACES[face]) == kept


if __name__ == "__main__":
    for name, module in FACES.items():
        Path(__file__).with_name(f"{name}_signatures.txt").write_text("\n".join(snapshot(module)) + "\n")
